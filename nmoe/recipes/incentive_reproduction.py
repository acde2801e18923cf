"""``nmoe reproduce incentive`` as a run folder: what ``nmoe.recipes.incentive`` measures, as results.json, a table and figures."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nmoe.market.incentive import Asosa, GameRanges, exact_workers
from nmoe.recipes.channel_curves import mean_and_std
from nmoe.recipes.incentive import GAMES, NAME, PLAIN, QUICK, SCALES, STOCKED, Contender, Measurement, convergence, drawn, sweep_all
from nmoe.recipes.reproduction import hardware, write_reproduction
from nmoe.recipes.run_folder import claim
from nmoe.recipes.watch import Progress
from nmoe.report.figures import png_bytes
from nmoe.report.figures.incentive import convergence_figure, deviation_figure, sweeps_figure, turns_figure
from nmoe.report.incentive import incentive_table

SEEDS, QUICK_SEEDS = 20, 3
DRAWN = ("publisher", "owner", "worker")  # metrics that have a figure
SHOWN_OWNERS = 5  # in the game whose convergence and deviations are drawn


def reproduce_incentive(
    *,
    scale: str,
    seeds: int | None,
    learned: int,
    brief: bool,
    out: Path,
    force: bool,
    command: str,
    progress: Progress,
    contenders: Mapping[str, Contender] | None = None,
) -> dict[str, Any]:
    """Reproduce ASOSA and write a run folder.

    Args:
        scale: one of ``SCALES``.
        seeds: games at every point, at least 1; None for 20, or few where it is brief.
        learned: of these games that are also settled by ``contenders``, where nothing is varied; at most ``seeds``.
        brief: end within a minute.
        out: run folder.
        force: replace an earlier run in it.
        command: what the user typed.
        progress: told of every game.
        contenders: methods that learn, by name; None for none.

    Returns:
        What results.json holds.

    Raises:
        ValueError: when an argument is out of range, or the folder is not free.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    seeds = (QUICK_SEEDS if brief else SEEDS) if seeds is None else seeds
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    if not 0 <= learned <= seeds:
        raise ValueError(f"learned must be between 0 and {seeds}, the number of games, got {learned}")
    claim(out, force=force, resumable=False)
    began_s = time.perf_counter()
    results: dict[str, Any] = {"name": NAME, "scale": scale, "quick": brief, "seeds": seeds, "learned": learned, "command": command}
    results |= {"hardware": hardware(torch.device("cpu")), "settings": asdict(GameRanges()) | {"cap": None}}
    values = QUICK if brief else SCALES[scale]
    results["convergence"] = convergence(GAMES["quick" if brief else scale], progress)
    results |= summary(sweep_all(values, seeds=seeds, contenders=contenders or {}, contended=learned, progress=progress))
    results["seconds"] = time.perf_counter() - began_s
    write_reproduction(results, out, table=incentive_table(results), figures=figures_of(results))
    return results


def summary(found: Mapping[Measurement, Sequence[float]]) -> dict[str, Any]:
    """Return rows, ``curves`` and ``spreads`` (sweep, metric, method, value), and ``base`` and ``stocked`` (method, metric: mean, std)."""
    rows: list[dict[str, Any]] = []
    curves: dict[str, Any] = {}
    spreads: dict[str, Any] = {}
    bases: dict[str, Any] = {PLAIN: {}, STOCKED: {}}
    for cell, numbers in found.items():
        mean, std = (float(f"{number:.6g}") for number in mean_and_std(numbers))
        setting = cell.setting if cell.sweep == "base" else f"{cell.setting}, {cell.sweep} {cell.value:g}"
        rows.append({"method": cell.method, "setting": setting, "metric": cell.metric, "mean": mean, "std": std, "n": len(numbers)})
        if cell.sweep == "base":
            bases[cell.setting].setdefault(cell.method, {})[cell.metric] = [mean, std]
            continue
        for tree, number in ((curves, mean), (spreads, std)):
            tree.setdefault(cell.sweep, {}).setdefault(cell.metric, {}).setdefault(cell.method, {})[f"{cell.value:g}"] = number
    return {"rows": rows, "curves": curves, "spreads": spreads, "base": bases[PLAIN], "stocked": bases[STOCKED]}


def figures_of(results: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the figures as PNGs by name; the loop and the deviations are those of one small game."""
    game = drawn(GameRanges(owners=SHOWN_OWNERS), 0)
    loop = Asosa().run(game, exact_workers(game))
    figures = {
        "convergence": convergence_figure(loop, game.owners.ids, title=f"How ASOSA's loop settles: {SHOWN_OWNERS} owners, lambda 100"),
        "deviation": deviation_figure(loop.settlement),
        "turns": turns_figure(results["convergence"]),
    }
    figures |= {f"{metric}-utility": sweeps_figure(results, metric) for metric in DRAWN}
    return {name: png_bytes(figure) for name, figure in figures.items()}
