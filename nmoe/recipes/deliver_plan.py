"""``nmoe deliver plan``: plan a scenario, check the plan by simulation, and show it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from nmoe.core.files import write_bytes, write_json
from nmoe.core.seeds import numpy_generator
from nmoe.deliver.allocate import METHODS, Plan, Spare, plan
from nmoe.deliver.forward import check_plan
from nmoe.deliver.scenario import Scenario, read_scenario
from nmoe.report.deliver import comparison_table, plan_record, plan_tables, scheduled_users


def deliver_plan(
    path: Path,
    *,
    method: str,
    spare: str,
    compare: bool,
    seed: int,
    as_json: bool,
    out: Path | None,
    say: Callable[[str], None],
    show: Callable[[RenderableType], None],
) -> dict[str, Any]:
    """Plan a scenario file.

    Args:
        path: the scenario, a TOML file.
        method: one of ``METHODS``.
        spare: ``keep`` or ``share``.
        compare: plan by every other method too and show a table; not with ``as_json``.
        seed: of methods that draw.
        as_json: print the plan as JSON instead of tables.
        out: folder for plan.json, schedule.png and limits.png; None for none.
        say: prints a line.
        show: prints a table.

    Returns:
        The plan as JSON has it.

    Raises:
        BadFile: when the file cannot be read or is not TOML.
        ValueError: when a field, the method, ``spare`` or ``out`` is not what is wanted.
        RuntimeError: as ``checked_plan``.
    """
    if spare not in ("keep", "share"):
        raise ValueError(f"spare must be keep or share, got {spare!r}")
    if out is not None:
        _check_folder(out)
    scenario = read_scenario(path)
    done: Spare = "share" if spare == "share" else "keep"
    found = checked_plan(scenario, method, spare=done, seed=seed)
    record = plan_record(found)
    if out is not None:
        write_plan(scenario, found, out)
    if as_json:
        say(json.dumps(record, allow_nan=False))
        return record
    show(plan_tables(scenario, found))
    if compare:
        others = [name for name in METHODS if name not in (method, "slide-weighted")]
        show(comparison_table([found, *(checked_plan(scenario, name, spare=done, seed=seed) for name in others)]))
    if out is not None:
        say(f"plan and figures in {out}")
    return record


def checked_plan(scenario: Scenario, method: str, *, spare: Spare, seed: int) -> Plan:
    """Return a plan that an independent simulation has found to hold.

    Args:
        scenario: models, users, bandwidth.
        method: one of ``METHODS``.
        spare: what is done with bandwidth that is left over; see ``plan``.
        seed: of methods that draw, at least 0.

    Returns:
        The plan.

    Raises:
        ValueError: when the method is unknown or the seed below 0.
        RuntimeError: when the plan does not hold. That is no fault of the scenario's, but a bug of nmoe.
    """
    found = plan(scenario, method, spare=spare, generator=numpy_generator(seed, "deliver plan", method))
    try:
        check_plan(scenario, found)
    except ValueError as error:
        raise RuntimeError(f"the plan of {method} broke its own check, which is a bug of nmoe and not of the scenario: {error}") from error
    return found


def write_plan(scenario: Scenario, found: Plan, out: Path) -> None:
    """Write plan.json and the figures into a folder; nothing is written before all of it is drawn."""
    from nmoe.report.figures import png_bytes
    from nmoe.report.figures.deliver import limits_figure, schedule_figure

    users = scheduled_users(scenario, found)
    figures = {"schedule": schedule_figure(users, planned=len(scenario.users)), "limits": limits_figure(users)}
    drawn = {name: png_bytes(figure) for name, figure in figures.items()}
    for name, png in drawn.items():
        write_bytes(out / f"{name}.png", png)
    write_json(out / "plan.json", plan_record(found))


def _check_folder(out: Path) -> None:
    """Raise ValueError when a folder of that name cannot be made, for there is a file."""
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"out: a folder wanted, {path} is a file")
