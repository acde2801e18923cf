"""``nmoe market recruit``: settle a recruitment, show it, and write the plan that ``nmoe train --recruitment`` trains by."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from nmoe.core.files import write_bytes, write_json
from nmoe.core.seeds import numpy_generator
from nmoe.market.incentive import Asosa, GameRanges, Loop, Recruitment, WorkerLayer, draw_recruitment, exact_workers, plan_json
from nmoe.market.incentive.task_file import example_task, read_recruitment
from nmoe.report.incentive import loop_record, recruitment_tables

LAYERS = ("exact", "learned")
EXAMPLE_STOCK = (0.0, 5.0)  # samples; a game in which some owners must buy and some need not


def market_recruit(
    path: Path,
    *,
    workers: str,
    seed: int,
    max_steps: int,
    episodes: int | None,
    policies: Path | None,
    as_json: bool,
    out: Path | None,
    say: Callable[[str], None],
    show: Callable[[RenderableType], None],
) -> dict[str, Any]:
    """Settle the recruitment that a file describes.

    Args:
        path: the task, a TOML file (``nmoe.market.incentive.task_file``).
        workers: one of ``LAYERS``.
        seed: of learned workers, at least 0.
        max_steps: turns of the loop, at least 1.
        episodes: that learned workers train for before their first answer, at least 1; None for their own number.
        policies: folder of policies that learned workers begin with; None for none.
        as_json: print the plan as JSON instead of tables.
        out: folder for plan.json and figures; None for none.
        say: prints a line.
        show: prints tables.

    Returns:
        The plan, and under ``loop`` how it came about.

    Raises:
        BadFile: when a file cannot be read.
        ValueError: when a field or an argument is not what is wanted.
        EngineError: when learned workers want a library that is not installed.
    """
    _check(workers, seed=seed, taught=episodes is not None or policies is not None)
    if out is not None:
        _check_folder(out)
    asosa = Asosa(max_steps=max_steps)
    recruitment = read_recruitment(path)
    if workers == "exact":
        layer: WorkerLayer = exact_workers(recruitment)
    else:
        layer = trained_layer(recruitment, seed=seed, episodes=episodes, policies=policies)
    loop = asosa.run(recruitment, layer)
    settlement = loop.settlement
    record = plan_json(settlement) | {"worker_layer": workers, "loop": loop_record(loop)}
    if out is not None:
        write_recruitment(loop, record, out)
    if as_json:
        say(json.dumps(record, allow_nan=False))
        return record
    show(recruitment_tables(settlement, loop, layer=workers))
    if out is not None:
        say(f"plan and figures in {out}" if settlement.total > 0 else f"plan in {out}")
    return record


def write_recruitment(loop: Loop, record: dict[str, Any], out: Path) -> None:
    """Write plan.json, and figures where a task is published; nothing is written before all of it is drawn."""
    figures: dict[str, bytes] = {}
    if loop.settlement.total > 0:
        from nmoe.report.figures import png_bytes
        from nmoe.report.figures.incentive import convergence_figure, deviation_figure, utilities_figure

        figures["convergence"] = png_bytes(convergence_figure(loop, loop.settlement.recruitment.owners.ids))
        figures["utilities"] = png_bytes(utilities_figure(loop.settlement))
        figures["deviation"] = png_bytes(deviation_figure(loop.settlement))
    for name, png in figures.items():
        write_bytes(out / f"{name}.png", png)
    write_json(out / "plan.json", record)


def trained_layer(recruitment: Recruitment, *, seed: int, episodes: int | None, policies: Path | None) -> WorkerLayer:
    """Return a lower layer that learns, which needs torch and TorchRL.

    Args:
        recruitment: the game.
        seed: of all chance.
        episodes: trained before the first answer, at least 1; None for the learner's own number.
        policies: folder of policies to begin with; None for none.

    Raises:
        EngineError: when TorchRL is not installed.
        ValueError: when there is nobody to learn.
        BadFile: when the policies are damaged or of another game.
    """
    from nmoe.market.incentive.learners.workers import EPISODES, learned_workers

    return learned_workers(recruitment, seed=seed, episodes=EPISODES if episodes is None else episodes, policies=policies)


def example_recruitment(owners: int, *, seed: int, say: Callable[[str], None]) -> None:
    """Print a task file of so many random owners with three workers each.

    Raises:
        ValueError: when there are fewer than two, or the seed is below 0.
    """
    if owners < 2:
        raise ValueError(f"an example has at least 2 owners, got {owners}")
    ranges = GameRanges(owners=owners, workers_per_owner=3, stock=EXAMPLE_STOCK)
    say(example_task(draw_recruitment(ranges, numpy_generator(seed, "market recruit", "example"))).rstrip())


def _check(workers: str, *, seed: int, taught: bool) -> None:
    """Raise ValueError when arguments are out of range, or say how those should learn who do not."""
    if workers not in LAYERS:
        raise ValueError(f"workers must be one of {', '.join(LAYERS)}, got {workers!r}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if workers == "exact" and taught:
        raise ValueError("episodes and policies are those of learned workers, got exact ones")


def _check_folder(out: Path) -> None:
    """Raise ValueError when a folder of that name cannot be made, for there is a file."""
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"out: a folder wanted, {path} is a file")
