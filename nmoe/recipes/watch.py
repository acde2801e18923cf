"""Watching a run: accuracy of what a round made, and progress for the person who waits.

The server of a real federation has no expert and no node's memory; these measurements belong to a simulation, where node memories lie in
the run folder, and stop there: nothing here flows back into training.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nmoe.data import to_unit
from nmoe.federate import Gates, NodeMemory, Record, Stage, State, Watcher
from nmoe.federate.memory import ALWAYS
from nmoe.federate.payload import select
from nmoe.learn import Classifier, nearest_neighbours, predict
from nmoe.moe import Expert, build, combine, pick, restore, together
from nmoe.recipes.evaluate import TestBench, own_expert_score, routing_score
from nmoe.recipes.evaluate_links import Crossing, crossings
from nmoe.recipes.program import BUNDLES, EXPERTS, FEATURES, NAIVE_GATES, TrainProgram, node_memory_folder

MAX_LABELLED = 2000  # training images that vote in the kNN monitor
MAX_TESTED = 2000  # test images an extractor in training is measured on; the last round of a stage uses all


class Progress(Protocol):
    """What shows a run's progress: ``stage`` is told of every round that ends."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Say that ``done`` of ``total`` steps of a stage have ended."""


class Frozen(NamedTuple):
    """What gates are scored on.

    Attributes:
        bench: the test images.
        features: [test, dim].
        logits: of all experts over perfect links, [test, expert, class]; empty where links are noisy.
        crossings: of each node over noisy links.
    """

    bench: TestBench
    features: Tensor
    logits: Tensor
    crossings: tuple[Crossing, ...]


class RunWatcher(Watcher):
    """Evaluates every round on the test set and passes progress on.

    Args:
        program: the run, with a run folder.
        bench: the test set.
        progress: told of every round.
    """

    def __init__(self, program: TrainProgram, bench: TestBench, progress: Progress) -> None:
        self._program = program
        self._bench = bench
        self._quick_bench = bench.thinned(MAX_TESTED)
        self._progress = progress
        self.records: list[Record] = []
        self._frozen: Frozen | None = None

    def evaluate(self, stage: Stage, round: int, state: State) -> dict[str, float]:
        bench = self._bench if round + 1 == stage.rounds else self._quick_bench
        if stage.name == FEATURES:
            return {"knn": self._knn(select("extractor", state), bench)}
        if stage.name == EXPERTS:
            features = predict(restore(self._program.extractor(), state), self._bench.images)
            return {"own_local": own_expert_score(self._experts(), features, self._bench).local}
        if isinstance(stage, Gates):
            return self._gates(stage, state)
        if stage.name == BUNDLES:
            return {}
        spec = self._program
        model = Classifier(
            extractor=restore(spec.extractor(), select("extractor", state)), head=restore(spec.expert(), select("head", state))
        )
        return {"fedavg_global": bench.score_predictions(predict(model, bench.images)).global_}

    def seen(self, record: Record) -> None:
        self.records.append(record)
        self._progress.stage(record.stage, record.round, record.rounds)

    def _knn(self, tensors: State, bench: TestBench) -> float:
        train = self._program.data().train
        extractor = restore(self._program.extractor(), tensors)
        step = max(1, len(train) // MAX_LABELLED)
        features = predict(extractor, to_unit(train.images[::step]))
        test_features = predict(extractor, bench.images)
        labels = torch.from_numpy(train.labels[::step].copy())
        return nearest_neighbours(features, labels, test_features, bench.labels, num_classes=train.num_classes)

    def _experts(self) -> list[Expert]:
        experts = []
        for node in range(len(self._program.names())):
            tensors = self._memory(node).read("expert", before=ALWAYS)
            fresh = build(self._program.expert(), generator=torch.Generator())
            expert = fresh if tensors is None else restore(self._program.expert(), tensors)  # a node that never trained has none
            assert isinstance(expert, Expert)
            experts.append(expert)
        return experts

    def _memory(self, node: int) -> NodeMemory:
        assert self._program.run_folder is not None
        return NodeMemory(node_memory_folder(self._program.run_folder, node))

    def _gates(self, stage: Gates, state: State) -> dict[str, float]:
        """Return accuracy after a gate's round; over noisy links, where there are any, every round on the same blocks."""
        frozen = self._frozen = self._frozen or self._freeze(stage)
        naive = stage.name == NAIVE_GATES
        if stage.links is None:
            personal = any(self._memory(node).versions(stage.own_gate) for node in range(stage.num_nodes))
            same = not personal and all(len(row) == stage.num_nodes - 1 for row in stage.neighbours)
            gates = (stage.gate_of(state, self._memory(node)) for node in range(1 if same else stage.num_nodes))
            routings = [gate(frozen.features, k=stage.k, mask=stage.mask(node)) for node, gate in enumerate(gates)]
            score = routing_score(routings, logits=frozen.logits, bench=frozen.bench, mix=stage.mix)
        else:
            rows = []
            for node, crossing in enumerate(frozen.crossings):
                gate = stage.gate_of(state, self._memory(node))
                routing = gate(frozen.features, k=stage.k, mask=stage.mask(node), snr_db=crossing.snr_db)
                rows.append(combine(pick(crossing.logits, routing), routing.weights, mix=stage.mix).argmax(dim=1) == frozen.bench.labels)
            score = frozen.bench.score(torch.stack(rows))
        return (
            {"naive_global": score.global_, "naive_local": score.local}
            if naive
            else {"nmoe_global": score.global_, "nmoe_local": score.local}
        )

    def _freeze(self, stage: Gates) -> Frozen:
        """Compute what does not change while gates train."""
        bench = self._bench if stage.links is None else self._quick_bench
        extractor_state = next(
            found for node in range(stage.num_nodes) if (found := self._memory(node).read("extractor", before=ALWAYS)) is not None
        )
        features = predict(restore(stage.extractor, extractor_state), bench.images)
        experts = together(self._experts())
        if stage.links is None:
            return Frozen(bench, features, predict(experts, features), ())
        seed = self._program.options.seed
        return Frozen(bench, features, torch.empty(0), tuple(crossings(experts, features, radio=stage.links.radio, seed=seed)))
