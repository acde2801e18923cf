"""Tally: what became of every request of a simulation, and the figures made of that."""

import math
from array import array
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from nmoe.node.messages import RefusalCode


class Outcome(IntEnum):
    """What became of a request."""

    OPEN = 0  # its node died with it, or is frozen
    ANSWERED = 1
    DEGRADED = 2  # answered, but not by the gate's first choice alone
    REFUSED = 3
    NOWHERE = 4  # no node was there to take it


@dataclass(slots=True)
class Tally:
    """Counts of a run; by request: ``outcome`` and ``latency_s`` (nan without an answer)."""

    offered: int
    deadline_s: float
    outcome: bytearray = field(init=False)
    latency_s: "array[float]" = field(init=False)
    refused: Counter[RefusalCode] = field(default_factory=Counter)
    messages: int = 0
    lost_messages: int = 0
    bytes: int = 0
    hedges: int = 0
    busy_s: float = 0.0
    node_s: float = 0.0
    events: int = 0
    chosen_rows: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.outcome = bytearray(self.offered)
        self.latency_s = array("d", [math.nan]) * self.offered

    def figures(self) -> dict[str, Any]:
        """Return the figures of a run: plain numbers, ready for JSON; None where there is nothing to measure."""
        outcome = np.frombuffer(self.outcome, dtype=np.uint8)
        latency_s = np.frombuffer(self.latency_s)
        answered = (outcome == Outcome.ANSWERED) | (outcome == Outcome.DEGRADED)
        in_time = answered & (latency_s <= self.deadline_s + 1e-9)
        percentiles = np.percentile(latency_s[answered], [50, 95, 99]) * 1000 if answered.any() else (None, None, None)
        loads = np.array(list(self.chosen_rows.values()), dtype=np.float64)
        offered = max(1, self.offered)
        return {
            "offered": self.offered,
            "answered": int(answered.sum()),
            "answered_in_time": int(in_time.sum()),
            "availability": float(in_time.sum()) / offered,
            "degraded_share": float((outcome == Outcome.DEGRADED).sum() / max(1, answered.sum())),
            "refused": {code.value: count for code, count in sorted(self.refused.items())},
            "unanswered": int((outcome == Outcome.OPEN).sum()),
            "nowhere": int((outcome == Outcome.NOWHERE).sum()),
            "p50_ms": _number(percentiles[0]),
            "p95_ms": _number(percentiles[1]),
            "p99_ms": _number(percentiles[2]),
            "messages_per_request": self.messages / offered,
            "lost_messages": self.lost_messages,
            "bytes": self.bytes,
            "bytes_per_request": self.bytes / offered,
            "hedges_per_request": self.hedges / offered,
            "expert_load_cv": float(loads.std() / loads.mean()) if loads.size and loads.mean() > 0 else None,
            "utilisation": self.busy_s / self.node_s if self.node_s else None,
            "failures": dict(sorted(self.failures.items())),
            "events": self.events,
        }


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
