"""``nmoe reproduce aeria`` as a run folder: what ``nmoe.recipes.aeria`` measures, as results.json, a table and figures."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from nmoe.core.seeds import numpy_generator
from nmoe.market.auction import FAMILIES, MECHANISMS, AeriaEF, Bids, Supply, check_mechanism, mechanism_named
from nmoe.market.auction.checker import manipulable_share
from nmoe.market.auction.guarantees import MIXTURE_RATIO, envy_free_revenue, manipulability_bound, truthful_revenue
from nmoe.market.auction.workloads import Workload, builtin_workloads
from nmoe.recipes.aeria import (
    ABLATIONS,
    FIXED,
    NAME,
    POINTS,
    QUICK,
    SCALES,
    SETTINGS,
    UNIT,
    WITH_BASE,
    MarketCell,
    MarketOperation,
    Place,
    ablate,
    benchmarks_of,
    stage_one,
    sweep_point,
)
from nmoe.recipes.aeria_users import AFFINE, DEVICE_FLOPS, LATENCY_S, MEASURED, TASKS, UPLINK_BPS, Population, draw_session, population_of
from nmoe.recipes.channel_curves import mean_and_std
from nmoe.recipes.reproduction import hardware, write_reproduction
from nmoe.recipes.run_folder import claim
from nmoe.recipes.watch import Progress
from nmoe.report.aeria import aeria_table
from nmoe.report.figures.aeria import ablations_figure, families_figure, manipulation_figure, sweeps_figure
from nmoe.report.figures.style import png_bytes

THREE_WINNERS = 1 / 3 + 1e-9  # largest share of one of them, when all want one unit
ABLATED_TFLOPS = (2.0, 10.0)
STAGE_ONE_USERS = 4000
ANY_PRICE = 1.0  # of the fixed price whose truthfulness is checked


class Effort(NamedTuple):
    """How much is tried.

    Attributes:
        seeds: how often every market is drawn.
        points: midpoints of the draw.
        tries: deviations of each mechanism.
        manipulated: markets, their users, and draws, in which every user of AERIA-EF tries every deviation.
        bases: with which it does.
    """

    seeds: int
    points: int
    tries: int
    manipulated: tuple[int, int, int]
    bases: tuple[float, ...]


EFFORTS = {
    "cpu": Effort(10, POINTS, 10_000, (3, 12, 100), (1.43, 2.0, 4.0, 10.0)),
    "paper": Effort(20, 2 * POINTS, 100_000, (20, 30, 400), (1.2, 1.43, 2.0, 4.0, 10.0)),
}
BRIEF = Effort(2, 40, 200, (1, 6, 10), (2.0, 4.0))


def reproduce_aeria(
    *,
    scale: str,
    seeds: int | None,
    data_dir: Path | None,
    brief: bool,
    out: Path,
    force: bool,
    command: str,
    progress: Progress,
) -> dict[str, Any]:
    """Reproduce AERIA and write a run folder.

    Args:
        scale: one of ``SCALES``.
        seeds: how often every market is drawn, at least 1; None for the scale's own.
        data_dir: folder of measurements of phones and links; None for drawn ones only.
        brief: end within a minute.
        out: run folder.
        force: replace an earlier run in it.
        command: what the user typed.
        progress: told of every seed.

    Returns:
        What results.json holds.

    Raises:
        ValueError: when an argument is out of range, or the folder is not free.
        BadFile: when a table cannot be read.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    effort = BRIEF if brief else EFFORTS[scale]
    effort = effort if seeds is None else effort._replace(seeds=seeds)
    if effort.seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {effort.seeds}")
    settings = ["needs", *(() if data_dir is None else MEASURED)]
    places = {setting: population_of(setting, data_dir) for setting in settings}
    claim(out, force=force, resumable=False)
    began_s = time.perf_counter()
    results: dict[str, Any] = {"name": NAME, "scale": scale, "quick": brief, "seeds": effort.seeds, "command": command}
    results |= {"hardware": hardware(torch.device("cpu")), "settings": settings_of(effort, list(places))}
    results |= measured(places, QUICK if brief else SCALES[scale], effort, progress=progress)
    results["seconds"] = time.perf_counter() - began_s
    write_reproduction(results, out, table=aeria_table(results), figures=figures_of(results))
    return results


