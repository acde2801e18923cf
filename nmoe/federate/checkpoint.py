"""Checkpoint: the server's state after every round, as one safetensors file per stage, and the lines of metrics.jsonl.

``checkpoint/<stage>.safetensors`` holds a stage's state and, in its metadata, the round and clock it was written at. It is replaced by
rename; the metrics line of a round is written before it, and lines that are newer than the state are dropped on resume.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from nmoe.core.errors import BadFile
from nmoe.core.files import write_bytes

State = dict[str, Tensor]


class Record(NamedTuple):
    """One line of ``metrics.jsonl``: a round (from 1), its duration, the bytes of all its messages, refusals and metrics."""

    stage: str
    round: int
    rounds: int
    clock: int
    seconds: float
    bytes: int
    refused: list[str]
    metrics: dict[str, float]


class Progress(NamedTuple):
    """Where a run stands: finished stages, the current stage's state (None before it starts) and rounds done, and the clock."""

    finished: dict[str, State]
    state: State | None
    rounds_done: int
    clock: int


class Checkpoint:
    """The checkpoint of one run folder.

    Args:
        folder: the run folder.
        stages: names of the stages in order.
    """

    def __init__(self, folder: Path, stages: Sequence[str]) -> None:
        self._states = folder / "checkpoint"
        self._metrics = folder / "metrics.jsonl"
        self._stages = list(stages)

    def save(self, record: Record, state: State) -> None:
        """Add a round: its line first, then its state."""
        self._metrics.parent.mkdir(parents=True, exist_ok=True)
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record._asdict()) + "\n")
        progress = {"round": record.round, "rounds": record.rounds, "clock": record.clock}
        stamp = {"progress": json.dumps(progress)}  # one key: safetensors writes several in a random order, and equal runs have equal files
        write_bytes(self._states / f"{record.stage}.safetensors", save({k: v.contiguous() for k, v in state.items()}, stamp))

    def load(self) -> Progress:
        """Read where the run stands; a folder without a checkpoint is at the start.

        Raises:
            BadFile: when a file is damaged or of a stage that this run does not have.
        """
        strangers = sorted(path.name for path in self._states.glob("*.safetensors") if path.stem not in self._stages)
        if strangers:
            raise BadFile(f"checkpoint {self._states / strangers[0]} is of another run: this one has {', '.join(self._stages)}")
        finished: dict[str, State] = {}
        clock = 0
        for name in self._stages:
            path = self._states / f"{name}.safetensors"
            if not path.exists():
                break
            try:
                with safe_open(path, framework="pt") as file:
                    stamp = json.loads(file.metadata()["progress"])
                state = load(path.read_bytes())
                done, wanted, clock = int(stamp["round"]), int(stamp["rounds"]), int(stamp["clock"])
            except (SafetensorError, KeyError, TypeError, ValueError) as error:
                raise BadFile(f"checkpoint {path} is damaged: {error}") from error
            if done < wanted:
                return Progress(finished, state, done, clock)
            finished[name] = state
        return Progress(finished, None, 0, clock)

    def rewind(self, clock: int) -> list[Record]:
        """Drop lines of metrics newer than ``clock`` (or half written) and return the rest."""
        if not self._metrics.exists():
            return []
        kept = []
        for line in self._metrics.read_text("utf-8").splitlines():
            try:
                record = Record(**json.loads(line))
            except (ValueError, TypeError):
                break  # a line cut short by a kill; everything after it is newer than the state
            if record.clock <= clock:
                kept.append(record)
        write_bytes(self._metrics, "".join(json.dumps(record._asdict()) + "\n" for record in kept).encode())
        return kept
