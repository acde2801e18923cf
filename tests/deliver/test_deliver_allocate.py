"""Plans: as many users as brute force serves, monotone in what is given, and everything checked by the forward simulation."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe.deliver.allocate import METHODS, least_shares, plan
from nmoe.deliver.forward import check_plan
from nmoe.deliver.scenario import ModelProfile, Receiver, Scenario

SEEDS = st.integers(0, 2**32 - 1)


def brute_force(needs: np.ndarray, weights: np.ndarray) -> float:
    """Return the largest weight that can be served, over all choices of nothing or a model for every user."""
    rows = [[(0.0, 0.0), *((need, weight) for need in row if need <= 1)] for row, weight in zip(needs, weights, strict=True)]
    choices = [(0.0, 0.0)]
    for row in rows:
        choices = [(used + need, worth + weight) for used, worth in choices for need, weight in row if used + need <= 1]
    return max(worth for _, worth in choices)


def oracle_shares(scenario: Scenario) -> np.ndarray:
    """Return every pair's least share by bisection over a plain statement of the lemmas, nothing of it shared with the planner."""
    rows = [[oracle_share(scenario, user, scenario.models[name]) for name in user.models] for user in scenario.users]
    longest = max(len(row) for row in rows)
    return np.array([row + [math.inf] * (longest - len(row)) for row in rows])


def oracle_share(scenario: Scenario, user: Receiver, model: ModelProfile) -> float:
    def fits(share: float) -> bool:
        return least_energy(scenario, user, model, share) <= user.energy_j

    if not fits(1e6):
        return math.inf
    low, high = 1e-5, 1e6
    assert not fits(low)
    for _ in range(48):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def least_energy(scenario: Scenario, user: Receiver, model: ModelProfile, share: float) -> float:
    """Return the least energy at a share, infinite past the deadline: the slope of layer l is max over b >= l of min over a <= ... of the
    chords, by which lower hulls are defined."""
    efficiency = user.spectral_efficiency
    per_hz = share * math.log2(1 + (2**efficiency - 1) / share) if user.fixed_power else share * efficiency
    pace = 8 / (per_hz * scenario.bandwidth_hz)
    depth = len(model.layer_bytes)
    left, room = [0.0], [0.0]  # of work, and until the deadline; from the last layer on
    for layer in reversed(range(depth)):
        left.append(left[-1] + user.batch * model.layer_flops[layer] / user.device_flops)
        arrival = pace * sum(model.layer_bytes[: layer + 1])
        room.append(user.deadline_s - arrival - user.layer_overhead_s * (depth - layer))
    if any(time < work for work, time in zip(left, room, strict=True)):
        return math.inf
    lowest = min(max(user.min_clock, (user.static_power_w / (2 * user.power_w)) ** (1 / 3)), 1)
    energy = user.static_power_w * user.layer_overhead_s * depth + user.receive_power_w * pace * sum(model.layer_bytes)
    at = 0
    while left[at] < left[-1]:  # gift wrapping: the next vertex is where the chord is least steep
        slope, at, work = min(
            ((room[end] - room[at]) / (left[end] - left[at]), end, left[end] - left[at])
            for end in range(at + 1, depth + 1)
            if left[end] > left[at]
        )
        clock = max(1 / max(slope, 1.0), lowest)  # less is rounding: there is time for the work
        energy += work * (user.power_w * clock**2 + user.static_power_w / clock)
    return energy


@pytest.mark.parametrize("part", range(5))
def test_serves_as_many_as_brute_force_over_models_and_users(draw_problem, part):
    for seed in range(100 * part, 100 * part + 100):
        scenario = draw_problem(np.random.default_rng(seed), users=8, plain=seed % 2 == 0)
        needs = oracle_shares(scenario)
        weights = np.array([user.weight for user in scenario.users])
        assert plan(scenario).served == brute_force(needs, np.ones_like(weights))
        if seed % 5 == 0:
            served = [allocation.served for allocation in plan(scenario, "slide-weighted").allocations]
            assert weights[served].sum() == pytest.approx(brute_force(needs, weights))


@settings(max_examples=20)
@given(seed=SEEDS)
def test_least_shares_are_those_of_bisection(draw_problem, seed):
    scenario = draw_problem(np.random.default_rng(seed), layers=20)
    np.testing.assert_allclose(least_shares(scenario), oracle_shares(scenario), rtol=1e-9)


@given(seed=SEEDS)
def test_least_share_is_enough_and_a_little_less_is_not(draw_problem, seed):
    scenario = draw_problem(np.random.default_rng(seed))
    for user, row in zip(scenario.users, least_shares(scenario), strict=True):
        for name, share in zip(user.models, row.tolist(), strict=False):
            if share < 1e6:
                assert least_energy(scenario, user, scenario.models[name], share * (1 + 1e-9)) <= user.energy_j * (1 + 2e-12)
            if share < 1:
                assert least_energy(scenario, user, scenario.models[name], share * (1 - 1e-6)) > user.energy_j