def measured(
    populations: Mapping[str, Population], values: Mapping[str, Sequence[float]], effort: Effort, *, progress: Progress
) -> dict[str, Any]:
    """Return what is found: rows, curves and spreads, guarantees, ablations, the first stage, and what the search for flaws found."""
    workloads = builtin_workloads()
    cells: dict[MarketCell, list[float]] = {}
    for seed in range(effort.seeds):
        _sweep(cells, Place(UNIT, None), workloads, {"family": list(FAMILIES), "base": values["base"]}, effort, seed=seed)
        for setting, population in populations.items():
            _sweep(cells, Place(setting, population), workloads, sweeps_of(setting, values, workloads), effort, seed=seed)
            _ablations(cells, Place(setting, population), workloads, effort, seed=seed)
        progress.stage("markets", seed + 1, effort.seeds)
    found = summary(cells)
    found["guarantees"] = guarantees_of(cells)
    found["stage_one"] = {
        setting: stage_one(draw_session(population, workloads, _most(setting), family=AFFINE, wanted="", seed=0))
        for setting, population in populations.items()
    }
    found["flaws"] = flaws(effort, progress)
    found["manipulation"] = manipulation(effort, progress)
    return found


def sweeps_of(
    setting: str, values: Mapping[str, Sequence[float]], workloads: Mapping[str, Workload]
) -> Mapping[str, Sequence[float | str]]:
    """Return what is varied in a setting: everything where needs are drawn, the capacity where they are measured."""
    if setting in MEASURED:
        return {"capacity_tflops": values["capacity_tflops"]}
    return {"family": [AFFINE, *FAMILIES], "workload": ["mixed", *workloads], **values}


def _sweep(
    cells: dict[MarketCell, list[float]],
    place: Place,
    workloads: Mapping[str, Workload],
    sweeps: Mapping[str, Sequence[float | str]],
    effort: Effort,
    *,
    seed: int,
) -> None:
    for sweep, points in sweeps.items():
        names = WITH_BASE if sweep == "base" else tuple(MECHANISMS)
        for value in points:
            sweep_point(cells, place, workloads, sweep, value, seed=seed, names=names, points=effort.points)


def _ablations(cells: dict[MarketCell, list[float]], place: Place, workloads: Mapping[str, Workload], effort: Effort, *, seed: int) -> None:
    assert place.population is not None
    at = MarketOperation()
    session = draw_session(place.population, workloads, at.users, family=AFFINE, wanted="", seed=seed)
    for tflops in ABLATED_TFLOPS:
        limited = MarketOperation(capacity_flops=1e12 * tflops)
        for name, numbers in ablate(session, workloads, limited, points=effort.points):
            for metric, number in numbers.items():
                cells.setdefault(MarketCell(name, place.setting, "ablation", f"{tflops:g}", metric), []).append(number)


def _most(setting: str) -> int:
    """Return how many users the first stage is shown for: those of a city are not so many."""
    return 800 if setting == "melbourne" else STAGE_ONE_USERS


def summary(cells: Mapping[MarketCell, Sequence[float]]) -> dict[str, Any]:
    """Return ``rows`` (method, setting, metric, mean, std, n), and ``curves`` and ``spreads``: setting, sweep, metric, method, value."""
    rows: list[dict[str, Any]] = []
    curves: dict[str, Any] = {}
    spreads: dict[str, Any] = {}
    for cell, numbers in cells.items():
        mean, std = (float(f"{number:.6g}") for number in mean_and_std(list(numbers)))
        where = f"{cell.setting}, {cell.sweep} {cell.value}"
        rows.append({"method": cell.method, "setting": where, "metric": cell.metric, "mean": mean, "std": std, "n": len(numbers)})
        for tree, number in ((curves, mean), (spreads, std)):
            tree.setdefault(cell.setting, {}).setdefault(cell.sweep, {}).setdefault(cell.metric, {}).setdefault(cell.method, {})[
                cell.value
            ] = number
    return {"rows": rows, "curves": curves, "spreads": spreads}


