"""``nmoe bench mesh``: the mixture's call over every system, in turns within one run.

Each system has a client process of its own, with its servers below it; an idle client sleeps. In each turn every system measures every
case for one round, so that all see the same machine; a system that works while it is idle comes after the others, by itself. Reported is
the quieter half of a case's rounds, by their median latency, pooled: on a shared machine the other half says more about the neighbours.
A case whose round took over ``TOO_LONG`` times what was asked is not repeated.
"""

import json
import math
import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nmoe.recipes.bench_mesh.base import System, Unavailable
from nmoe.recipes.bench_mesh.client import Client
from nmoe.recipes.bench_mesh.rounds import Case, Footprint, Round
from nmoe.recipes.bench_mesh.systems import all_systems
from nmoe.recipes.bench_mesh.table import as_table

CASES = tuple(Case(batch=batch, callers=callers) for callers in (1, 16) for batch in (1, 32, 256))
HIDDEN = (256, 512)
TOO_LONG = 5
POOLING = "the quieter half of the rounds, by median latency"

Row = dict[str, Any]


@dataclass(slots=True)
class Measured:
    """What the systems gave so far at one width; a skipped system may have rounds from before it failed."""

    footprints: dict[str, Footprint] = field(default_factory=dict)
    rounds: dict[tuple[str, Case], list[Round]] = field(default_factory=lambda: defaultdict(list))
    skipped: dict[str, str] = field(default_factory=dict)  # system: reason


def bench_mesh(
    *,
    peer: Path | None,
    as_json: bool,
    say: Callable[[str], None],
    note: Callable[[str], None],
    turns: int = 4,
    seconds: float = 1.0,
    hidden: Sequence[int] = HIDDEN,
    cases: Sequence[Case] = CASES,
    systems: Callable[[Path | None, int], list[System]] = all_systems,
) -> None:
    """Measure all systems in turns and print the tables, or JSON with ``name, machine, pooling, rows, skipped``.

    Args:
        peer: an interpreter in which hivemind is installed, or None.
        as_json: JSON instead of tables.
        say: prints a line of the result.
        note: prints a line of progress, or why a system is skipped.
        turns: rounds per system and case, at least 1.
        seconds: length of a round, positive.
        hidden: widths of the experts.
        cases: what is asked of every system.
        systems: makes the systems for a peer and a width.

    Raises:
        ValueError: when ``turns`` or ``seconds`` is too small.
    """
    if turns < 1 or seconds <= 0:
        raise ValueError(f"turns must be at least 1 and seconds positive, got {turns} and {seconds}")
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    for width in hidden:
        note(f"hidden {width}")
        measured = measure(systems(peer, width), cases, turns, seconds, note)
        rows += as_rows(measured, width)
        skipped |= measured.skipped
    machine = {"cpu": _processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    if as_json:
        reasons = [{"system": system, "reason": reason} for system, reason in skipped.items()]
        say(json.dumps({"name": "mesh", "machine": machine, "pooling": POOLING, "rows": rows, "skipped": reasons}))
        return
    for line in as_table(rows):
        say(line)
    for system, reason in skipped.items():
        say(f"{system}: skipped, {reason}")


def measure(systems: Sequence[System], cases: Sequence[Case], turns: int, seconds: float, note: Callable[[str], None]) -> Measured:
    """Measure systems in turns; those that are busy when idle one after the other, after all others."""
    together = [system for system in systems if not system.busy_when_idle]
    measured = Measured()
    for group in [together, *([system] for system in systems if system.busy_when_idle)]:
        with ExitStack() as stack:
            clients = _started(group, stack, measured, note)
            for turn in range(turns):
                note(f"turn {turn + 1} of {turns}: {', '.join(client.system.name for client in clients)}")
                for case in cases:
                    clients = [client for client in clients if _measured(client, case, seconds, measured, note)]
    return measured


def as_rows(measured: Measured, hidden: int) -> list[Row]:
    """Return benchmark rows: each system's footprint, then its cases."""
    rows: list[Row] = []

    def add(system: str, case: str, values: Mapping[str, tuple[float, str]]) -> None:
        rows.extend({"system": system, "case": case, "metric": metric, "value": v, "unit": unit} for metric, (v, unit) in values.items())

    for system, footprint in measured.footprints.items():
        values = {"start-up": (footprint.start_s, "s"), "first call": (1000 * footprint.first_call_s, "ms")}
        if footprint.num_processes:
            values["server memory"] = (footprint.server_bytes / 2**20, "MiB")
            values["server processes"] = (footprint.num_processes, "")
        add(system, f"hidden {hidden}", values)
    for (system, case), rounds in measured.rounds.items():
        callers = "1 caller" if case.callers == 1 else f"{case.callers} callers"
        add(system, f"hidden {hidden}, batch {case.batch}, {callers}", _pooled(rounds, case))
    return rows


def _started(group: Sequence[System], stack: ExitStack, measured: Measured, note: Callable[[str], None]) -> list[Client]:
    """Start a client for each system that can run."""
    clients = []
    for system in group:
        client = stack.enter_context(Client(system))
        try:
            measured.footprints[system.name] = client.start()
            clients.append(client)
        except Unavailable as error:
            measured.skipped[system.name] = str(error)
            note(f"{system.name}: skipped, {error}")
    return clients


def _measured(client: Client, case: Case, seconds: float, measured: Measured, note: Callable[[str], None]) -> bool:
    """Measure one round, unless an earlier one took too long; return whether the client still works."""
    name = client.system.name
    rounds = measured.rounds[name, case]
    if rounds and rounds[-1].wall_s > TOO_LONG * seconds:
        return True
    try:
        rounds.append(client.round(case, seconds))
    except Unavailable as error:
        measured.skipped[name] = f"stopped at {case}: {error}"
        note(f"{name}: {measured.skipped[name]}")
        return False
    return True


def _pooled(rounds: Sequence[Round], case: Case) -> dict[str, tuple[float, str]]:
    """Return a case's values over the quieter half of its rounds."""
    quiet = sorted(rounds, key=lambda round: statistics.median(round.latencies_s))[: math.ceil(len(rounds) / 2)]
    latencies = np.concatenate([round.latencies_s for round in quiet])
    calls, wall_s = len(latencies), sum(round.wall_s for round in quiet)
    p50, p99 = np.percentile(latencies, [50, 99])
    return {
        "p50": (1000 * float(p50), "ms"),
        "p99": (1000 * float(p99), "ms"),
        "calls per second": (calls / wall_s, "1/s"),
        "samples per second": (calls * case.batch / wall_s, "1/s"),
        "processor time per call": (1000 * sum(round.cpu_s for round in quiet) / calls, "ms"),
        "calls": (calls, ""),
    }


def _processor() -> str:
    """Return the processor's name; Python knows it on few systems."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()