def widened(scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """Return a scenario in which the layers of a model differ in work by up to fifteen decades, as embeddings do from what follows."""
    models = {}
    for name, model in scenario.models.items():
        work = np.array(model.layer_flops) * 10 ** -rng.uniform(0, 15, len(model.layer_flops)) * (rng.random(len(model.layer_flops)) < 0.8)
        work[-1 if rng.random() < 0.5 else rng.integers(len(work))] += sum(model.layer_flops) / 2
        models[name] = replace(model, layer_flops=tuple(work.tolist()))
    return replace(scenario, models=models)


@pytest.mark.parametrize("method", METHODS)
def test_plans_hold_however_uneven_the_work_of_layers(draw_problem, method):
    served = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scenario = widened(draw_problem(rng, users=6, layers=20), rng)
        if seed % 2:
            scenario = replace(scenario, users=tuple(replace(user, energy_j=math.inf, static_power_w=0.0) for user in scenario.users))
        found = plan(scenario, method, spare=("keep", "share")[seed // 2 % 2], generator=rng)
        check_plan(scenario, found)
        served += found.served
    assert served > 30


@settings(max_examples=20)
@given(seed=SEEDS)
def test_least_shares_are_those_of_bisection_however_uneven_the_work(draw_problem, seed):
    rng = np.random.default_rng(seed)
    scenario = widened(draw_problem(rng, layers=12), rng)
    np.testing.assert_allclose(least_shares(scenario), oracle_shares(scenario), rtol=1e-9)


def test_an_embedding_of_little_work_is_served():
    model = ModelProfile(name="lm", layer_bytes=(1e6, 100e6), layer_flops=(1e4, 2e12))
    user = Receiver(
        id="a", spectral_efficiency=6.0, deadline_s=5.0, energy_j=math.inf, batch=1, device_flops=1e12, power_w=15.0, layer_overhead_s=0.0,
        models=("lm",),
    )  # fmt: skip
    scenario = Scenario(bandwidth_hz=100e6, models={"lm": model}, users=(user,))
    found = plan(scenario)
    check_plan(scenario, found)
    assert found.served == 1


@pytest.mark.parametrize("method", METHODS)
def test_every_plan_holds_in_the_forward_simulation(draw_problem, method):
    served = 0
    for seed in range(20):
        scenario = draw_problem(np.random.default_rng(seed), users=12, layers=20)
        found = plan(scenario, method, spare=("keep", "share")[seed % 2], generator=np.random.default_rng(seed))
        check_plan(scenario, found)
        assert found.served <= plan(scenario).served
        served += found.served
    assert served > 10


@given(seed=SEEDS)
def test_clocks_do_not_fall_from_layer_to_layer(draw_problem, seed):
    scenario = draw_problem(np.random.default_rng(seed), layers=20)
    for allocation in plan(scenario).allocations:
        assert all(before <= after * (1 + 1e-9) for before, after in itertools.pairwise(allocation.clocks))


@given(seed=SEEDS)
def test_downloading_first_and_simpler_clocks_never_need_less(draw_problem, seed):
    scenario = draw_problem(np.random.default_rng(seed), layers=20)
    slide = least_shares(scenario)
    uniform = least_shares(scenario, "slide-uniform-clock")
    for more, less in [(least_shares(scenario, "dai"), uniform), (uniform, slide), (least_shares(scenario, "slide-full-clock"), uniform)]:
        assert (more >= less * (1 - 1e-9)).all()


@given(seed=SEEDS, factor=st.floats(1.01, 3))
def test_more_of_anything_never_serves_fewer(draw_problem, seed, factor):
    scenario = draw_problem(np.random.default_rng(seed), users=8)
    served = plan(scenario).served
    assert plan(replace(scenario, bandwidth_hz=scenario.bandwidth_hz * factor)).served >= served
    for field in ("deadline_s", "energy_j"):
        users = tuple(replace(user, **{field: getattr(user, field) * factor}) for user in scenario.users)
        assert plan(replace(scenario, users=users)).served >= served


def equal_layers(layers: int, *, efficiency: float = 1.0, **changed: object) -> Scenario:
    """Return one user and a model of equal layers: 1 Mbyte in all, 1 s of work, over 8 MHz."""
    model = ModelProfile(name="even", layer_bytes=(1e6 / layers,) * layers, layer_flops=(1e12 / layers,) * layers)
    options = {"deadline_s": 2.0, "energy_j": math.inf, **changed}
    user = Receiver(
        id="a", spectral_efficiency=efficiency, batch=1, device_flops=1e12, power_w=10.0, layer_overhead_s=0.0, models=("even",), **options
    )
    return Scenario(bandwidth_hz=8e6, models={"even": model}, users=(user,))


@pytest.mark.parametrize("layers", [1, 2, 10, 50])
@pytest.mark.parametrize("efficiency", [0.5, 1.0, 3.0])
def test_equal_layers_save_the_share_of_time_that_the_closed_form_says(layers, efficiency):
    download_s, compute_s = 1 / efficiency, 1.0
    cut = (1 - 1 / layers) * min(download_s, compute_s) / (download_s + compute_s)
    best_s = (download_s + compute_s) * (1 - cut)
    for deadline_s, enough in [(best_s * (1 + 1e-6), True), (best_s * (1 - 1e-6), False)]:
        assert (least_shares(equal_layers(layers, efficiency=efficiency, deadline_s=deadline_s)).item() <= 1) is enough
        assert least_shares(equal_layers(layers, efficiency=efficiency, deadline_s=deadline_s), "dai").item() > 1 or layers == 1


def test_spare_bandwidth_ends_downloads_earlier():
    scenario = equal_layers(10, efficiency=4.0)
    kept, shared = plan(scenario).allocations[0], plan(scenario, spare="share").allocations[0]
    assert kept.bandwidth_share < 1
    assert shared.bandwidth_share == 1
    assert shared.clocks == kept.clocks
    assert shared.finish_s < kept.finish_s
    assert shared.slack_s > kept.slack_s >= 0


def test_energy_limit_slows_clocks_and_costs_bandwidth():
    rich, poor = (least_shares(equal_layers(10, efficiency=4.0, energy_j=energy)).item() for energy in (math.inf, 3.0))
    assert poor > rich
    assert max(plan(equal_layers(10, efficiency=4.0, energy_j=3.0)).allocations[0].clocks) < 1


def test_no_users_are_planned_for_at_once():
    scenario = replace(equal_layers(3), users=())
    assert plan(scenario).allocations == ()
    with pytest.raises(ValueError, match="at least one user"):
        least_shares(scenario)


@pytest.mark.parametrize(
    ("method", "spare", "wanted"),
    [
        ("fastest", "keep", "method out of slide.*'fastest'"),
        ("slide", "burn", "spare must be.*'burn'"),
        ("slide-random-order", "keep", "generator"),
        ("slide-random-model", "keep", "generator"),
    ],
)
def test_wrong_calls_say_what_was_wanted(method, spare, wanted):
    with pytest.raises(ValueError, match=wanted):
        plan(equal_layers(3), method, spare=spare)


def just_enough(users: int, **changed: object) -> Scenario:
    """Return users of whom each needs exactly its part of the bandwidth: 1 Mbit in 1 s, and 1 s of work at 10 W, by 2 s."""
    model = ModelProfile(name="one", layer_bytes=(125_000.0,), layer_flops=(1e9,))
    user = {
        "spectral_efficiency": 1.0, "batch": 1, "device_flops": 1e9, "power_w": 10.0, "layer_overhead_s": 0.0, "models": ("one",),
        "deadline_s": 2.0, "energy_j": math.inf, **changed,
    }  # fmt: skip
    return Scenario(bandwidth_hz=1e6 * users, models={"one": model}, users=tuple(Receiver(id=f"u{k}", **user) for k in range(users)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("users", [1, 3, 10, 49])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"min_clock": 1.0, "energy_j": 10.0},
        {"min_clock": 1.0, "energy_j": 15.0, "receive_power_w": 5.0},
        {"static_power_w": 100.0, "energy_j": 110.0},
        {"min_clock": 0.5, "energy_j": 2.5, "deadline_s": 3.0},
        {"energy_j": 2.5, "deadline_s": 3.0},
        {"fixed_power": True},
    ],
)
def test_limits_that_are_just_met_are_met(method, users, changed):
    scenario = just_enough(users, **changed)
    if "full" in method and changed.get("energy_j") == 2.5:
        return  # at full clock it takes 10 J
    found = plan(scenario, method, generator=np.random.default_rng(0))
    check_plan(scenario, found)
    assert found.served == users
    assert sum(allocation.bandwidth_share for allocation in found.allocations) <= 1 + 1e-15
    for user, allocation in zip(scenario.users, found.allocations, strict=True):
        assert allocation.finish_s <= user.deadline_s
        assert allocation.slack_s >= 0
        assert allocation.energy_j <= user.energy_j


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("field", ["deadline_s", "energy_j"])
def test_a_millionth_less_than_just_enough_is_not(method, field):
    enough = just_enough(10, min_clock=1.0, energy_j=10.0)
    users = tuple(replace(user, **{field: getattr(user, field) * (1 - 1e-6)}) for user in enough.users)
    assert plan(replace(enough, users=users), method, generator=np.random.default_rng(0)).served < 10
