"""The delivery demo for real: processes, links where they are allowed, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from nmoe.core.bundle import ModelSpec
from nmoe.core.errors import BadFile, NmoeError
from nmoe.deliver.member import GivenShare, LayerTimes
from nmoe.deliver.scenario import ModelProfile, Receiver, Scenario
from nmoe.recipes.deliver_client import Calibrate, Ended, Setting, Timed
from nmoe.recipes.deliver_crew import Crew, CrewClient, CrewProcess
from nmoe.recipes.deliver_demo import QUICK, TOLD, USERS, _compute_s, _slowdown, _specs, _write_models
from nmoe.report.deliver import ScheduledUser
from nmoe.report.deliver_demo import demo_table, measured_figure


def processes_of(mark: str) -> list[int]:
    """Return the processes whose command line or environment holds a mark."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                told = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            except OSError:
                continue  # it has ended
            if mark.encode() in told and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--loopback"]])
def test_who_is_planned_for_is_served_and_who_is_not_is_told_why(tmp_path, extra):
    words = [sys.executable, "-m", "nmoe", "deliver", "demo", "--quick", "--out", str(tmp_path / "run"), *extra]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [user["id"] for user in results["users"]] == [user[0] for user in USERS]
    assert results["served"]["planned"] == len(USERS) - 1, "the neediest does not fit"
    assert results["users"][-1]["reason"]
    for user in results["users"][:-1]:
        assert user["finish_s"]["measured"] > 0.5 * user["finish_s"]["planned"], "it was paced"
        assert len(user["layers"]["measured"]) == len(user["layers"]["planned"]) == len(user["clocks"])
    assert sum(user["bandwidth_share"] for user in results["users"]) <= 1 + 1e-9
    assert (tmp_path / "run" / "figures" / "measured.png").stat().st_size > 1000
    assert "loopback" in results["links"] or not extra


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_when_it_is_ended_early(tmp_path, number):
    mark = f"nmoe-test-{os.getpid()}-{number}"
    words = [sys.executable, "-m", "nmoe", "deliver", "demo", "--quick", "--out", str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "NMOE_TEST_MARK": mark}) as demo:
        assert demo.stdout is not None
        while not demo.stdout.readline().startswith("devices"):
            assert demo.poll() is None
        assert len(processes_of(mark)) > len(USERS)
        demo.send_signal(number)
        demo.wait(30)
    until_s = time.monotonic() + 20
    while (left := processes_of(mark)) and time.monotonic() < until_s:
        time.sleep(0.1)
    assert left == []


def test_a_process_that_ends_is_named(tmp_path):
    process = CrewProcess(["nmoe.not_there"], name="ghost", isolated=False)
    with pytest.raises(NmoeError, match="ghost ended"):
        process.line()
    process.end()


def test_a_crew_without_links_says_why(tmp_path):
    with Crew(tmp_path, loopback=True) as crew:
        assert "loopback" in crew.about
        assert not crew.isolated


def results_of(*, in_time: int, stretch: float = 1.0) -> dict[str, Any]:
    """Return a demo's results: three users planned for, the first ``in_time`` of whom were in time, and one not planned for."""
    users: list[dict[str, Any]] = [
        {
            "id": f"user{number}",
            "served": {"planned": True, "measured": number < in_time},
            "model": "vit",
            "bandwidth_share": 0.25,
            "deadline_s": 4.0,
            "finish_s": {"planned": 3.5, "measured": 3.6 if number < in_time else 4.5},
            "compute_s": {"calibrated": 2.0, "measured": 2.0 * (stretch if number == 1 else 1.0)},
            "reason": "",
        }
        for number in range(3)
    ]
    unserved = {"served": {"planned": False, "measured": False}, "model": None, "bandwidth_share": 0.0, "reason": "too far"}
    nothing = {"finish_s": {"planned": None, "measured": None}, "compute_s": {"calibrated": None, "measured": None}}
    users.append({**users[0], **unserved, **nothing, "id": "edge"})
    return {"served": {"planned": 3, "measured": in_time}, "users": users, "other_methods_serve": {"dai": 0}}


def text_of(results: dict[str, Any]) -> str:
    console = Console(width=80)
    with console.capture() as caught:
        console.print(demo_table(results))
    return caught.get()


def test_the_table_says_who_was_late():
    text = text_of(results_of(in_time=1))
    assert text.count("late") == 2
    assert "25.0 %" in text


