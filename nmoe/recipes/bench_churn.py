"""Benchmark of churn: accuracy and slowest answers against the share of nodes lost, slow or lossy, for gate, links and both deciding.

Experts, gates and extractor are real and trained; every expert's logits and every gate's scores on the test set are computed once. The mesh
is simulated (``nmoe.node.world``), with the wire's own decisions: under each condition the whole test set is served, and the real logits
are combined by the answers' weights. Requests go to nodes that are well: what is measured is whether they find others who can help. First
comes one pass with all nodes well, uncounted, so that links are known; then the fault strikes, and counting starts at once.

Where each expert runs on one node only, its knowledge is lost with its node, and no choice can bring it back; so there is a fourth system
with two nodes per expert.
"""

import json
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nmoe.core.errors import MeshError
from nmoe.core.files import write_bytes, write_json
from nmoe.core.seeds import numpy_generator
from nmoe.data import ImageDataset, to_unit
from nmoe.learn import predict
from nmoe.moe import Mix, combine, together
from nmoe.node import MeshProcesses
from nmoe.node.events import Finish
from nmoe.node.plan import Routing
from nmoe.node.world import LogNormal, Offered, World, WorldOptions, complete, uniform_network
from nmoe.recipes.evaluate import read_models
from nmoe.recipes.options import TrainOptions, read_options
from nmoe.recipes.program import program_of
from nmoe.recipes.serve import bundle_folders
from nmoe.recipes.train import start_training
from nmoe.recipes.watch import Progress
from nmoe.report.figures import png_bytes
from nmoe.report.figures.churn import churn_figure

FAULTS = ("lost", "slow", "lossy")
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
WIRE_SHARES = (0.3, 0.6)
SLOW_FACTOR, LOSS = 30.0, 0.3  # of a slow node's computing; of each message to and from a lossy node
RATE_HZ, PASSES, SEEDS = 100.0, 4, 3  # requests of the whole mesh; test sets counted; choices of who fails
OPTIONS = WorldOptions(deadline_s=0.2, tail=LogNormal(0.5))
ROUND_TRIP_S = 0.02
UNITS = {"accuracy": "share", "answered": "share", "degraded": "share", "p50": "ms", "p99": "ms", "bytes per request": "bytes"}


