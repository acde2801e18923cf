"""Least rates: the recursion against its closed form, and the least share against cvxpy with Clarabel."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe.deliver.allocate import least_shares
from nmoe.deliver.bandwidth import finish_s, least_rates, least_rates_at_full_clock
from nmoe.deliver.candidates import candidates
from nmoe.deliver.clocks import FullClock, PerLayer, Tasks, UniformClock
from nmoe.recipes.bench_deliver_plan import convex_share

SEEDS = st.integers(0, 2**32 - 1)


def recursion(sizes: np.ndarray, times: np.ndarray, pace: float) -> float:
    arrived = done = 0.0
    for size, time in zip(sizes.tolist(), times.tolist(), strict=True):
        arrived += pace * size
        done = max(arrived, done) + time
    return done


@given(seed=SEEDS)
def test_closed_form_of_the_end_is_that_of_the_recursion(draw_problem, seed):
    rng = np.random.default_rng(seed)
    tasks = candidates(draw_problem(rng, layers=20), whole=False).tasks
    times = rng.exponential(1, tasks.arrived.shape)
    pace = rng.uniform(0, 1e-5, times.shape[1])
    ends = finish_s(tasks, pace, np.cumsum(times[::-1], axis=0)[::-1])
    sizes = np.diff(tasks.arrived, axis=0, prepend=0)
    expected = [recursion(*columns) for columns in zip(sizes.T, times.T, pace.tolist(), strict=True)]
    np.testing.assert_allclose(ends, expected, rtol=1e-12)


@given(seed=SEEDS)
def test_least_rate_at_full_clock_meets_the_deadline_and_a_lower_one_does_not(draw_problem, seed):
    tasks = candidates(draw_problem(np.random.default_rng(seed), layers=20), whole=False).tasks
    rates = least_rates_at_full_clock(tasks)
    busy = tasks.work_left + tasks.fixed_left
    assert (np.isinf(rates) == (busy[0] >= tasks.deadline)).all()
    fine = np.flatnonzero(np.isfinite(rates))
    ends = [finish_s(tasks.take(fine), 1 / (rates[fine] * factor), busy[:, fine]) for factor in (1 + 1e-9, 1 - 1e-6)]
    assert (ends[0] <= tasks.deadline[fine]).all()
    assert (ends[1] > tasks.deadline[fine]).all()


def test_least_share_is_that_of_the_convex_solver(draw_problem):
    finite, infinite, energy_binds = 0, 0, 0
    for seed in range(50):
        scenario = draw_problem(np.random.default_rng(seed), users=4, layers=12, plain=seed % 2 == 0)
        rich = replace(scenario, users=tuple(replace(user, energy_j=np.inf) for user in scenario.users))
        for user, row, unbound in zip(scenario.users, least_shares(scenario), least_shares(rich), strict=True):
            share = row[0].item()
            if user.fixed_power or (np.isinf(share) and infinite == 10):
                continue
            expected, _ = convex_share(scenario, user, scenario.models[user.models[0]])
            assert share == pytest.approx(expected, rel=1e-6)
            finite, infinite = finite + np.isfinite(share), infinite + np.isinf(share)
            energy_binds += np.isfinite(share) and share > unbound[0] * (1 + 1e-6)
    assert finite >= 40
    assert infinite == 10
    assert energy_binds >= 12


@pytest.mark.parametrize("clocks", [PerLayer(), UniformClock(), FullClock()])
@pytest.mark.parametrize("margin", [1e-3, 1e-9, 1e-15, 0.0, -1e-9])
def test_budgets_next_to_the_least_possible_one_come_to_an_end(draw_problem, clocks, margin):
    for seed in range(10):
        tasks = candidates(draw_problem(np.random.default_rng(seed), users=20, layers=20), whole=False).tasks
        tasks = tasks.take(np.flatnonzero(np.isfinite(least_rates_at_full_clock(tasks))))
        least = clocks.energy(tasks, np.zeros(len(tasks.deadline)))[0]
        rates = least_rates(replace(tasks, budget=least * (1 + margin)), clocks)
        assert (rates > 0).all()
        if margin < 0:
            assert np.isinf(rates).all()
        if margin == 1e-3:
            assert np.isfinite(rates).all()


@pytest.mark.parametrize("clock", [1e-1, 1e-3, 1e-5, 1e-7, 1e-9])
def test_budgets_for_the_slowest_clocks_are_met_exactly(clock):
    layers = {"arrived": 1e6, "work": 1.0, "fixed": 0.0, "work_left": 1.0, "fixed_left": 0.0}
    others = {
        "total_bytes": 1e6, "deadline": 2 / clock, "budget": 10 * clock**2, "power": 10.0, "static_power": 0.0, "receive_power": 0.0,
        "lowest": 1e-12,
    }  # fmt: skip
    tasks = Tasks(
        **{name: np.array([[value]]) for name, value in layers.items()}, **{name: np.array([value]) for name, value in others.items()}
    )
    np.testing.assert_allclose(least_rates(tasks, PerLayer()), 1e6 * clock, rtol=1e-12)  # half of the time for each


def test_no_problems_have_no_rates(draw_problem):
    tasks: Tasks = candidates(draw_problem(np.random.default_rng(0)), whole=False).tasks.take(np.array([], dtype=int))
    assert least_rates(tasks, PerLayer()).shape == (0,)
