"""Clocks: the hull against its definition, the energy against its derivative, and the worked cases of one edge and of two."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe.deliver.bandwidth import least_rates_at_full_clock
from nmoe.deliver.candidates import candidates
from nmoe.deliver.clocks import Clocks, FullClock, PerLayer, Tasks, UniformClock, lower_hull

SEEDS = st.integers(0, 2**32 - 1)
KINDS = [PerLayer(), UniformClock(), FullClock()]


def one(layer_bytes: list[float], work: list[float], **changed: float) -> Tasks:
    """Return a single problem: 10 W, no overhead, no limits but a deadline of 10 s."""
    values = {
        "deadline": 10.0, "budget": np.inf, "power": 10.0, "static_power": 0.0, "receive_power": 0.0, "lowest": 0.0, **changed,
    }  # fmt: skip
    left = np.cumsum(work[::-1])[::-1][:, None]
    return Tasks(
        arrived=np.cumsum(layer_bytes)[:, None],
        work=np.array(work)[:, None],
        fixed=np.zeros_like(left),
        work_left=left,
        fixed_left=np.zeros_like(left),
        total_bytes=np.array([sum(layer_bytes)]),
        **{name: np.array([value]) for name, value in values.items()},
    )


def at_some_pace(draw_problem, seed: int) -> tuple[Tasks, np.ndarray]:
    """Return the problems that full clocks can solve, and paces at which they do."""
    rng = np.random.default_rng(seed)
    tasks = candidates(draw_problem(rng, layers=20), whole=False).tasks
    rates = least_rates_at_full_clock(tasks)
    fine = np.flatnonzero(np.isfinite(rates))
    return tasks.take(fine), rng.uniform(0.1, 1, len(fine)) / rates[fine]


@given(seed=SEEDS)
def test_hull_is_convex_and_below_all_points_and_made_of_some(seed):
    rng = np.random.default_rng(seed)
    layers, problems = int(rng.integers(1, 30)), int(rng.integers(1, 6))
    steps = rng.exponential(1, (layers, problems)) * (rng.random((layers, problems)) < 0.8)
    across = np.cumsum(steps[::-1], axis=0)[::-1]
    up = rng.uniform(0, 10, (layers, problems))
    found, lengths = lower_hull(steps, up)
    assert (found[0] == layers).all()
    corners = np.take_along_axis(np.vstack([across, np.zeros(problems)]), found, axis=0)
    np.testing.assert_allclose(lengths, np.diff(corners, axis=0), atol=1e-12)
    for problem in range(problems):
        x, y = np.append(across[:, problem], 0), np.append(up[:, problem], 0)
        vertices = list(dict.fromkeys(found[:, problem].tolist()))
        assert x[vertices[-1]] == x.max()
        slopes = np.diff(y[vertices]) / np.diff(x[vertices])
        assert (np.diff(slopes) > -1e-9).all()
        assert (y >= np.interp(x, x[vertices], y[vertices]) - 1e-9).all()


def test_one_edge_is_one_clock_from_the_first_arrival_to_the_deadline():
    tasks = one([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0])
    clock = PerLayer().choose(tasks, np.array([2.0]))  # first layer here at 2 s, so 4 s of work in 8 s
    np.testing.assert_allclose(clock[:, 0], 0.5)
    assert PerLayer().energy(tasks, np.array([2.0]))[0] == pytest.approx(10 * 4 * 0.5**2)


def test_a_late_heavy_layer_lets_those_before_it_go_slowly():
    tasks = one([1.0, 5.0], [1.0, 2.0])  # here at 1 s and at 6 s: the second has 4 s, the first 5 s
    np.testing.assert_allclose(PerLayer().choose(tasks, np.array([1.0]))[:, 0], [1 / 5, 1 / 2])
    np.testing.assert_allclose(UniformClock().choose(tasks, np.array([1.0]))[:, 0], [1 / 2, 1 / 2])


@pytest.mark.parametrize("work", [1e-3, 1e-8, 1e-15, 1e-25])
def test_a_first_layer_with_next_to_no_work_has_its_exact_clock(work):
    tasks = one([1.0, 3.0, 96.0], [work, 3 * work, 2.0])  # here at 0.0625 s, 0.25 s and 6.25 s
    clock = PerLayer().choose(tasks, np.array([0.0625]))[:, 0]
    np.testing.assert_allclose(clock, [4 * work / 6.1875, 4 * work / 6.1875, 2 / 3.75], rtol=1e-12)


@pytest.mark.parametrize("clocks", KINDS)
def test_no_time_left_but_for_rounding_is_full_clock(clocks):
    tasks = one([1.0], [1e-20])
    with np.errstate(all="raise", under="ignore"):
        assert clocks.choose(tasks, np.array([10.0])) == 1
        assert clocks.energy(tasks, np.array([10.0]))[0] == pytest.approx(1e-19)


@pytest.mark.parametrize("clocks", KINDS)
def test_lowest_clock_holds(clocks):
    tasks = one([1.0, 5.0], [1.0, 2.0], lowest=0.4)
    assert clocks.choose(tasks, np.array([1.0])).min() >= 0.4
    assert clocks.energy(tasks, np.array([1.0]))[0] >= PerLayer().energy(one([1.0, 5.0], [1.0, 2.0]), np.array([1.0]))[0]


def test_layers_without_work_have_a_clock_too():
    clock = PerLayer().choose(one([1.0, 1.0, 4.0, 0.0], [0.0, 1.0, 2.0, 0.0]), np.array([1.0]))[:, 0]
    np.testing.assert_allclose(clock, [0.25, 0.25, 0.5, 0.5])  # 2 s of work in the last 4 s, 1 s in the 4 s before


@pytest.mark.parametrize("clocks", KINDS)
@given(seed=SEEDS)
def test_energy_is_that_of_the_clocks_chosen(draw_problem, clocks: Clocks, seed):
    tasks, pace = at_some_pace(draw_problem, seed)
    clock = clocks.choose(tasks, pace)
    assert ((clock >= tasks.lowest) & (clock <= 1) & (clock > 0)).all()
    energy = (tasks.power * tasks.work * clock**2 + tasks.static_power * tasks.work / clock).sum(0) + tasks.energy_beside(pace)
    np.testing.assert_allclose(clocks.energy(tasks, pace)[0], energy, rtol=1e-9)


@pytest.mark.parametrize("clocks", KINDS)
@given(seed=SEEDS)
def test_slope_is_the_derivative_of_the_energy(draw_problem, clocks: Clocks, seed):
    tasks, pace = at_some_pace(draw_problem, seed)
    step = 1e-6 * pace
    before, after = (clocks.energy(tasks, pace + sign * step)[0] for sign in (-1, 1))
    lower, here, upper = (clocks.energy(tasks, pace + sign * step)[1] for sign in (-1, 0, 1))
    between = (after - before) / (2 * step)  # the energy is convex, so its slope between lies between the slopes
    slack = 1e-6 * (abs(here) + clocks.energy(tasks, pace)[0] / pace)
    assert ((lower - slack <= between) & (between <= upper + slack)).all()
    assert ((lower <= here + slack) & (here <= upper + slack)).all()


@given(seed=SEEDS)
def test_no_shift_of_time_between_layers_saves_energy(draw_problem, seed):
    """Between two layers next to each other, either the deadline of the later one's arrival binds, or their clocks are equal."""
    tasks, pace = at_some_pace(draw_problem, seed)
    plain = replace(tasks, lowest=np.zeros_like(tasks.lowest), static_power=np.zeros_like(tasks.static_power))
    clock = PerLayer().choose(plain, pace)
    time_left = np.cumsum((plain.work / clock)[::-1], axis=0)[::-1]
    headroom = plain.headroom(pace)
    assert (time_left <= headroom * (1 + 1e-9) + 1e-9).all()
    assert (np.diff(clock, axis=0) >= -1e-9).all()
    binding = time_left[1:] >= headroom[1:] - 1e-9
    assert (binding | (abs(np.diff(clock, axis=0)) < 1e-9)).all()
