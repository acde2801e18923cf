"""Benchmark of the delivery planner: how long a large plan takes, and least shares of the band beside a convex solver's.

One thread. The planner solves all pairs of users and models as one batch; cvxpy with Clarabel solves some of the same pairs one by one, and
the two are compared by their time per pair. About half of the budgets are too small for the full clock. The solver's own time, without
cvxpy's, is a row too.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.random import Generator

from nmoe.core.errors import EngineError
from nmoe.core.seeds import numpy_generator
from nmoe.deliver.allocate import least_shares, plan
from nmoe.deliver.scenario import ModelProfile, Receiver, Scenario

MODELS, LAYERS = 7, 60

Row = dict[str, Any]


def bench_deliver_plan(*, users: int, pairs: int, turns: int, as_json: bool, say: Callable[[str], None]) -> None:
    """Measure, and print the table, or JSON with ``name, machine, rows``.

    Args:
        users: in the large plan, at least 10.
        pairs: of a user and a model, given to the convex solver, at least 1.
        turns: how often the planner plans, at least 1; the median counts.
        as_json: JSON instead of a table.
        say: prints a line.

    Raises:
        EngineError: when cvxpy or Clarabel is not installed.
        ValueError: when a number is too small.
    """
    if users < 10 or pairs < 1 or turns < 1:
        raise ValueError(f"users must be at least 10, pairs and turns at least 1, got {users}, {pairs} and {turns}")
    rows = measure(users=users, pairs=pairs, turns=turns)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    if as_json:
        say(json.dumps({"name": "deliver-plan", "machine": machine, "rows": rows}))
        return
    for row in rows:
        say(f"{row['system']:<24}{row['case']:<40}{row['metric']:<44}{row['value']:>12.4g} {row['unit']}")


def measure(*, users: int, pairs: int, turns: int) -> list[Row]:
    """Return the benchmark's rows; see ``bench_deliver_plan``."""
    generator = numpy_generator(0, "bench", "deliver-plan")
    scenario = draw_large(users, generator)
    planning_s = _median_s(lambda: plan(scenario), turns)
    pair_s = _median_s(lambda: least_shares(scenario), turns) / (users * MODELS)
    shares = least_shares(scenario)
    chosen = generator.permutation(np.argwhere(shares <= 1))[:pairs]
    took_s, solver_s, errors = [], [], []
    for user, slot in [*chosen[:1], *chosen]:  # the first one twice: imports and caches are warm
        receiver = scenario.users[user]
        began_s = time.perf_counter()
        share, inside_s = convex_share(scenario, receiver, scenario.models[receiver.models[slot]])
        took_s.append(time.perf_counter() - began_s)
        solver_s.append(inside_s)
        errors.append(abs(share / float(shares[user, slot]) - 1))
    case, some = f"{users:,} users x {MODELS} models x {LAYERS} layers", f"{len(chosen):,} of these pairs, one by one"
    per_pair, faster = "time per pair of user and model", "time per pair, over nmoe's"
    convex, alone = statistics.fmean(took_s[1:]), statistics.fmean(solver_s[1:])
    return [
        _row("nmoe", case, "median time to plan", planning_s, "s"),
        _row("nmoe", case, per_pair, pair_s, "s"),
        _row("cvxpy + Clarabel", some, per_pair, convex, "s"),
        _row("cvxpy + Clarabel", some, faster, convex / pair_s, "1"),
        _row("Clarabel's own time", some, per_pair, alone, "s"),
        _row("Clarabel's own time", some, faster, alone / pair_s, "1"),
        _row("cvxpy + Clarabel", some, "largest relative difference of a share", max(errors), "1"),
    ]


def draw_large(users: int, generator: Generator) -> Scenario:
    """Return random users who accept all of some models with many layers."""
    models = {}
    for place in range(MODELS):
        sizes, work = (generator.exponential(1, LAYERS) for _ in range(2))
        sizes *= generator.uniform(20e6, 600e6) / sizes.sum()
        work *= generator.uniform(4e9, 120e9) / work.sum()
        name = f"model {place}"
        models[name] = ModelProfile(name=name, layer_bytes=tuple(sizes.tolist()), layer_flops=tuple(work.tolist()))
    return Scenario(
        bandwidth_hz=25e6 * users,
        models=models,
        users=tuple(
            Receiver(
                id=f"user {place}",
                spectral_efficiency=generator.uniform(1, 8),
                deadline_s=generator.uniform(2, 8),
                energy_j=generator.uniform(0.5, 8),
                batch=int(generator.integers(4, 17)),
                device_flops=generator.uniform(0.3e12, 3e12),
                power_w=generator.uniform(10, 30),
                layer_overhead_s=1e-3,
                models=tuple(models),
            )
            for place in range(users)
        ),
    )


def convex_share(scenario: Scenario, user: Receiver, model: ModelProfile) -> tuple[float, float]:
    """Solve for one user's least share with one model as a convex programme.

    Its variables are the time of the download and the slowdown 1/z of each layer that works.

    Returns:
        The share (infinite if there is none), and the solver's own time in s.

    Raises:
        EngineError: when cvxpy or Clarabel is not installed.
        ValueError: when the user has a fixed power.
    """
    try:
        import_module("clarabel")
        cvxpy: Any = import_module("cvxpy")  # its annotations have holes
    except ImportError as error:
        raise EngineError(f"the comparison needs cvxpy and clarabel: {error}") from error
    if user.fixed_power:
        raise ValueError(f"user {user.id!r}: a link at one power per Hz wanted, got fixed_power")
    work = user.batch * np.array(model.layer_flops, dtype=float) / user.device_flops / user.deadline_s  # times in deadlines
    layers, total, busy = len(work), sum(model.layer_bytes), np.flatnonzero(work)
    arrived = np.cumsum(model.layer_bytes) / total
    fixed_left = user.layer_overhead_s / user.deadline_s * np.arange(layers, 0, -1)
    download, slowdown = cvxpy.Variable(nonneg=True), cvxpy.Variable(len(busy))
    work_left = np.triu(np.ones((layers, layers)) * work)[:, busy]
    constraints = [work_left @ slowdown + download * arrived + fixed_left <= 1, slowdown >= 1]
    if np.isfinite(user.energy_j):
        spent_w = user.power_w * work[busy] @ cvxpy.power(slowdown, -2) + user.static_power_w * (fixed_left[0] + work[busy] @ slowdown)
        constraints.append((spent_w + user.receive_power_w * download) * (user.deadline_s / user.energy_j) <= 1)
    if user.min_clock > 0:
        constraints.append(slowdown <= 1 / user.min_clock)
    problem = cvxpy.Problem(cvxpy.Maximize(download), constraints)
    problem.solve(solver=cvxpy.CLARABEL)
    if problem.status in ("infeasible", "infeasible_inaccurate") or not download.value > 0:
        return np.inf, float(problem.solver_stats.solve_time)
    share = 8 * total / (float(download.value) * user.deadline_s * scenario.bandwidth_hz * user.spectral_efficiency)
    return share, float(problem.solver_stats.solve_time)


def _median_s(call: Callable[[], object], turns: int) -> float:
    call()  # memory and code are warm
    times = []
    for _ in range(turns):
        began_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - began_s)
    return statistics.median(times)


def _row(system: str, case: str, metric: str, value: float, unit: str) -> Row:
    return {"system": system, "case": case, "metric": metric, "value": value, "unit": unit}
