"""``nmoe reproduce slide`` as a run folder: what ``nmoe.recipes.slide`` measures, as results.json, a table and figures."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nmoe.deliver.profiles import image_models, read_profiles
from nmoe.deliver.scenario import ModelProfile
from nmoe.recipes.channel_curves import mean_and_std
from nmoe.recipes.reproduction import hardware, write_reproduction
from nmoe.recipes.run_folder import claim
from nmoe.recipes.slide import (
    CARRIER_HZ,
    NAME,
    QUICK,
    QUICK_SEEDS,
    SCALES,
    SETTINGS,
    Cell,
    Links,
    Operation,
    check,
    links_of,
    needs_of,
    overlaps,
    sweep_all,
)
from nmoe.recipes.watch import Progress
from nmoe.report.figures import png_bytes
from nmoe.report.figures.slide import needs_figure, overlap_figure, sweeps_figure
from nmoe.report.slide import slide_table

DRAWN = {"served": "served", "latency": "latency_s"}  # figures' names and metrics


def reproduce_slide(
    *,
    scale: str,
    seeds: int | None,
    settings: Sequence[str],
    data_dir: Path | None,
    profiles: Path | None,
    precision: str,
    brief: bool,
    out: Path,
    force: bool,
    command: str,
    progress: Progress,
) -> dict[str, Any]:
    """Reproduce SLIDE and write a run folder.

    Args:
        scale: one of ``SCALES``.
        seeds: how often every scenario is drawn, at least 1; None for 20, or few where it is brief.
        settings: out of ``SETTINGS``, at least one.
        data_dir: folder of measurements, for all settings but ``cell``.
        profiles: table of layers; None for the seven models of ``nmoe.deliver.profiles``.
        precision: one of ``nmoe.deliver.profiles.PRECISIONS``.
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
    seeds = (QUICK_SEEDS if brief else 20) if seeds is None else seeds
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    if not settings:
        raise ValueError(f"at least one setting out of {', '.join(SETTINGS)} wanted, got none")
    values = QUICK if brief else SCALES[scale]
    models = image_models(precision=precision) if profiles is None else read_profiles(profiles, precision=precision)
    if len(models) < Operation().tasks.choices:
        raise ValueError(f"users accept {Operation().tasks.choices} models, the table has {len(models)}")
    most_users = max(Operation().users, int(max(values["users"])))
    links = {setting: links_of(setting, data_dir, most_users) for setting in dict.fromkeys(settings)}
    claim(out, force=force, resumable=False)
    began_s = time.perf_counter()
    results: dict[str, Any] = {"name": NAME, "scale": scale, "quick": brief, "seeds": seeds, "command": command}
    results |= {"hardware": hardware(torch.device("cpu")), "settings": settings_of(models, precision, list(links))}
    results |= measured(links, models, values, seeds=seeds, progress=progress)
    results["seconds"] = time.perf_counter() - began_s
    write_reproduction(results, out, table=slide_table(results), figures=figures_of(results))
    return results


def measured(
    links: Mapping[str, Links], models: Mapping[str, ModelProfile], values: Mapping[str, Sequence[float]], *, seeds: int, progress: Progress
) -> dict[str, Any]:
    """Return what ``nmoe.recipes.slide`` finds: rows, curves, spreads, needs, and the two checks by specification and identity."""
    found = summary(sweep_all(links, models, values, seeds=seeds, progress=progress))
    found["check"] = check(links_of("cell", None, Operation().users), image_models(), seeds=seeds)
    found["overlap"] = overlaps(models, Operation().tasks)
    found["needs"] = {setting: needs_of(setting, of_setting, models, seeds=seeds) for setting, of_setting in links.items()}
    return found


def figures_of(results: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the figures as PNGs by name."""
    figures = {"overlap": overlap_figure(results), "needs": needs_figure(results)}
    for setting in results["curves"]:
        figures |= {f"{setting}-{name}": sweeps_figure(results, setting, metric) for name, metric in DRAWN.items()}
    return {name: png_bytes(figure) for name, figure in figures.items()}


def summary(cells: Mapping[Cell, Sequence[float]]) -> dict[str, Any]:
    """Return ``rows`` (method, setting, metric, mean, std, n), and ``curves`` and ``spreads``: setting, sweep, metric, method, value."""
    rows: list[dict[str, Any]] = []
    curves: dict[str, Any] = {}
    spreads: dict[str, Any] = {}
    for cell, numbers in cells.items():
        mean, std = (float(f"{number:.6g}") for number in mean_and_std(numbers))
        setting = f"{cell.setting}, {cell.sweep} {cell.value:g}"
        rows.append({"method": cell.method, "setting": setting, "metric": cell.metric, "mean": mean, "std": std, "n": len(numbers)})
        for tree, number in ((curves, mean), (spreads, std)):
            branch = tree.setdefault(cell.setting, {}).setdefault(cell.sweep, {}).setdefault(cell.metric, {})
            branch.setdefault(cell.method, {})[f"{cell.value:g}"] = number
    return {"rows": rows, "curves": curves, "spreads": spreads}


def settings_of(models: Mapping[str, ModelProfile], precision: str, settings: Sequence[str]) -> dict[str, Any]:
    """Return what a reader of the results has to know."""
    base = Operation()
    return {
        "models": list(models),
        "precision": precision,
        "bandwidth_mhz": base.bandwidth_hz / 1e6,
        "users": base.users,
        "tasks": asdict(base.tasks),
        "carrier_mhz": CARRIER_HZ / 1e6,
        "words": {setting: SETTINGS[setting] for setting in settings},
    }
