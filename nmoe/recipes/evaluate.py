"""Evaluation: NMoE and its controls on the nodes' local test distributions and on the global test set.

Every method gives a table of which test image each node would get right, [node, test]. The global figure is its mean; the local one
weighs test images by class, as often as the class occurs in the node's training data, so the whole test set is used and nothing is drawn.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nmoe.core.bundle import read_bundle
from nmoe.core.seeds import torch_generator
from nmoe.data import ImageDataset, class_histogram, to_unit
from nmoe.learn import predict
from nmoe.moe import Expert, Mix, NodeModel, Routing, all_uniform, combine, node_model, oracle, pick, random_uniform, together


class Score(NamedTuple):
    """Mean accuracy over nodes, on their local test distribution and on the global test set."""

    local: float
    global_: float

    def as_json(self) -> dict[str, float]:
        """Return it with the keys of results.json."""
        return {"local": self.local, "global": self.global_}


class TestBench:
    """The test set and the nodes' class shares, ready to score tables of right and wrong.

    Args:
        test: the test set.
        node_labels: training labels of each node.
    """

    __test__ = False  # not a test, whatever pytest makes of its name

    def __init__(self, test: ImageDataset, node_labels: Sequence[np.ndarray]) -> None:
        self._parts = test, node_labels
        self.images = to_unit(test.images)
        self.labels = torch.from_numpy(test.labels)
        counts = class_histogram(test.labels, test.num_classes)
        shares = np.stack([class_histogram(labels, test.num_classes) for labels in node_labels]).astype(np.float64)
        shares[:, counts == 0] = 0
        per_image = shares / np.maximum(counts, 1)
        weights = torch.from_numpy(per_image)[:, self.labels]  # [node, test]
        self.weights = weights / weights.sum(dim=1, keepdim=True)

    def thinned(self, most: int) -> "TestBench":
        """Return a bench of at most ``most`` evenly spaced test images; this one if it has no more."""
        test, node_labels = self._parts
        if len(test) <= most:
            return self
        return TestBench(test.subset(np.linspace(0, len(test) - 1, most).astype(np.int64)), node_labels)

    def score(self, right: Bool[Tensor, "node test"]) -> Score:
        """Score a table of which image each node gets right; one row stands for all nodes if they answer alike."""
        table = right.double().expand(len(self.weights), -1)
        return Score(local=float((table * self.weights).sum(dim=1).mean()), global_=float(table.mean()))

    def score_predictions(self, scores: Float[Tensor, "test class"]) -> Score:
        """Score one classifier that every node would use."""
        return self.score((scores.argmax(dim=1) == self.labels).unsqueeze(0))


def read_models(run: Path, names: Sequence[str]) -> list[NodeModel]:
    """Read the bundles of a run in the order of its experts."""
    return [node_model(read_bundle(run / "bundles" / name)) for name in names]


def mixture_scores(
    models: Sequence[NodeModel], bench: TestBench, masks: Bool[Tensor, "node expert"], *, k: int, seed: int
) -> dict[str, Score]:
    """Score NMoE and the controls that use the same experts.

    Args:
        models: extractor, expert and gate of each node; the extractor is the same in all.
        bench: the test set.
        masks: which experts each node can reach.
        k: experts asked per sample.
        seed: run seed, for the random control.

    Returns:
        Scores by the names of results.json.
    """
    features = predict(models[0].extractor, bench.images)
    logits = predict(together([model.expert for model in models]), features)  # [test, expert, class]
    batch, nodes = len(bench.labels), range(len(models))
    score = partial(routing_score, logits=logits, bench=bench, mix=models[0].mix)
    own = torch.arange(len(models))
    with torch.inference_mode():
        return {
            "own_expert": score(Routing(own[node].expand(batch, 1), torch.ones(batch, 1)) for node in nodes),
            "random_uniform": score(
                random_uniform(batch, k=k, mask=masks[node], generator=torch_generator(seed, "random-uniform", node)) for node in nodes
            ),
            "all_uniform": score(all_uniform(batch, mask=masks[node]) for node in nodes),
            "nmoe": score(models[node].gate(features, k=k, mask=masks[node]) for node in nodes),
            "oracle_gate": score(oracle(logits, bench.labels, mask=masks[node]) for node in nodes),
        }


def routing_score(routings: Iterable[Routing], *, logits: Float[Tensor, "test expert class"], bench: TestBench, mix: Mix) -> Score:
    """Score the nodes' routings of the test set, given all experts' logits; a single routing stands for all nodes."""
    rows = [combine(pick(logits, routing), routing.weights, mix=mix).argmax(dim=1) == bench.labels for routing in routings]
    return bench.score(torch.stack(rows))


def own_expert_score(experts: Sequence[Expert], features: Tensor, bench: TestBench) -> Score:
    """Score every node's own expert alone."""
    rows = [predict(expert, features).argmax(dim=1) == bench.labels for expert in experts]
    return bench.score(torch.stack(rows))


def as_json(scores: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    """Return scores as results.json has them."""
    return {name: score.as_json() for name, score in scores.items()}
