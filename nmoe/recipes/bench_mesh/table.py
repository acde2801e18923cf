"""The tables of ``nmoe bench mesh``, from its rows."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

REFERENCE = "tcp"
FEW_CALLS = 100  # fewer make no honest 99th percentile; such cases get a star
WIDTH = 14


def as_table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of one table per case, systems below each other, then the footprints."""
    cases: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        cases[row["case"]][row["system"]][row["metric"]] = row["value"]
    for case, systems in cases.items():
        yield ""
        yield case
        yield from _footprints(systems) if any("start-up" in values for values in systems.values()) else _latencies(systems)


def _latencies(systems: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    reference = systems[REFERENCE]["p50"] if REFERENCE in systems else None
    yield _line("  system", "p50 ms", f"x {REFERENCE}", "p99 ms", "calls/s", "samples/s", "CPU ms a call")
    for system, values in systems.items():
        star = "*" if values["calls"] < FEW_CALLS else ""
        yield _line(
            f"  {system}",
            f"{values['p50']:.2f}",
            f"{values['p50'] / reference:.2f}" if reference else "",
            f"{values['p99']:.2f}{star}",
            f"{values['calls per second']:,.0f}",
            f"{values['samples per second']:,.0f}",
            f"{values['processor time per call']:.2f}",
        )


def _footprints(systems: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    yield _line("  system", "start-up s", "first call ms", "servers MiB", "processes")
    for system, values in systems.items():
        memory = [f"{values['server memory']:.0f}", f"{values['server processes']:.0f}"] if "server memory" in values else []
        yield _line(f"  {system}", f"{values['start-up']:.1f}", f"{values['first call']:.1f}", *memory)


def _line(system: str, *words: str) -> str:
    return f"{system:<{WIDTH}}" + "".join(f"{word:>{WIDTH}}" for word in words)
