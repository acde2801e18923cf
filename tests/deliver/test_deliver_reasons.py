"""Reasons: each refusal is the right one, with numbers that hold."""

import re
from dataclasses import replace

import pytest

from nmoe.deliver.allocate import plan
from nmoe.deliver.scenario import ModelProfile, Receiver, Scenario

MODEL = ModelProfile(name="even", layer_bytes=(5e5, 5e5), layer_flops=(5e11, 5e11))  # 1 s of work; 1 s of download over all of 8 MHz
USER = Receiver(
    id="a",
    spectral_efficiency=1.0,
    deadline_s=2.0,
    energy_j=10.0,
    batch=1,
    device_flops=1e12,
    power_w=10.0,
    layer_overhead_s=0.0,
    models=("even",),
)


def refusal(*users: Receiver, method: str = "slide") -> str:
    """Return the last user's reason."""
    last = plan(Scenario(bandwidth_hz=8e6, models={"even": MODEL}, users=users), method).allocations[-1]
    assert not last.served
    return last.reason


def test_deadline_too_short_names_the_time_with_everything():
    reason = refusal(replace(USER, deadline_s=1.4))
    assert reason == "deadline_s 1.4 is too short: with all of the bandwidth and at full clock, even would end after 1.5 s"


def test_download_first_needs_longer():
    assert "would end after 2 s" in refusal(replace(USER, deadline_s=1.9), method="dai")


def test_energy_too_small_names_what_it_would_take():
    reason = refusal(replace(USER, energy_j=3.0))
    assert "energy_j 3 is too small" in reason
    needed = float(re.search(r"would take ([\d.]+) J", reason)[1])
    users = [replace(USER, energy_j=needed * factor) for factor in (1.0001, 0.9999)]
    served = [plan(Scenario(bandwidth_hz=8e6, models={"even": MODEL}, users=(user,))).served for user in users]
    assert served == [1, 0]


def test_not_enough_bandwidth_names_need_and_rest():
    assert refusal(replace(USER, id="b", deadline_s=3.0), USER) == (
        "not enough bandwidth: even needs a share of 0.6667, there is 0.6 for it"
    )


def test_equal_shares_name_the_equal_share():
    assert "there is 0.5 for it" in refusal(replace(USER, id="b"), USER, method="slide-equal")


@pytest.mark.parametrize("fixed_power", [False, True])
def test_the_model_that_comes_closest_is_named(fixed_power):
    models = {name: replace(MODEL, name=name, layer_bytes=(size, size)) for name, size in [("big", 9e6), ("less", 2e6), ("most", 5e7)]}
    user = replace(USER, models=("big", "less", "most"), fixed_power=fixed_power)
    found = plan(Scenario(bandwidth_hz=8e6, models=models, users=(user,))).allocations[0]
    assert "less would end after 4.5 s" in found.reason


@pytest.mark.parametrize(
    ("method", "small", "large", "said"),
    [
        ("slide-largest", (2e5, 1e12), (1.4e6, 1e12), "large needs a share of 0.7, there is 0.3 for it"),
        ("slide-smallest", (2e5, 2.75e12), (1e6, 0.5e12), "small needs a share of 0.8, there is 0.2 for it"),
    ],
)
def test_the_model_that_was_provided_is_the_one_explained(method, small, large, said):
    models = {
        name: ModelProfile(name=name, layer_bytes=(size,), layer_flops=(work,))
        for name, (size, work) in [("small", small), ("large", large)]
    }
    users = tuple(replace(USER, id=name, models=("small", "large"), energy_j=1e3, deadline_s=3.0) for name in ("a", "b"))
    found = plan(Scenario(bandwidth_hz=8e6, models=models, users=users), method)
    assert [allocation.reason for allocation in found.allocations] == ["", f"not enough bandwidth: {said}"]


@pytest.mark.parametrize("over", [1e-6, 1e-8, 1e-10, 1e-11])
@pytest.mark.parametrize("field", ["deadline_s", "energy_j", "bandwidth_hz"])
def test_numbers_in_a_reason_are_never_equal(over, field):
    user = replace(USER, energy_j=10.0, min_clock=1.0, deadline_s=1.5)  # just enough of each
    enough = Scenario(bandwidth_hz=8e6, models={"even": MODEL}, users=(user,))
    assert plan(enough).served == 1
    if field == "bandwidth_hz":
        halves = replace(user, deadline_s=2.5)
        scenario = replace(enough, bandwidth_hz=8e6 * (1 - over), users=(halves, replace(halves, id="b")))
    else:
        scenario = replace(enough, users=(replace(user, **{field: getattr(user, field) * (1 - over)}),))
    reason = plan(scenario).allocations[-1].reason
    numbers = re.findall(r"(?<![a-z_])\d[\d.e+-]*", reason)
    assert len(set(numbers)) == len(numbers) == 2
