"""The loop: stages, rounds, checkpoints and metrics; and the in-process exchange.

Every engine runs this loop; they differ in the ``Exchange`` alone. After each round the state is written to ``checkpoint/`` and a line is
added to ``metrics.jsonl``; a run killed at any moment continues from its last whole round and ends bit-identical.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path

from nmoe.core.errors import NmoeError
from nmoe.federate.base import Answers, Call, Exchange, Node, Program, Stage, State, serve
from nmoe.federate.checkpoint import Checkpoint, Record
from nmoe.federate.payload import Payload


class Watcher:
    """What is told of every round; this one adds nothing. ``rounds.run`` calls it on the server's side."""

    def evaluate(self, stage: Stage, round: int, state: State) -> dict[str, float]:
        """Return further metrics of a round that just ended (round counts from 0)."""
        return {}

    def seen(self, record: Record) -> None:
        """Take note of a round, replayed ones of a resumed run included."""


class LocalExchange(Exchange):
    """Nodes in this process: payloads by reference, several nodes at a time in threads.

    Each node's work is independent of the others and draws from its own generators, so the number of threads changes nothing but the time.
    Set torch to one thread (``torch.set_num_threads(1)``) when ``threads`` is above 1, and for bit-identity with other engines.

    Args:
        program: stages and nodes.
        nodes: numbers of the nodes.
        threads: nodes that work at the same time.
    """

    def __init__(self, program: Program, nodes: Sequence[int], *, threads: int = 1) -> None:
        super().__init__(nodes)
        self._stages = {stage.name: stage for stage in program.stages()}
        self._members: dict[int, Node] = {number: program.node(number) for number in self.nodes}
        self._pool = ThreadPoolExecutor(threads, "nmoe-node") if threads > 1 else None

    def carry(self, call: Call, requests: Mapping[int, Payload]) -> Answers:
        work = partial(self._answer, call)
        each = self._pool.map if self._pool else map
        replies, failures = {}, {}
        for number, reply in zip(requests, each(work, requests.keys(), requests.values()), strict=True):
            if isinstance(reply, Payload):
                replies[number] = reply
            else:
                failures[number] = reply
        return Answers(replies, failures)

    def _answer(self, call: Call, number: int, request: Payload) -> Payload | str:
        try:
            return serve(self._stages, call, request, self._members[number])
        except (NmoeError, ValueError, RuntimeError, OSError) as error:  # a node's failure is its own: the round goes on without it
            return f"{type(error).__name__}: {error}"

    def close(self) -> None:
        """End the threads."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)


def run(stages: Sequence[Stage], exchange: Exchange, *, folder: Path | None = None, watcher: Watcher | None = None) -> dict[str, State]:
    """Run stages one after the other and return their final states by name.

    Args:
        stages: in order; names must differ.
        exchange: reaches the nodes.
        folder: run folder for the checkpoint and metrics, continued when it holds a checkpoint; None for none.
        watcher: told of every round.

    Raises:
        BadFile: when a checkpoint is damaged or belongs to other stages.
    """
    watcher = watcher or Watcher()
    checkpoint = Checkpoint(folder, [stage.name for stage in stages]) if folder else None
    finished: dict[str, State] = {}
    clock, resume_round, state = 0, 0, None
    if checkpoint:
        finished, state, resume_round, clock = checkpoint.load()
        for record in checkpoint.rewind(clock):
            watcher.seen(record)
    for stage in stages[len(finished) :]:
        if state is None:
            state, resume_round = stage.start(finished), 0
        for number in range(resume_round, stage.rounds):
            ticks = count(clock + 1)
            began, before = time.perf_counter(), exchange.sent_bytes
            state, report = stage.round(state, number, partial(_call, stage.name, number, clock, ticks), exchange)
            clock = next(ticks)
            metrics = report.metrics | watcher.evaluate(stage, number, state)
            seconds = time.perf_counter() - began
            record = Record(stage.name, number + 1, stage.rounds, clock, seconds, exchange.sent_bytes - before, report.refused, metrics)
            if checkpoint:
                checkpoint.save(record, state)
            watcher.seen(record)
        finished[stage.name] = state
        state = None
    return finished


def _call(stage: str, round: int, safe: int, ticks: Iterator[int], action: str) -> Call:
    return Call(stage=stage, action=action, round=round, clock=next(ticks), safe=safe)
