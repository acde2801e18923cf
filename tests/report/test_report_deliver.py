"""Reports of a delivery plan: the record is the contract, tables fit a terminal, and the chart shows every layer where it belongs."""

import json
import re

import pytest
from matplotlib.collections import PolyCollection
from rich.console import Console

from nmoe.deliver.allocate import plan
from nmoe.deliver.scenario import ModelProfile, Receiver, Scenario
from nmoe.report.deliver import comparison_table, plan_record, plan_tables, scheduled_users
from nmoe.report.figures import png_bytes
from nmoe.report.figures.deliver import MOST_SHOWN, limits_figure, schedule_figure

MODEL = ModelProfile(name="three layers", layer_bytes=(1e6, 2e6, 1e6), layer_flops=(1e9, 4e9, 2e9))


def scenario(users: int, *, poor: int = 0, bandwidth_hz: float = 1e8) -> Scenario:
    """Return users of whom the last ``poor`` have no time to compute."""
    return Scenario(
        bandwidth_hz=bandwidth_hz,
        models={MODEL.name: MODEL},
        users=tuple(
            Receiver(
                id=f"user{number}",
                spectral_efficiency=4.0,
                deadline_s=2.0 if number < users - poor else 0.01,
                energy_j=5.0 + number,
                batch=1,
                device_flops=2e10,
                power_w=10.0,
                layer_overhead_s=0.001,
                models=(MODEL.name,),
            )
            for number in range(users)
        ),
    )


def shown(renderable) -> str:
    console = Console(width=80)
    with console.capture() as caught:
        console.print(renderable)
    return caught.get()


def test_the_record_is_the_contract():
    case = scenario(3, poor=1)
    record = plan_record(plan(case))
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["served"] == 2
    for user in record["users"]:
        assert list(user) == ["id", "served", "model", "bandwidth_share", "clocks", "finish_s", "energy_j", "reason"]
    first, _, last = record["users"]
    assert (first["id"], first["served"], first["model"], first["reason"]) == ("user0", True, MODEL.name, "")
    assert len(first["clocks"]) == 3
    assert 0 < first["finish_s"] <= 2.0
    assert (last["served"], last["model"], last["clocks"], last["finish_s"]) == (False, None, [], None)
    assert last["reason"]


def test_tables_say_who_is_served_and_why_not():
    case = scenario(3, poor=1)
    found = plan(case)
    text = shown(plan_tables(case, found))
    assert "2 of 3 users served" in text
    assert "why it is not served" in text
    assert "deadline" in text
    share = found.allocations[0].bandwidth_share
    assert f"{100 * share:.2f} %" in text
    assert max(map(len, text.splitlines())) <= 80
    everybody = scenario(2)
    assert "why it is not served" not in shown(plan_tables(everybody, plan(everybody)))
    nobody = scenario(2, poor=2)
    assert "0 of 2 users served" in shown(plan_tables(nobody, plan(nobody)))


def test_other_methods_are_compared():
    case = scenario(4)
    text = shown(comparison_table([plan(case), plan(case, "dai"), plan(scenario(4, poor=4), "dai-equal")]))
    rows = [re.split(r"  +", line.strip()) for line in text.splitlines()]
    cells = {row[0]: row[1:] for row in rows if len(row) == 5}
    finish_s = sum(one.finish_s or 0 for one in plan(case, "dai").allocations) / 4
    assert cells["SLIDE"][0] == "4"
    assert cells["download, then infer"][:2] == ["4", f"{finish_s:.3f} s"]
    assert cells["download, then infer, equal bandwidth"] == ["0", "-", "-", "0.0 %"]


@pytest.mark.parametrize("method", ["slide", "dai"])
def test_scheduled_users_are_the_served_ones_carried_out(method: str):
    case = scenario(4, poor=1)
    users = scheduled_users(case, plan(case, method))
    assert [user.id for user in users] == ["user0", "user1", "user2"]
    for user in users:
        assert user.finished_s[-1] <= user.deadline_s * (1 + 1e-9)
        assert user.energy_used_j <= user.energy_j
        starts_early = user.started_s[0] < user.downloaded_s[-1]
        assert starts_early == (method == "slide"), "download, then infer, waits for the whole model"
        for layer in range(3):
            assert user.downloaded_s[layer] <= user.started_s[layer] <= user.finished_s[layer]


def test_the_chart_has_a_row_per_user_and_a_bar_per_layer():
    case = scenario(3)
    users = scheduled_users(case, plan(case))
    axes = schedule_figure(users, planned=5).axes[0]
    lanes = [artist for artist in axes.collections if isinstance(artist, PolyCollection)]
    assert len(lanes) == 2 * 3
    for row, user in enumerate(users):
        downloads, computing = lanes[2 * row], lanes[2 * row + 1]
        ends = [max(path.vertices[:, 0]) for path in downloads.get_paths()]
        assert ends == pytest.approx(list(user.downloaded_s))
        assert [min(path.vertices[:, 0]) for path in computing.get_paths()] == pytest.approx(list(user.started_s))
        assert [max(path.vertices[:, 0]) for path in computing.get_paths()] == pytest.approx(list(user.finished_s))
        heights = [path.vertices[:, 1] for lane in (downloads, computing) for path in lane.get_paths()]
        assert all((abs(height - row) < 0.5).all() for height in heights)
    assert [label.get_text().split()[0] for label in axes.get_yticklabels()] == ["user0", "user1", "user2"]
    assert "3 of 5 users" in schedule_figure(users, planned=5).get_suptitle()


def test_a_title_may_be_given_and_late_rows_say_so():
    case = scenario(3)
    figure = schedule_figure(scheduled_users(case, plan(case)), planned=3, title="2 of 3 served in time", late={"user1"})
    assert figure.get_suptitle() == "2 of 3 served in time"
    assert ["late" in label.get_text() for label in figure.axes[0].get_yticklabels()] == [False, True, False]


@pytest.mark.parametrize("count", [0, 1, 5, 40, MOST_SHOWN + 1])
def test_any_number_of_users_draws(count: int):
    case = scenario(max(count, 1), poor=int(count == 0), bandwidth_hz=1e10)
    users = scheduled_users(case, plan(case))
    assert len(users) == count
    figures = [schedule_figure(users, planned=len(case.users)), limits_figure(users)]
    for figure in figures:
        png_bytes(figure)
        assert figure.get_figheight() <= 30
    if count > MOST_SHOWN:
        assert f"the first {MOST_SHOWN} are shown" in figures[0].get_suptitle().replace("\n", " ")


def test_limits_are_shares_of_deadline_and_budget():
    case = scenario(2)
    users = scheduled_users(case, plan(case, "slide-full-clock", spare="share"))
    axes = limits_figure(users).axes[0]
    drawn = {line.get_label(): line.get_xdata() for line in axes.lines}
    assert drawn["time, of the deadline"] == pytest.approx([100 * user.finished_s[-1] / 2.0 for user in users])
    assert drawn["energy, of the budget"] == pytest.approx([100 * user.energy_used_j / user.energy_j for user in users])
