"""Benchmark of the engines: seconds per round over the same local step, in process, over Flower's Ray simulation, and in a bare loop.

The step is one of stochastic gradient descent on a linear map with a batch of 8, so what is measured is the engine. The bare loop calls
the step and averages, with no messages at all: the floor. Systems take turns; the median over all measured rounds is reported.
"""

import json
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nmoe.core.errors import NmoeError
from nmoe.core.seeds import torch_generator
from nmoe.data import ImageDataset
from nmoe.federate import Call, Exchange, LocalExchange, Node, NodeMemory, Payload, Program, Record, Report, Stage, State, Watcher, run
from nmoe.federate.base import accept, mean_facts, merge, numeric
from nmoe.recipes.engines import ray_runner

CASES = ((10, 1_000), (10, 1_000_000), (100, 1_000))  # nodes, parameters
OUTPUTS, BATCH, WARM_ROUNDS, TURNS = 10, 8, 3, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearStage(Stage):
    """FedAvg of a linear map, one step a round; ``parameters`` is its size, a multiple of ``OUTPUTS``."""

    name: str
    rounds: int
    parameters: int

    def start(self, previous: Mapping[str, State]) -> State:
        return {"weight": torch.zeros(OUTPUTS, self.parameters // OUTPUTS)}

    def round(self, state: State, number: int, call: Callable[[str], Call], exchange: Exchange) -> tuple[State, Report]:
        answers = exchange.ask(call("train"), dict.fromkeys(exchange.nodes, Payload(state)))
        updates, refused = accept(answers, state, "samples", "loss")
        weighted = [(numeric(update, "samples"), update.tensors) for update in updates.values()]
        return merge(weighted, state), Report(mean_facts(updates, "loss"), refused)

    def answer(self, call: Call, request: Payload, node: Node) -> Payload:
        weight, loss = linear_step(request.tensors["weight"], node.cached("batch", lambda: batch_of(node.number, self.parameters)))
        return Payload({"weight": weight}, samples=BATCH, loss=loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchProgram(Program):
    """One case: nodes that take a linear step."""

    rounds: int
    parameters: int

    def stages(self) -> Sequence[Stage]:
        return (LinearStage(name="linear", rounds=self.rounds, parameters=self.parameters),)

    def node(self, number: int) -> Node:
        images, labels = np.zeros((1, 1, 1, 1), np.uint8), np.zeros(1, np.int64)
        data = ImageDataset.from_arrays(name="bench", images=images, labels=labels, num_classes=1)
        return Node(number=number, seed=0, data=data, memory=NodeMemory(None))


def batch_of(number: int, parameters: int) -> tuple[Tensor, Tensor]:
    """Return a node's inputs [8, parameters / 10] and labels [8]."""
    generator = torch_generator(0, "bench", number)
    return torch.randn(BATCH, parameters // OUTPUTS, generator=generator), torch.randint(OUTPUTS, (BATCH,), generator=generator)


def linear_step(weight: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, float]:
    """Take one step; return the new weight and the loss before it."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.load_state_dict({"weight": weight})
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    loss = functional.cross_entropy(layer(batch[0]), batch[1])
    loss.backward()
    optimiser.step()
    return layer.weight.detach(), float(loss.detach())


def bench_federate(*, rounds: int, as_json: bool, say: Callable[[str], None]) -> None:
    """Measure all systems in turn and print the table, or JSON with ``name, machine, rows``.

    Args:
        rounds: rounds measured per case, system and turn, at least 1.
        as_json: JSON instead of a table.
        say: prints a line.

    Raises:
        ValueError: when ``rounds`` is below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    ray_runner()  # a missing extra is found before anything is measured
    torch.set_num_threads(1)
    systems = {"bare loop": _bare, "in process": _local, "Flower Ray simulation": _ray}
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(TURNS):
        for nodes, parameters in CASES:
            for system, measure in systems.items():
                seconds[system, f"{nodes} nodes, {parameters:,} parameters"] += measure(nodes, parameters, rounds + WARM_ROUNDS)[
                    WARM_ROUNDS:
                ]
    rows = as_rows(seconds)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    if as_json:
        say(json.dumps({"name": "federate", "machine": machine, "rows": rows}))
        return
    say(f"{'system':<24}{'case':<32}{'per round':>12}")
    for row in rows:
        say(f"{row['system']:<24}{row['case']:<32}{1000 * row['value']:>9.1f} ms")


class _Seconds(Watcher):
    """Keeps the seconds of every round."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def seen(self, record: Record) -> None:
        if record.refused:
            raise NmoeError(f"a benchmark node failed: {record.refused[0]}")
        self.seconds.append(record.seconds)


def _bare(nodes: int, parameters: int, rounds: int) -> list[float]:
    batches = [batch_of(number, parameters) for number in range(nodes)]
    weight = torch.zeros(OUTPUTS, parameters // OUTPUTS)
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        weight = torch.stack([linear_step(weight, batch)[0] for batch in batches]).mean(dim=0)
        taken.append(time.perf_counter() - began)
    return taken


def _local(nodes: int, parameters: int, rounds: int) -> list[float]:
    program, watcher = BenchProgram(rounds=rounds, parameters=parameters), _Seconds()
    run(program.stages(), LocalExchange(program, range(nodes)), watcher=watcher)
    return watcher.seconds


def _ray(nodes: int, parameters: int, rounds: int) -> list[float]:
    program, watcher = BenchProgram(rounds=rounds, parameters=parameters), _Seconds()
    ray_runner()(program, range(nodes), watcher=watcher)
    return watcher.seconds


def as_rows(seconds: Mapping[tuple[str, str], Sequence[float]]) -> list[dict[str, Any]]:
    """Return benchmark rows, one per system and case."""
    return [
        {"system": system, "case": case, "metric": "median seconds per round", "value": statistics.median(taken), "unit": "s"}
        for (system, case), taken in seconds.items()
    ]