class Parts(NamedTuple):
    """The trained mixture on the test set: logits [test, expert, class], each node's gate scores [node, test, expert], labels [test]."""

    names: tuple[str, ...]
    logits: Tensor
    scores: np.ndarray
    labels: np.ndarray
    k: int
    mix: Mix

    def right(self, samples: np.ndarray, experts: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Say which answers are right; one by no expert is not."""
        chosen = self.logits[torch.from_numpy(samples)[:, None], torch.from_numpy(experts).clamp(min=0)]  # [answer, k, class]
        labels = combine(chosen, torch.from_numpy(weights), mix=self.mix).argmax(dim=1).numpy()
        right: np.ndarray = (labels == self.labels[samples]) & (experts >= 0).any(axis=1)
        return right


@dataclass(frozen=True, slots=True)
class System:
    """Who decides, and how many nodes serve each expert."""

    name: str
    routing: Routing
    replicas: int = 1


SYSTEMS = (
    System("both", Routing.BOTH),
    System("gate", Routing.GATE),
    System("link", Routing.LINK),
    System("both, 2 per expert", Routing.BOTH, 2),
)


@dataclass(frozen=True, slots=True)
class Condition:
    """What goes wrong, for which share of the nodes, and who decides."""

    fault: str
    share: float
    system: System

    @property
    def case(self) -> str:
        """Its name in the benchmark's rows."""
        return f"{self.fault} {self.share:g}"


def bench_churn(
    *,
    run: Path | None = None,
    seeds: int = SEEDS,
    passes: int = PASSES,
    wire: bool = False,
    as_json: bool = False,
    out: Path | None = None,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure all conditions, print the tables or JSON with ``name, machine, settings, rows``, and return that.

    Args:
        run: a run folder of ``nmoe train``; None to train the default mixture first.
        seeds: how many choices of the failing nodes are averaged, at least 1.
        passes: how often the test set is served under each condition, at least 1.
        wire: also lose nodes of a mesh of real processes.
        as_json: JSON instead of tables.
        out: folder for churn.json, churn.md and churn.png; None for none.
        say: prints a line.
        progress: told of every seed.

    Raises:
        ValueError: when ``seeds`` or ``passes`` is below 1.
        NmoeError: when the run folder or, with ``wire``, the mesh fails.
    """
    if seeds < 1 or passes < 1:
        raise ValueError(f"seeds and passes must be at least 1, got {seeds} and {passes}")
    torch.set_num_threads(1)
    began_s = time.perf_counter()
    progress = progress or _Silent()
    with tempfile.TemporaryDirectory() as folder:
        if run is None:
            run = Path(folder) / "run"
            start_training(TrainOptions(), run, progress, force=False, command="nmoe bench churn")
        options = read_options(run)
        test = program_of(options, run.absolute()).data().test
        parts = read_parts(run, test, k=options.k)
        rows = as_rows(_measure(parts, seeds=seeds, passes=passes, progress=progress))
        if wire:
            rows += as_rows(wire_check(run, test, parts))
    settings = {"data": options.data, "split": options.split, "nodes": len(parts.names), "k": parts.k, "seeds": seeds}
    settings |= {"requests": passes * len(parts.labels), "rate_hz": RATE_HZ, "deadline_ms": 1000 * OPTIONS.deadline_s}
    settings |= {"round_trip_ms": 1000 * ROUND_TRIP_S, "slow_factor": SLOW_FACTOR, "loss": LOSS, "seconds": time.perf_counter() - began_s}
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    results = {"name": "churn", "machine": machine, "settings": settings, "rows": rows}
    _write(results, out)
    for line in [json.dumps(results)] if as_json else as_markdown(results):
        say(line)
    return results


def _write(results: Mapping[str, Any], out: Path | None) -> None:
    if out is not None:
        write_json(out / "churn.json", results)
        write_bytes(out / "churn.md", ("\n".join(as_markdown(results)) + "\n").encode())
        write_bytes(out / "churn.png", png_bytes(churn_figure(results["rows"])))


def read_parts(run: Path, test: ImageDataset, *, k: int) -> Parts:
    """Compute what all experts and gates of a run say of the test set."""
    names = tuple(folder.name for folder in bundle_folders(run))
    models = read_models(run, names)
    with torch.inference_mode():
        features = predict(models[0].extractor, to_unit(test.images))
        logits = predict(together([model.expert for model in models]), features)
        scores = torch.stack([model.gate.scores(features) for model in models]).numpy()
    return Parts(names, logits, scores, np.asarray(test.labels), k, models[0].mix)


class GivenGates:
    """The trained gates; request n is test image n, round and round; nodes beyond the gates are replicas, in the same order."""

    def __init__(self, scores: np.ndarray) -> None:
        self._scores = [[row[None] for row in of_node] for of_node in scores]

    def scores(self, node: int, request: int) -> np.ndarray:
        """See ``nmoe.node.world.Gates``."""
        rows = self._scores[node % len(self._scores)]
        row: np.ndarray = rows[request % len(rows)]
        return row


def failing(num_nodes: int, share: float, seed: int) -> list[int]:
    """Return which nodes fail: the same ones whatever the fault, and with a larger share those of a smaller one and more."""
    order = numpy_generator(seed, "failing").permutation(num_nodes)
    return sorted(order[: round(share * num_nodes)].tolist())


def serve(parts: Parts, condition: Condition, *, seed: int, passes: int) -> dict[str, float]:
    """Serve the test set in a simulated mesh under one condition; return the metrics."""
    warm, total = len(parts.labels), (1 + passes) * len(parts.labels)
    experts, weights = np.full((total, parts.k), -1), np.zeros((total, parts.k), dtype=np.float32)

    def finished(_: int, finish: Finish) -> None:
        for number, row in finish.requests:
            experts[number], weights[number] = finish.experts[row], finish.weights[row]

    options = WorldOptions(
        k=parts.k, deadline_s=OPTIONS.deadline_s, tail=OPTIONS.tail, routing=condition.system.routing, out_dim=parts.logits.shape[2]
    )
    layout = complete(parts.names, replicas=condition.system.replicas)
    network = uniform_network(len(layout.names), round_trip_s=ROUND_TRIP_S)
    world = World(options, layout, network, GivenGates(parts.scores), seed=seed, finished=finished)
    generator = numpy_generator(seed, "load")
    offered = Offered(np.cumsum(generator.exponential(1 / RATE_HZ, total)).tolist(), generator.random(total).tolist())
    for index in failing(len(layout.names), condition.share, seed):
        world.clock.later(offered.times_s[warm] - 1e-9, lambda _, node: strike(world, condition.fault, node), world.clock.outside, index)
    tally = world.run(offered)
    counted = np.arange(warm, total)
    latency_ms = 1000 * np.frombuffer(tally.latency_s)[counted]
    there = np.isfinite(latency_ms)
    outcome = np.frombuffer(tally.outcome, dtype=np.uint8)[counted]
    return {
        "accuracy": float(parts.right(counted % warm, experts[counted], weights[counted]).mean()),
        "answered": float(there.mean()),
        "degraded": float((outcome == 2).sum() / max(1, there.sum())),
        "p50": float(np.percentile(latency_ms[there], 50)),
        "p99": float(np.percentile(latency_ms[there], 99)),
        "bytes per request": tally.bytes / total,
    }


def strike(world: World, fault: str, index: int) -> None:
    """Let a fault strike a node."""
    world.members.stop_taking(index)
    node = world.members.nodes[index]
    if fault == "lost":
        world.members.kill(index)
    elif fault == "slow":
        node.pace *= SLOW_FACTOR
    else:
        node.loss = LOSS


def wire_check(run: Path, test: ImageDataset, parts: Parts) -> dict[tuple[str, str], list[dict[str, float]]]:
    """Serve the test set by real node processes, some of which were just killed, and in the world with the same ones lost."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    images = torch.from_numpy(test.images)
    for share in WIRE_SHARES:
        condition = Condition("lost", share, SYSTEMS[0])
        found["world, both, same nodes", condition.case] = [serve(parts, condition, seed=0, passes=1)]
        with MeshProcesses(bundle_folders(run)) as mesh:
            for name in parts.names:
                mesh.client.infer(name, images[:1], deadline_s=30.0)
            dead = failing(len(parts.names), share, 0)
            for index in dead:
                mesh.kill(parts.names[index])
            alive = [name for index, name in enumerate(parts.names) if index not in dead]
            found["wire, both", condition.case] = [_ask_all(mesh, alive, images, parts.labels)]
    return found


def _ask_all(mesh: MeshProcesses, alive: Sequence[str], images: Tensor, labels: np.ndarray) -> dict[str, float]:
    right, degraded, moved, taken_ms = 0, 0, 0, []
    for number in range(len(images)):
        began_s = time.perf_counter()
        try:
            reply = mesh.client.infer(alive[number % len(alive)], images[number : number + 1], deadline_s=1.0)
        except MeshError:
            continue  # counted as not answered
        taken_ms.append(1000 * (time.perf_counter() - began_s))
        right += int(reply.labels[0]) == int(labels[number])
        degraded += reply.degraded
        moved += reply.bytes_sent + reply.bytes_received
    answered = len(taken_ms)
    if not answered:
        raise MeshError("the mesh answered no request")
    return {
        "accuracy": right / len(images),
        "answered": answered / len(images),
        "degraded": degraded / answered,
        "p50": float(np.percentile(taken_ms, 50)),
        "p99": float(np.percentile(taken_ms, 99)),
        "bytes per request": moved / len(images),
    }


def as_rows(measured: Mapping[tuple[str, str], Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Return benchmark rows: mean and standard deviation over seeds, one per system, case and metric."""
    return [
        {
            "system": system,
            "case": case,
            "metric": metric,
            "value": float(np.mean([one[metric] for one in taken])),
            "std": float(np.std([one[metric] for one in taken])),
            "unit": unit,
        }
        for (system, case), taken in measured.items()
        for metric, unit in UNITS.items()
    ]


def as_markdown(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the tables, one per fault."""
    settings = results["settings"]
    cells: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for row in results["rows"]:
        cells[row["system"], row["case"]][row["metric"]] = row
    yield f"# Churn: {settings['data']}, {settings['nodes']} nodes, top {settings['k']}"
    yield ""
    yield (
        f"Simulated mesh, real trained parts (split {settings['split']}). {settings['requests']:,} requests a condition at "
        f"{settings['rate_hz']:g} a second, deadline {settings['deadline_ms']:g} ms, round trip {settings['round_trip_ms']:g} ms; mean and "
        f"standard deviation over {settings['seeds']} choices of the failing nodes."
    )
    yield ""
    yield (
        f"Slow: computing takes {settings['slow_factor']:g} times as long. Lossy: each message is lost with probability "
        f"{settings['loss']:g}. Counting starts when the fault strikes; requests go to nodes that are well. Degraded: answered, but not by "
        "all whom the node had asked first. Links alone know nothing of the task; they are a control."
    )
    for fault in FAULTS:
        yield from ("", f"## {fault.capitalize()} nodes", "")
        heads = [f"{metric}, {system.name}" for metric in ("accuracy %", "p99 ms", "degraded %") for system in SYSTEMS]
        yield "| share | " + " | ".join(heads) + " |"
        yield "|" + "---|" * (1 + len(heads))
        for share in SHARES:
            found = [cells[system.name, f"{fault} {share:g}"] for system in SYSTEMS]
            words = [f"{100 * one['accuracy']['value']:.1f} ± {100 * one['accuracy']['std']:.1f}" for one in found]
            words += [f"{one['p99']['value']:.0f}" for one in found] + [f"{100 * one['degraded']['value']:.1f}" for one in found]
            yield f"| {share:g} | " + " | ".join(words) + " |"
    yield from _wire_lines(cells)


def _wire_lines(cells: Mapping[tuple[str, str], Mapping[str, Any]]) -> Iterator[str]:
    wired = [key for key in cells if key[0].startswith(("wire", "world"))]
    if wired:
        yield from ("", "## Does the world tell the truth? The same nodes killed in a mesh of processes", "")
        yield "| case | system | accuracy % | answered % | degraded % | p50 ms | p99 ms |"
        yield "|---|---|---|---|---|---|---|"
    for system, case in wired:
        one = {metric: row["value"] for metric, row in cells[system, case].items()}
        shares = " | ".join(f"{100 * one[metric]:.1f}" for metric in ("accuracy", "answered", "degraded"))
        yield f"| {case} | {system} | {shares} | {one['p50']:.1f} | {one['p99']:.1f} |"


class _Silent:
    """Shows nothing."""

    def stage(self, name: str, done: int, total: int) -> None:
        """See ``Progress``."""


def _measure(parts: Parts, *, seeds: int, passes: int, progress: Progress) -> dict[tuple[str, str], list[dict[str, float]]]:
    measured: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for seed in range(seeds):
        for system in SYSTEMS:
            well = serve(parts, Condition(FAULTS[0], 0.0, system), seed=seed, passes=passes)
            for fault in FAULTS:
                for share in SHARES:
                    condition = Condition(fault, share, system)
                    measured[system.name, condition.case].append(well if share == 0 else serve(parts, condition, seed=seed, passes=passes))
        progress.stage("churn", seed + 1, seeds)
    return dict(measured)
