"""Recording: what an origin was told and what it decided, to be compared with what another one decides when told the same."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from nmoe.node.events import Effect, Event
from nmoe.node.protocol import Origin, Rules

Step = Callable[[Event, float], list[Effect]]


@dataclass(frozen=True, slots=True)
class Recording:
    """One call of ``Origin.step``: what happened, when, and what followed."""

    event: Event
    now_s: float
    effects: tuple[Effect, ...]


@dataclass(slots=True)
class Recorder:
    """Stands in for an origin's ``step`` and keeps what passes."""

    step: Step
    log: list[Recording] = field(default_factory=list)

    def __call__(self, event: Event, now_s: float) -> list[Effect]:
        """Step, and remember it."""
        effects = self.step(event, now_s)
        self.log.append(Recording(event, now_s, tuple(effects)))
        return effects


def differences(rules: Rules, draw: random.Random, log: Sequence[Recording]) -> list[str]:
    """Tell a new origin all that a recorded one was told; return where it decided otherwise: nothing if they agree.

    Args:
        rules: those of the recorded origin.
        draw: a generator in the state that the recorded origin's had at its start.
        log: what was recorded, from its start.
    """
    origin = Origin(rules, draw)
    found = []
    for number, said in enumerate(log):
        effects = origin.step(said.event, said.now_s)
        if plain(effects) != plain(said.effects):
            found.append(f"step {number}, {said.event}: {effects} instead of {list(said.effects)}")
    return found


def plain(value: Any) -> Any:
    """Return a value that can be compared: arrays as lists with their type, records as tuples."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tolist())
    if isinstance(value, msgspec.Struct):
        return (type(value).__name__, *(plain(part) for part in msgspec.structs.astuple(value)))
    if isinstance(value, list | tuple):
        return tuple(plain(part) for part in value)
    return value
