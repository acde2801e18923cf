"""The ASOSA reproduction: how the loop settles, that no owner deviates, and utilities beside every other rule against what is varied.

Source: J. Cao, Y. Gao, J. Huang, arXiv 2509.10512. The paper's utilities, settings and numbers are not known to this project: games are
those of ``nmoe.market.incentive.draws``, rules those of ``nmoe.market.incentive.strategies``, and every number is this project's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from nmoe.core.seeds import numpy_generator
from nmoe.market.incentive import (
    STRATEGIES,
    Asosa,
    Damping,
    GameRanges,
    Recruitment,
    Settlement,
    deviation_gains,
    draw_recruitment,
    exact_workers,
    joint_equilibrium,
)
from nmoe.market.incentive.deviation import POINTS
from nmoe.recipes.watch import Progress

NAME = "incentive"
STOCK = (0.0, 5.0)  # samples, in the setting with stocks
PLAIN, STOCKED = "no stock", "stock 0 to 5"
TURNS = 1000
RESIDUAL = 1e-8  # at which turns are counted, as in the derivation
EXACT = 1e-10  # at which the loop's end is held against the joint equilibrium, as it ends by itself
DAMPINGS: Mapping[str, Damping] = {
    "adaptive": Damping(),
    "constant 0.5": Damping(adaptive=False),
    "constant 0.3": Damping(first=0.3, adaptive=False),
    "constant 0.1": Damping(first=0.1, adaptive=False),
    "none": Damping(first=1.0, adaptive=False),
}

SCALES: Mapping[str, Mapping[str, Sequence[float]]] = {  # values of everything that is varied
    "cpu": {
        "factor": (20, 50, 100, 150, 200),
        "owners": (3, 5, 8, 12, 16, 20),
        "workers": (5, 10, 15, 20),
        "cost": (0.5, 0.75, 1, 1.5, 2),
    },
    "paper": {
        "factor": (20, 40, 60, 80, 100, 120, 140, 160, 180, 200),
        "owners": (3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20),
        "workers": (5, 8, 10, 12, 14, 16, 18, 20),
        "cost": (0.5, 0.6, 0.75, 0.9, 1, 1.25, 1.5, 1.75, 2),
    },
}
QUICK: Mapping[str, Sequence[float]] = {"factor": (50, 100), "owners": (3, 8), "workers": (5, 10), "cost": (1, 2)}
GAMES = {"cpu": 200, "paper": 200, "quick": 10}  # whose convergence is measured
OWNERS = (2, 11)  # in them

Contender = Callable[[Recruitment, int], Settlement]  # a method that takes long, with a seed


class Measurement(NamedTuple):
    """One number of a reproduction: whose, in which setting, under which value of what, and which."""

    method: str
    setting: str
    sweep: str
    value: float
    metric: str


def varied(sweep: str, value: float) -> GameRanges:
    """Return what games are drawn from where one thing has another value."""
    base = GameRanges()
    match sweep:
        case "factor":
            return replace(base, factor=float(value))
        case "owners":
            return replace(base, owners=int(value))
        case "workers":
            return replace(base, workers_per_owner=int(value))
        case _:
            assert sweep == "cost"
            return replace(base, unit_cost=(0.5 * value, 1.5 * value))


def measures(settlement: Settlement) -> dict[str, float]:
    """Return the numbers that a settlement is compared by."""
    owners, workers = settlement.owner_utilities, settlement.worker_utilities
    return {
        "publisher": settlement.publisher_utility,
        "owner": float(owners.mean()),
        "worker": float(workers.mean()) if len(workers) else 0.0,
        "reward": settlement.reward,
        "total": settlement.total,
        "welfare": settlement.publisher_utility + float(owners.sum()) + float(workers.sum()),
    }


def sweep_all(
    values: Mapping[str, Sequence[float]], *, seeds: int, contenders: Mapping[str, Contender], contended: int, progress: Progress
) -> dict[Measurement, list[float]]:
    """Settle everything: every sweep, every value, every game, every rule; and the setting with stocks where nothing is varied.

    Args:
        values: of everything that is varied.
        seeds: games at every point.
        contenders: methods that take long, where nothing is varied only.
        contended: games that they settle.
        progress: told of every game.
    """
    found: dict[Measurement, list[float]] = {}
    for seed in range(seeds):
        for sweep, points in values.items():
            for value in points:
                _settle(found, varied(sweep, value), Measurement("", PLAIN, sweep, float(value), ""), seed)
        _settle(found, GameRanges(), Measurement("", PLAIN, "base", 0.0, ""), seed)
        _settle(found, replace(GameRanges(), stock=STOCK), Measurement("", STOCKED, "base", 0.0, ""), seed)
        progress.stage("games", seed + 1, seeds)
    for seed in range(contended if contenders else 0):
        game = drawn(GameRanges(), seed)
        for method, settle in contenders.items():
            for metric, number in measures(settle(game, seed)).items():
                found.setdefault(Measurement(method, PLAIN, "base", 0.0, metric), []).append(number)
        progress.stage("learned workers", seed + 1, contended)
    return found


def drawn(ranges: GameRanges, seed: int) -> Recruitment:
    """Draw the game of a seed."""
    return draw_recruitment(ranges, numpy_generator(seed, NAME, "game"))


def _settle(found: dict[Measurement, list[float]], ranges: GameRanges, cell: Measurement, seed: int) -> None:
    game = drawn(ranges, seed)
    for strategy in STRATEGIES:
        settlement = strategy.settle(game, numpy_generator(seed, NAME, strategy.name))
        for metric, number in measures(settlement).items():
            found.setdefault(cell._replace(method=strategy.name, metric=metric), []).append(number)


def convergence(games: int, progress: Progress) -> dict[str, Any]:
    """Measure how often, how soon and where the loop settles, by rule of damping; and what the best deviation from its end brings.

    Args:
        games: drawn, of 2 to 11 owners and lambda from 20 to 200.
        progress: told of every game.
    """
    turns: dict[str, list[int]] = {name: [] for name in DAMPINGS}
    distances: dict[str, list[float]] = {name: [] for name in DAMPINGS}
    best, owners = -np.inf, 0
    for number in range(games):
        draws = numpy_generator(number, NAME, "convergence")
        ranges = GameRanges(
            owners=int(draws.integers(OWNERS[0], OWNERS[1] + 1)),
            workers_per_owner=int(draws.integers(5, 21)),
            factor=float(draws.uniform(20, 200)),
        )
        game = draw_recruitment(ranges, draws)
        layer, wanted = exact_workers(game), joint_equilibrium(game)
        best = max(best, float(deviation_gains(wanted).max()) / wanted.reward)
        owners += len(game.owners)
        for name, damping in DAMPINGS.items():
            loop = Asosa(damping=damping, max_steps=TURNS, tolerance=RESIDUAL, fall_back=False).run(game, layer)
            if loop.converged:
                turns[name].append(len(loop.steps))
                exact = Asosa(damping=damping, max_steps=2 * TURNS, tolerance=EXACT, fall_back=False).run(game, layer)
                distances[name].append(distance(exact.settlement, wanted))
        progress.stage("convergence", number + 1, games)
    rows = [
        {
            "damping": name,
            "settled": len(turns[name]),
            "median": float(np.median(turns[name])) if turns[name] else None,
            "p95": float(np.percentile(turns[name], 95)) if turns[name] else None,
            "distance": max(distances[name], default=None),
            "turns": turns[name],
        }
        for name in DAMPINGS
    ]
    deviation = {"games": games, "owners": owners, "points": POINTS, "best": best}
    return {
        "games": games,
        "owners": list(OWNERS),
        "max_turns": TURNS,
        "residual": RESIDUAL,
        "exact_residual": EXACT,
        "rows": rows,
        "deviation": deviation,
    }


def distance(found: Settlement, wanted: Settlement) -> float:
    """Return the largest difference of two settlements: of rewards, and of samples over the largest number of them, relative."""
    samples = float(np.abs(found.samples - wanted.samples).max() / wanted.samples.max())
    return max(samples, abs(found.reward / wanted.reward - 1))