@pytest.mark.parametrize(("stretch", "said"), [(1.4, True), (1.11, True), (1.09, False), (0.5, False)])
def test_a_machine_that_was_busier_is_told(stretch, said):
    text = text_of(results_of(in_time=1, stretch=stretch))
    assert (f"busier while serving than when timed (x{stretch:.1f})" in text) == said


@pytest.mark.parametrize("in_time", [0, 1, 3])
def test_the_figure_counts_who_was_in_time_as_the_table_does(in_time):
    results = results_of(in_time=in_time)
    rows = [
        ScheduledUser(
            id=user["id"],
            model="vit",
            bandwidth_share=0.25,
            deadline_s=4.0,
            energy_j=1.0,
            energy_used_j=1.0,
            clocks=(0.5,),
            downloaded_s=(1.0,),
            started_s=(1.0,),
            finished_s=(user["finish_s"]["measured"],),
        )
        for user in results["users"]
        if user["model"]
    ]
    figure = measured_figure(results, rows)
    assert figure.get_suptitle() == f"{in_time} of 4 served in time (3 planned)"
    late = ["late" in label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert late == [number >= in_time for number in range(3)]


def test_devices_are_slowed_to_what_was_promised_and_never_sped_up():
    model = ModelProfile(name="m", layer_bytes=(1e6, 1e6), layer_flops=(1e9, 3e9))
    told = {"spectral_efficiency": 1.0, "deadline_s": 5.0, "energy_j": 1.0, "power_w": 1.0, "layer_overhead_s": 0.0, "models": ("m",)}
    user = Receiver(id="a", batch=2, device_flops=2e9, **told)
    case = Scenario(bandwidth_hz=1e6, models={"m": model}, users=(user,))
    assert _slowdown(case, {"a": {"m": 1.0}})["a"]["m"] == pytest.approx(TOLD * 4)  # 8e9 operations in 1 s on a device of 2e9 per s
    assert _slowdown(case, {"a": {"m": 100.0}})["a"]["m"] == 1.0


def test_computing_is_compared_with_what_was_timed_at_the_given_clocks():
    model = ModelProfile(name="m", layer_bytes=(1e6, 1e6, 1e6), layer_flops=(1e9, 3e9, 0.0))
    case = Scenario(bandwidth_hz=1e6, models={"m": model}, users=())
    given = GivenShare(
        id="a", served=True, model="m", file="f", bandwidth_share=1.0, rate_bps=1.0, clocks=(0.5, 1.0, 0.0), finish_s=1.0, energy_j=1.0,
        slack_s=0.0, reason="", spectral_efficiency=1.0, sent_bytes=0,
    )  # fmt: skip
    layers = (LayerTimes(0.5, 1.0, 2.0), LayerTimes(1.5, 2.5, 6.5), LayerTimes(1.5, 2.5, 6.5))  # the last two ran as one
    found = _compute_s(case, Ended(given, 6.5, layers), {"m": 4.0})
    assert found == {"calibrated": pytest.approx(2.0 + 3.0), "measured": pytest.approx(1.0 + 4.0)}


def test_a_client_times_for_as_long_as_it_is_told(tmp_path):
    spec = ModelSpec(kind="fixup_resnet", arguments={"in_channels": 3, "widen": 1})
    client = CrewClient("a", Setting(models={"m": spec}, batch=1, image_size=32, seed=0, cache=str(tmp_path)), isolated=False)
    try:
        client.process.line()
        client.ask(Calibrate(0.0), Timed)
        began_s = time.monotonic()
        assert client.ask(Calibrate(1.0), Timed).call_s["m"] > 0
        assert time.monotonic() - began_s >= 1.0
    finally:
        client.process.end()


def test_a_users_own_weights_are_taken_and_strangers_are_refused(tmp_path):
    specs = _specs(QUICK)
    for name in ("made", "taken", "refused", "empty", "without"):
        (tmp_path / name).mkdir()
    made = _write_models(tmp_path / "made" / "models", specs, given=None, seed=1)
    assert _write_models(tmp_path / "taken" / "models", specs, given=tmp_path / "made" / "models", seed=0) == made
    for name in specs:
        path = Path("models") / f"{name}.safetensors"
        assert (tmp_path / "taken" / path).read_bytes() == (tmp_path / "made" / path).read_bytes()
        save_file({"stranger": torch.zeros(2)}, tmp_path / "empty" / path.name)
    with pytest.raises(ValueError, match=r"resnet\.safetensors lacks tensors"):
        _write_models(tmp_path / "refused" / "models", specs, given=tmp_path / "empty", seed=0)
    with pytest.raises(BadFile, match="there is no file"):
        _write_models(tmp_path / "without" / "models", specs, given=tmp_path / "without", seed=0)
