"""Benchmark of the incentive game: how long equilibria of many owners take, and how many turns ASOSA does.

One thread. The closed form has constant costs; the joint equilibrium has workers' supply curves as well.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from nmoe.core.seeds import numpy_generator
from nmoe.market.incentive import (
    Asosa,
    GameRanges,
    LogValue,
    Publisher,
    best_reward,
    draw_recruitment,
    exact_workers,
    joint_equilibrium,
    nash_shares,
)

WORKERS = 10  # per owner
LOOPED = 1000  # owners, at most, in the game that ASOSA settles: of 100,000 it does not, and falls back on the joint equilibrium

Row = dict[str, Any]


def bench_incentive(*, owners: int, games: int, turns: int, as_json: bool, say: Callable[[str], None]) -> None:
    """Measure, and print the table, or JSON with ``name, machine, rows``.

    Args:
        owners: in the large game, at least 2.
        games: small ones, in which ASOSA's turns are counted, at least 1.
        turns: how often the large game is settled, at least 1; the median counts.
        as_json: JSON instead of a table.
        say: prints a line.

    Raises:
        ValueError: when a number is too small.
    """
    if owners < 2 or games < 1 or turns < 1:
        raise ValueError(f"owners must be at least 2, games and turns at least 1, got {owners}, {games} and {turns}")
    rows = measure(owners=owners, games=games, turns=turns)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    if as_json:
        say(json.dumps({"name": "incentive", "machine": machine, "rows": rows}))
        return
    for row in rows:
        say(f"{row['system']:<18}{row['case']:<52}{row['metric']:<44}{row['value']:>12.4g} {row['unit']}")


def measure(*, owners: int, games: int, turns: int) -> list[Row]:
    """Return the benchmark's rows; see ``bench_incentive``."""
    draws = numpy_generator(0, "bench", "incentive")
    costs = (draws.uniform(0.5, 1.5, owners) + draws.uniform(0.1, 0.6, owners)) / draws.uniform(0.6, 1.0, owners)
    publisher = Publisher(factor=1e6, data_value=LogValue())

    def stackelberg() -> None:
        nash = nash_shares(costs)
        reward = best_reward(publisher, nash.efficiency)
        nash.amounts(reward)
        nash.utilities(reward)

    large = draw_recruitment(GameRanges(owners=owners, workers_per_owner=WORKERS, factor=1e6), draws)
    case = f"{owners:,} owners"
    rows = [
        _row("closed form", case, "median time of Nash and Stackelberg", _median_s(stackelberg, turns), "s"),
        _row("joint equilibrium", f"{case} x {WORKERS} workers", "median time", _median_s(lambda: joint_equilibrium(large), turns), "s"),
    ]
    some = min(owners, LOOPED)
    game = draw_recruitment(GameRanges(owners=some, workers_per_owner=WORKERS), draws)
    began_s = time.perf_counter()
    loop = Asosa(fall_back=False).run(game, exact_workers(game))
    elapsed_s = time.perf_counter() - began_s
    case = f"{some:,} owners x {WORKERS} workers"
    rows.append(_row("ASOSA", case, "time of a turn", elapsed_s / len(loop.steps), "s"))
    rows.append(_row("ASOSA", case, "turns", len(loop.steps), "1"))
    rows.append(_row("ASOSA", case, "settled", float(loop.converged), "1"))
    counts, settled, seconds = [], 0, []
    for number in range(games):
        draws = numpy_generator(number, "bench", "incentive", "game")
        ranges = GameRanges(
            owners=int(draws.integers(2, 12)), workers_per_owner=int(draws.integers(5, 21)), factor=float(draws.uniform(20, 200))
        )
        game = draw_recruitment(ranges, draws)
        began_s = time.perf_counter()
        loop = Asosa(fall_back=False).run(game, exact_workers(game))
        seconds.append(time.perf_counter() - began_s)
        settled += loop.converged
        counts.append(len(loop.steps))
    case = f"{games} games of 2 to 11 owners"
    rows += [
        _row("ASOSA", case, "games settled", settled, "1"),
        _row("ASOSA", case, "median turns", float(np.median(counts)), "1"),
        _row("ASOSA", case, "95th percentile of turns", float(np.percentile(counts, 95)), "1"),
        _row("ASOSA", case, "median time", statistics.median(seconds), "s"),
    ]
    return rows


def _median_s(work: Callable[[], object], turns: int) -> float:
    """Return the median time of some runs, after one that is not counted."""
    work()
    times = []
    for _ in range(turns):
        began_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - began_s)
    return statistics.median(times)


def _row(system: str, case: str, metric: str, value: float, unit: str) -> Row:
    return {"system": system, "case": case, "metric": metric, "value": value, "unit": unit}
