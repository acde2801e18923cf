"""Partitions: which node owns which training image.

Sources:
    Iid          : uniform at random, equal shares.
    Shards       : each node sees m classes, as in McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
                   Data", AISTATS 2017, sec. 3, and in the FedSC code (classes dealt out in label order).
    Dirichlet    : label skew of Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019, sec. 4:
                   for each class, the nodes' shares are drawn from a symmetric Dirichlet distribution.
    QuantitySkew : Li et al., "Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022, sec. IV: iid classes, sizes
                   drawn from a symmetric Dirichlet distribution.

Symbols: N nodes | ``num_nodes`` | 1;  C classes | ``len(classes)`` | 1;  m | ``classes_per_node`` | 1;  alpha (beta in ICDE 2022) |
``alpha`` | 1.

Departures: Shards deals whole classes rather than sorted shards, so a node has exactly m classes, neighbours in label order; Dirichlet is
redrawn until every node has ``min_samples``, at most 100 times; QuantitySkew gives every node one sample before it shares out the rest.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Int64

MAX_REDRAWS = 100
MAX_ALPHA = 1e6  # beyond it shares are equal to 0.1 % and numpy's gamma variates overflow near 1e308


def class_histogram(labels: Int64[np.ndarray, " sample"], num_classes: int) -> Int64[np.ndarray, " class"]:
    """Count the samples of each class.

    Args:
        labels: int64 [N], 0 to ``num_classes - 1``; may be empty.
        num_classes: number of classes, at least 1.

    Returns:
        Counts, int64 [num_classes].

    Raises:
        ValueError: when a label is out of range.
    """
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(f"labels must be in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}")
    return np.bincount(labels, minlength=num_classes).astype(np.int64)


def _check(labels: np.ndarray, num_nodes: int, min_samples: int = 1) -> None:
    """Check what every partition wants of its arguments."""
    if labels.ndim != 1 or labels.dtype != np.int64:
        raise ValueError(f"labels must be int64 [N], got {labels.dtype} {list(labels.shape)}")
    if num_nodes < 1:
        raise ValueError(f"num_nodes must be at least 1, got {num_nodes}")
    if len(labels) < num_nodes * min_samples:
        raise ValueError(f"{num_nodes} nodes need at least {num_nodes * min_samples} samples, got {len(labels)}")


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha <= MAX_ALPHA:
        raise ValueError(f"alpha must be above 0 and at most {MAX_ALPHA:g}, got {alpha}")


def _sorted(parts: list[np.ndarray]) -> list[Int64[np.ndarray, " owned"]]:
    return [np.sort(part).astype(np.int64) for part in parts]


class Partition(ABC):
    """A rule that gives every training sample to exactly one node."""

    __slots__ = ()

    @abstractmethod
    def assign(
        self, labels: Int64[np.ndarray, " sample"], num_nodes: int, generator: np.random.Generator
    ) -> list[Int64[np.ndarray, " owned"]]:
        """Deal the samples out.

        Args:
            labels: class of each sample, int64 [N].
            num_nodes: number of nodes, 1 to N.
            generator: draws whatever is random about the rule.

        Returns:
            For each node the sorted indices of its samples; disjoint, complete, none empty.

        Raises:
            ValueError: when the rule cannot give every node a sample.
        """


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Iid(Partition):
    """Equal shares drawn at random; sizes differ by at most one."""

    def assign(
        self, labels: Int64[np.ndarray, " sample"], num_nodes: int, generator: np.random.Generator
    ) -> list[Int64[np.ndarray, " owned"]]:
        """Deal a random permutation out evenly; see ``Partition.assign``."""
        _check(labels, num_nodes)
        return _sorted(np.array_split(generator.permutation(len(labels)), num_nodes))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Shards(Partition):
    """Each node owns exactly m classes, neighbours in label order; each class is dealt evenly to its owners.

    Node i starts at class floor(i C / N), so the numbers of owners of any two classes differ by at most one, and every class has an owner
    if and only if m N >= C. Ten nodes, ten classes, m = 2: node i has classes i and i + 1, each class two owners.

    Attributes:
        classes_per_node: classes m each node sees, 1 to the number of classes that occur.
    """

    classes_per_node: int

    def __post_init__(self) -> None:
        """Check the hyperparameter."""
        if self.classes_per_node < 1:
            raise ValueError(f"classes_per_node must be at least 1, got {self.classes_per_node}")

    def assign(
        self, labels: Int64[np.ndarray, " sample"], num_nodes: int, generator: np.random.Generator
    ) -> list[Int64[np.ndarray, " owned"]]:
        """Deal each class out to its owners; see ``Partition.assign``."""
        _check(labels, num_nodes)
        classes = np.unique(labels)
        if self.classes_per_node > len(classes):
            raise ValueError(f"classes_per_node must be at most the {len(classes)} classes there are, got {self.classes_per_node}")
        covered = num_nodes * self.classes_per_node
        if covered < len(classes):
            raise ValueError(f"shards:{self.classes_per_node} with {num_nodes} nodes covers only {covered} of {len(classes)} classes")
        owners: list[list[int]] = [[] for _ in classes]
        for node in range(num_nodes):
            first = node * len(classes) // num_nodes
            for offset in range(self.classes_per_node):
                owners[(first + offset) % len(classes)].append(node)
        parts: list[list[np.ndarray]] = [[] for _ in range(num_nodes)]
        for label, nodes in zip(classes, owners, strict=True):
            of_class = generator.permutation(np.flatnonzero(labels == label))
            if len(of_class) < len(nodes):
                raise ValueError(f"class {label} needs a sample for each of its {len(nodes)} owners, got {len(of_class)}")
            for node, part in zip(nodes, np.array_split(of_class, len(nodes)), strict=True):
                parts[node].append(part)
        return _sorted([np.concatenate(part) for part in parts])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Dirichlet(Partition):
    """Label skew: the nodes' shares of each class follow a symmetric Dirichlet distribution.

    Attributes:
        alpha: concentration, above 0; 0.1 gives nodes a few classes each, 100 nearly equal shares.
        min_samples: samples every node must have, at least 1; draws that miss it are repeated, at most 100 times.
    """

    alpha: float
    min_samples: int = 1

    def __post_init__(self) -> None:
        """Check the hyperparameters."""
        _check_alpha(self.alpha)
        if self.min_samples < 1:
            raise ValueError(f"min_samples must be at least 1, got {self.min_samples}")

    def assign(
        self, labels: Int64[np.ndarray, " sample"], num_nodes: int, generator: np.random.Generator
    ) -> list[Int64[np.ndarray, " owned"]]:
        """Draw shares class by class until every node has enough; see ``Partition.assign``."""
        _check(labels, num_nodes, self.min_samples)
        for _ in range(MAX_REDRAWS):
            parts = self._draw(labels, num_nodes, generator)
            if min(len(part) for part in parts) >= self.min_samples:
                return _sorted(parts)
        raise ValueError(
            f"Dirichlet with alpha {self.alpha:g} left a node under {self.min_samples} samples in each of {MAX_REDRAWS} draws: "
            f"{num_nodes} nodes and {len(labels)} samples want a larger alpha or fewer nodes"
        )

    def _draw(self, labels: np.ndarray, num_nodes: int, generator: np.random.Generator) -> list[np.ndarray]:
        """Draw once, with no look at how much each node gets."""
        parts: list[list[np.ndarray]] = [[] for _ in range(num_nodes)]
        for label in np.unique(labels):
            of_class = generator.permutation(np.flatnonzero(labels == label))
            shares = generator.dirichlet(np.full(num_nodes, self.alpha))
            cuts = np.rint(np.cumsum(shares[:-1]) * len(of_class)).astype(np.int64)
            for part, piece in zip(parts, np.split(of_class, cuts), strict=True):
                part.append(piece)
        return [np.concatenate(part) for part in parts]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class QuantitySkew(Partition):
    """Unequal sizes, equal classes: sizes follow a symmetric Dirichlet distribution, at least one sample each.

    Attributes:
        alpha: concentration, above 0; 0.5 gives sizes that differ tenfold and more, 100 nearly equal ones.
    """

    alpha: float

    def __post_init__(self) -> None:
        """Check the hyperparameter."""
        _check_alpha(self.alpha)

    def assign(
        self, labels: Int64[np.ndarray, " sample"], num_nodes: int, generator: np.random.Generator
    ) -> list[Int64[np.ndarray, " owned"]]:
        """Cut a random permutation at drawn sizes; see ``Partition.assign``."""
        _check(labels, num_nodes)
        shares = generator.dirichlet(np.full(num_nodes, self.alpha))
        spare = len(labels) - num_nodes
        cuts = np.rint(np.cumsum(shares[:-1]) * spare).astype(np.int64) + np.arange(1, num_nodes)
        return _sorted(np.split(generator.permutation(len(labels)), cuts))
