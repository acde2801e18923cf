"""Reproductions: one paper's experiment as a run folder with results.json, its table and its figures.

``results.json`` has ``name, scale, seeds, command, hardware, seconds, rows`` (each row: method, setting, metric, mean, std, n) beside what
the experiment adds. ``results.md`` is the table, ``figures/*.png`` are the figures.
"""

import os
import platform
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from nmoe.core.files import write_bytes, write_json
from nmoe.data import ImageDataset, load
from nmoe.moe.lenet import SMALLEST
from nmoe.recipes.channel_gating import CPU, NAME, PAPER, PAPER_VIT, Scale, channel_gating, networks_of, quick, sized
from nmoe.recipes.run_folder import claim
from nmoe.recipes.watch import Progress
from nmoe.report.channel_gating import channel_gating_table
from nmoe.report.figures import png_bytes
from nmoe.report.figures.channel_gating import curves_figure, selection_figure

SCALES = {"cpu": CPU, "paper": PAPER, "paper-vit": PAPER_VIT}


def hardware(device: torch.device) -> dict[str, Any]:
    """Return what a reproduction ran on."""
    found: dict[str, Any] = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    found |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": str(device)}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def reproduce_channel_gating(
    *,
    scale: str,
    data: str,
    data_dir: Path | None,
    test: Path | None,
    backbone: str | None,
    cut: str | None,
    expert_dim: int | None,
    seeds: int,
    brief: bool,
    out: Path,
    force: bool,
    command: str,
    progress: Progress,
) -> dict[str, Any]:
    """Reproduce channel-aware gating and write a run folder.

    Args:
        scale: one of ``SCALES``.
        data: name of a data set or path of a ``.npz`` file.
        data_dir: folder of a named data set's files.
        test: test file that goes with a ``.npz`` file.
        backbone: the network that is cut in two; None for the scale's own, at scale cpu the small extractor for images below 12 x 12.
        cut: where; None for the scale's own.
        expert_dim: hidden units of experts, 0 for the backbone's own rest; None for the scale's own.
        seeds: how often everything is trained, at least 1.
        brief: end within a minute.
        out: run folder.
        force: replace an earlier run in it.
        command: what the user typed.
        progress: told of every epoch.

    Returns:
        What results.json holds.

    Raises:
        ValueError: when an argument is out of range, or the folder is not free.
        BadFile: when the data cannot be read.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    images = load(data, data_dir, test, 0)
    if scale == "cpu" and backbone is None and cut is None and images.train.image_shape[0] < SMALLEST:
        backbone = "conv"
    size = sized(quick(SCALES[scale]) if brief else SCALES[scale], backbone=backbone, cut=cut, expert_dim=expert_dim)
    check_start(size, images.train)
    claim(out, force=force, resumable=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    began_s = time.perf_counter()
    found = channel_gating(size, images, seeds=seeds, device=device, progress=progress)
    results = {"name": NAME, "scale": scale, "quick": brief, "seeds": seeds, "command": command, "hardware": hardware(device)}
    results |= {"seconds": time.perf_counter() - began_s, **found}
    figures = {"curves": png_bytes(curves_figure(results)), "selection": png_bytes(selection_figure(results))}
    write_reproduction(results, out, table=channel_gating_table(results), figures=figures)
    return results


def check_start(size: Scale, images: ImageDataset) -> None:
    """Make every network and transmission once: what does not fit or is not installed should not be found out hours later.

    Raises:
        ValueError: when images and networks do not fit together.
        EngineError: when a code's library is not installed.
    """
    networks_of(size, images)
    for make in size.transmissions.values():
        make()


def write_reproduction(results: Mapping[str, Any], out: Path, *, table: Iterable[str], figures: Mapping[str, bytes]) -> None:
    """Write a reproduction's files.

    Args:
        results: for results.json.
        out: run folder, there already.
        table: lines of Markdown.
        figures: PNGs by name.
    """
    (out / "figures").mkdir(exist_ok=True)
    for name, png in figures.items():
        write_bytes(out / "figures" / f"{name}.png", png)
    write_bytes(out / "results.md", ("\n".join(table) + "\n").encode())
    write_json(out / "results.json", results)
