"""The forward simulation against an example worked by hand, and against plans with a fault put in."""

import math
from dataclasses import replace

import pytest

from nmoe.deliver.allocate import Allocation, Plan, plan
from nmoe.deliver.forward import check_plan, simulate
from nmoe.deliver.scenario import ModelProfile, Receiver, Scenario

USER = Receiver(
    id="anna",
    spectral_efficiency=1.0,
    deadline_s=8.0,
    energy_j=40.0,
    batch=2,
    device_flops=1e12,
    power_w=10.0,
    layer_overhead_s=0.1,
    min_clock=0.25,
    models=("small", "large"),
    static_power_w=1.0,
    receive_power_w=0.5,
)
MODELS = {
    "small": ModelProfile(name="small", layer_bytes=(1e6, 0.5e6), layer_flops=(0.5e12, 1e12)),
    "large": ModelProfile(name="large", layer_bytes=(2e6,), layer_flops=(9e12,)),
}
SCENARIO = Scenario(bandwidth_hz=8e6, models=MODELS, users=(USER, replace(USER, id="ben", spectral_efficiency=3.0)))
GIVEN = Allocation(
    id="anna", served=True, model="small", bandwidth_share=0.5, clocks=(0.5, 1.0), finish_s=6.2, energy_j=28.2, slack_s=1.8, reason=""
)


def test_example_by_hand():
    """Half a Mbyte per second; the first layer runs from 2 s to 4.1 s, the second, here at 3 s, from then to 6.2 s."""
    timeline = simulate(SCENARIO, GIVEN)
    assert timeline.downloaded_s == pytest.approx((2.0, 3.0))
    assert timeline.started_s == pytest.approx((2.0, 4.1))
    assert timeline.finished_s == pytest.approx((4.1, 6.2))
    assert timeline.energy_j == pytest.approx((10 * 0.5**3 * 2 + 2.1, 10 * 2 + 2.1))
    assert timeline.receive_energy_j == pytest.approx(1.5)
    assert (timeline.finish_s, timeline.total_energy_j) == pytest.approx((6.2, 28.2))


def test_download_first_starts_when_all_is_here():
    timeline = simulate(SCENARIO, GIVEN, whole=True)
    assert timeline.downloaded_s == pytest.approx((2.0, 3.0))
    assert timeline.started_s == pytest.approx((3.0, 5.1))


def test_a_layer_waits_for_its_own_bytes():
    timeline = simulate(SCENARIO, replace(GIVEN, bandwidth_share=0.1))  # here at 10 s and 15 s
    assert timeline.started_s == pytest.approx((10.0, 15.0))


def test_layers_without_bytes_or_work_keep_their_order():
    model = ModelProfile(name="odd", layer_bytes=(0.0, 1e6, 0.0), layer_flops=(1e12, 0.0, 0.0))
    user = replace(USER, layer_overhead_s=0.0, models=("odd",))
    scenario = Scenario(bandwidth_hz=8e6, models={"odd": model}, users=(user,))
    timeline = simulate(scenario, replace(GIVEN, model="odd", bandwidth_share=1.0, clocks=(1.0, 1.0, 1.0)))
    assert timeline.started_s == (0.0, 2.0, 2.0)
    assert timeline.finished_s == (2.0, 2.0, 2.0)


def test_fixed_power_has_the_rate_of_its_better_snr():
    scenario = replace(SCENARIO, users=(replace(USER, spectral_efficiency=2.0, fixed_power=True),))  # SNR 3 over all, 6 in half
    timeline = simulate(scenario, GIVEN)
    assert timeline.downloaded_s[1] == pytest.approx(1.5 / (0.5 * math.log2(7)))


@pytest.mark.parametrize("efficiency", [1e-9, 1e-12, 1e-17, 1e-20])
def test_fixed_power_over_the_worst_links_has_nearly_the_rate_of_the_whole_band(efficiency):
    scenario = replace(
        SCENARIO, bandwidth_hz=8e6 / efficiency, users=(replace(USER, spectral_efficiency=efficiency, fixed_power=True, energy_j=math.inf),)
    )
    assert simulate(scenario, replace(GIVEN, bandwidth_share=1.0)).downloaded_s[1] == pytest.approx(1.5)
    assert simulate(scenario, GIVEN).downloaded_s[1] == pytest.approx(1.5)
    check_plan(scenario, plan(scenario))


@pytest.fixture
def good() -> Plan:
    found = plan(SCENARIO)
    assert found.served == 2
    check_plan(SCENARIO, found)
    return found


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"bandwidth_share": 0.1}, "deadline_s 8 does not hold"),
        ({"bandwidth_share": 0.99}, "bandwidth shares must not add up to more than 1"),
        ({"bandwidth_share": 0.0}, "bandwidth_share must be in"),
        ({"bandwidth_share": math.nan}, "bandwidth shares"),
        ({"clocks": (1.0, 1.0)}, "energy_j of the plan does not agree|finish_s of the plan does not agree"),
        ({"clocks": (1.0,)}, "2 clocks wanted"),
        ({"clocks": (0.1, 1.0)}, r"clocks\[0\] must be in \[0.25, 1\]"),
        ({"clocks": (1.0, 1.1)}, r"clocks\[1\]"),
        ({"clocks": (1.0, math.nan)}, r"clocks\[1\]"),
        ({"model": "huge"}, "a model out of small, large wanted"),
        ({"finish_s": 1.0}, "finish_s of the plan"),
        ({"energy_j": 1.0}, "energy_j of the plan"),
        ({"slack_s": 7.0}, "slack_s of the plan"),
        ({"slack_s": None}, "finish_s, energy_j and slack_s wanted"),
        ({"served": False}, "not served, so no model"),
    ],
)
def test_a_fault_in_a_plan_is_named(good, changed, said):
    first, second = good.allocations
    with pytest.raises(ValueError, match=said) as caught:
        check_plan(SCENARIO, replace(good, allocations=(replace(first, **changed), second)))
    assert "'anna'" in str(caught.value) or "plan:" in str(caught.value)


def test_energy_over_budget_is_named(good):
    poor = replace(SCENARIO, users=(replace(USER, energy_j=5.0), SCENARIO.users[1]))
    with pytest.raises(ValueError, match="user 'anna': energy_j 5 does not hold"):
        check_plan(poor, good)


def test_users_out_of_order_or_missing_are_named(good):
    for allocations in (good.allocations[::-1], good.allocations[:1]):
        with pytest.raises(ValueError, match="one allocation per user wanted"):
            check_plan(SCENARIO, replace(good, allocations=allocations))


def test_nothing_is_simulated_for_strangers_and_those_not_served():
    with pytest.raises(ValueError, match="'zoe': not in the scenario"):
        simulate(SCENARIO, replace(GIVEN, id="zoe"))
    with pytest.raises(ValueError, match=r"not served \(no luck\)"):
        simulate(SCENARIO, replace(GIVEN, served=False, reason="no luck"))