def guarantees_of(cells: Mapping[MarketCell, Sequence[float]]) -> list[dict[str, Any]]:
    """Return, by family of unit demands, the worst market's profit beside what is proved.

    ``mixture`` and ``ef`` over F2 and F; ``ic`` over its bound, which differs from market to market; None where no market has a bound.
    ``several`` is the mean share of draws with which AERIA-IC asks more than one price, in markets that have a bound.
    """
    base = MarketOperation().base
    rows = []
    for family in FAMILIES:
        numbers = {
            name: cells[MarketCell(name, UNIT, "family", family, metric)]
            for name, metric in (("aeria-mixture", "over_f2"), ("aeria-ef", "over_f"), ("aeria-ic", "over_f2"), ("market", "share"))
        }
        several = cells[MarketCell("aeria-ic", UNIT, "family", family, "several")]
        shares = [share for share in numbers["market"] if share <= THREE_WINNERS]
        bounds = [truthful_revenue(base, share) if share <= THREE_WINNERS else 0.0 for share in numbers["market"]]
        over = [number / bound for number, bound in zip(numbers["aeria-ic"], bounds, strict=True) if bound > 0]
        asked = [part for part, share in zip(several, numbers["market"], strict=True) if share <= THREE_WINNERS]
        rows.append(
            {
                "family": family,
                "mixture": min(numbers["aeria-mixture"]),
                "mixture_bound": 1 / MIXTURE_RATIO,
                "ef": min(numbers["aeria-ef"]),
                "ef_bound": envy_free_revenue(base),
                "ic_over_bound": min(over) if over else None,
                "ic": min(numbers["aeria-ic"]),
                "several": float(np.mean(asked)) if asked else None,
                "several_bound": float(np.mean([manipulability_bound(base, share) for share in shares])) if shares else None,
            }
        )
    return rows


def flaws(effort: Effort, progress: Progress) -> list[dict[str, Any]]:
    """Return what a search for profitable deviations, envy and worse finds in every mechanism."""
    rows = []
    for number, name in enumerate(MECHANISMS):
        rule = mechanism_named(name, price=ANY_PRICE if name == FIXED else None)
        report = check_mechanism(rule, tries=effort.tries)
        rows.append(
            {
                "method": name,
                "truthful": rule.truthful,
                "envy_free": rule.envy_free,
                "markets": report.markets,
                "deviations": report.deviations,
                "passed": report.passed,
                "found": {flaw.name.lower(): count for flaw, count in report.found.items()},
            }
        )
        progress.stage("search for flaws", number + 1, len(MECHANISMS))
    return rows


def manipulation(effort: Effort, progress: Progress) -> list[dict[str, Any]]:
    """Return the share of draws with which somebody in a market of uniform values could manipulate AERIA-EF, beside the bound."""
    markets, users, points = effort.manipulated
    rows = []
    for number, base in enumerate(effort.bases):
        shares, bounds = [], []
        for seed in range(markets):
            value = FAMILIES["uniform"](users, numpy_generator(seed, NAME, "manipulation"))
            bids = Bids(ids=tuple(f"user {row + 1}" for row in range(users)), amount=value, demand=np.ones(users))
            shares.append(manipulable_share(AeriaEF(base=base), bids, Supply(), points=points, seed=seed))
            bounds.append(manipulability_bound(base, benchmarks_of(bids, Supply())["share"]))
        mean, std = mean_and_std(shares)
        rows.append(
            {"base": base, "users": users, "markets": markets, "points": points, "mean": mean, "std": std, "bound": float(np.mean(bounds))}
        )
        progress.stage("manipulation", number + 1, len(effort.bases))
    return rows


def figures_of(results: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the figures as PNGs by name."""
    figures = {
        "families": families_figure(results),
        "sweeps": sweeps_figure(results),
        "ablations": ablations_figure(results),
        "manipulation": manipulation_figure(results),
    }
    return {name: png_bytes(figure) for name, figure in figures.items()}


def settings_of(effort: Effort, settings: Sequence[str]) -> dict[str, Any]:
    """Return what a reader of the results has to know."""
    base = asdict(MarketOperation())
    return {
        "operation": base,
        "points": effort.points,
        "needs": {"latency_s": LATENCY_S, "tasks": TASKS, "device_flops": DEVICE_FLOPS, "uplink_bps": UPLINK_BPS},
        "words": {setting: SETTINGS[setting] for setting in (UNIT, *settings)},
        "ablations": list(ABLATIONS),
    }
