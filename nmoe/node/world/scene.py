"""Scene: what a simulated mesh consists of: who knows whom, who serves what, how long computing takes, what the gates say."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from nmoe.node.messages import TensorFormat
from nmoe.node.plan import Routing


class Tail(ABC):
    """How service times scatter: a multiplier of mean 1 for every batch."""

    @abstractmethod
    def multipliers(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Draw ``count`` multipliers."""


@dataclass(frozen=True, slots=True)
class Steady(Tail):
    """Every batch takes what it should."""

    def multipliers(self, generator: np.random.Generator, count: int) -> np.ndarray:
        return np.ones(count)


@dataclass(frozen=True, slots=True)
class LogNormal(Tail):
    """Lognormal with this standard deviation of the logarithm."""

    sigma: float

    def __post_init__(self) -> None:
        if not 0 <= self.sigma <= 5:
            raise ValueError(f"a lognormal tail needs a sigma between 0 and 5, got {self.sigma}")

    def multipliers(self, generator: np.random.Generator, count: int) -> np.ndarray:
        return generator.lognormal(-(self.sigma**2) / 2, self.sigma, count)


@dataclass(frozen=True, slots=True)
class Pareto(Tail):
    """Pareto with this shape; the smaller, the heavier, and above 1 so that there is a mean."""

    shape: float

    def __post_init__(self) -> None:
        if not 1 < self.shape <= 100:
            raise ValueError(f"a Pareto tail needs a shape above 1 and at most 100, got {self.shape}")

    def multipliers(self, generator: np.random.Generator, count: int) -> np.ndarray:
        return (generator.pareto(self.shape, count) + 1) * (self.shape - 1) / self.shape


@dataclass(frozen=True, slots=True)
class Service:
    """Seconds a batch takes on a node of mean speed: a constant and a part per row."""

    batch_s: float
    row_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldOptions:
    """What holds for every node. Service times are of a small board, our choice; see docs/results for measured ones.

    Attributes:
        k: experts per sample.
        workers: threads that compute.
        in_dim, out_dim: numbers per feature vector and per expert output.
        deadline_s: what clients allow.
        routing, hedge, formats, max_requests: see ``protocol.Rules``.
        infer: extractor and gate.
        expert: one expert.
        tail: scatter of both.
        speed_spread: standard deviation of the logarithm of node speeds.
        jitter: standard deviation of the logarithm of a message's delay.
        loss: probability that a message is lost.
        lease_s: how long a silent node is believed to be there.
        max_rows: rows that may wait for the workers, in each of their two lines.
        max_linger_s: how long a free worker may wait for company.
    """

    k: int = 2
    workers: int = 1
    in_dim: int = 64
    out_dim: int = 10
    deadline_s: float = 1.0
    routing: Routing = Routing.BOTH
    hedge: bool = True
    formats: tuple[TensorFormat, ...] = tuple(TensorFormat)
    max_requests: int = 64
    infer: Service = Service(0.004, 0.001)
    expert: Service = Service(0.002, 0.0005)
    tail: Tail = field(default_factory=Steady)
    speed_spread: float = 0.3
    jitter: float = 0.1
    loss: float = 0.0
    lease_s: float = 1.0
    max_rows: int = 8192
    max_linger_s: float = 0.0005

    def __post_init__(self) -> None:
        for name in ("k", "workers", "in_dim", "out_dim", "max_requests", "max_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.deadline_s > 0:
            raise ValueError(f"deadline_s must be above 0, got {self.deadline_s}")
        if not 0 <= self.loss < 1:
            raise ValueError(f"loss must be at least 0 and below 1, got {self.loss}")
        for name in ("speed_spread", "jitter", "lease_s", "max_linger_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Layout:
    """Who knows whom and serves what, by node number.

    Attributes:
        names: of the nodes.
        serves: the expert each node serves.
        experts: the outputs of each node's gate, in order.
        peers: the nodes each node knows; if i knows j, j knows i.
    """

    names: tuple[str, ...]
    serves: tuple[str, ...]
    experts: tuple[tuple[str, ...], ...]
    peers: tuple[tuple[int, ...], ...]


def complete(names: Sequence[str], *, replicas: int = 1) -> Layout:
    """Return the mesh where everybody knows everybody; ``replicas`` nodes serve each expert, which is named like the first of them."""
    names = tuple(names)
    nodes = tuple(name if copy == 0 else f"{name}-{copy}" for copy in range(replicas) for name in names)
    everybody = range(len(nodes))
    peers = tuple(tuple(other for other in everybody if other != node) for node in everybody)
    return Layout(nodes, names * replicas, (names,) * len(nodes), peers)


def ring(nodes: int, *, neighbours: int, replicas: int) -> Layout:
    """Return overlapping neighbourhoods on a ring: every node knows the servers of its ``neighbours`` nearest experts besides its own.

    Args:
        nodes: how many, a multiple of ``replicas``.
        neighbours: other experts each node can ask for.
        replicas: nodes that serve each expert.

    Raises:
        ValueError: when that cannot be laid out.
    """
    if replicas < 1 or nodes < 1 or nodes % replicas:
        raise ValueError(f"nodes must be a multiple of replicas, got {nodes} nodes and {replicas} replicas")
    groups = nodes // replicas
    if not 0 <= neighbours < groups:
        raise ValueError(f"neighbours must be between 0 and {groups - 1} (one less than the experts), got {neighbours}")
    steps = [step for half in range(1, neighbours // 2 + 1) for step in (half, -half)]
    if neighbours % 2:
        if groups % 2:
            raise ValueError(f"an odd number of neighbours needs an even number of experts, got {neighbours} and {groups}")
        steps.append(groups // 2)  # the one across: so that whom I know knows me
    experts, peers = [], []
    for group in range(groups):
        known = [(group + step) % groups for step in steps]
        experts += [tuple(f"e{one}" for one in (group, *known))] * replicas
        peers += [tuple(one * replicas + copy for one in known for copy in range(replicas))] * replicas
    names = tuple(f"n{node}" for node in range(nodes))
    return Layout(names, tuple(f"e{node // replicas}" for node in range(nodes)), tuple(experts), tuple(peers))


class Gates(Protocol):
    """What the nodes' gates say."""

    def scores(self, node: int, request: int) -> np.ndarray:
        """Return a request's scores [rows, experts] by a node's gate."""
        ...


@dataclass(frozen=True, slots=True)
class Offered:
    """The load: arrival times in rising order, and for each a number in [0, 1) that picks one of the nodes that are there."""

    times_s: Sequence[float]
    picks: Sequence[float]


class GateTable:
    """Synthetic gates: scores drawn once, row by row in turn; logits of standard deviation ``sharpness``.

    Args:
        num_experts: outputs of a gate.
        generator: of the scores.
        rows: how many different rows there are.
        sharpness: the larger, the surer the gates; 2 puts about 0.8 of the weight of two experts of 17 on the first, our choice.
    """

    def __init__(self, num_experts: int, generator: np.random.Generator, *, rows: int = 2048, sharpness: float = 2.0) -> None:
        self._rows = list(generator.normal(0, sharpness, size=(rows, 1, num_experts)).astype(np.float32))

    def scores(self, node: int, request: int) -> np.ndarray:
        """Return one sample's scores [1, experts]."""
        row: np.ndarray = self._rows[(request * 2654435761 + node) % len(self._rows)]
        return row
