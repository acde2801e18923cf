"""Gate schemes: who trains the shared gate in a round, which experts a training batch asks, and what is synchronised.

Source: NMoE (arXiv 2511.01743), stage 3: RanGate, RollGate and FedGate. The names are the paper's; their definitions are not public to
us.

Departures: two readings of the names (spec, section 2.2). Reading A (default) says who trains: RanGate, one randomly drawn node a round,
which then hands the gate to all; RollGate, the nodes in turn; FedGate, all in parallel, averaged. Reading B says which experts are asked
in training while all nodes train in parallel: RanGate, k random ones per batch; RollGate, the next k in a fixed order; FedGate as in A.
An untrained gate with random experts is a control of its own (``nmoe.moe.random_uniform``), not RanGate.

"Partially synchronised" is open too; the choices are ``Synchronisation``'s final classes. ``FullSync`` is our default: with two classes a
node, a personal output layer never learns to route the other eight.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Bool
from torch import Tensor

from nmoe.core.seeds import torch_generator


def is_row(tensor: str) -> bool:
    """Say whether a gate's tensor has a row for each expert, as its output layer has; the others serve all experts alike."""
    return tensor.startswith(("output.", "noise."))


class Reading(Enum):
    """How a scheme's name is read: who trains (A), or which experts are asked in training (B)."""

    A = "A"
    B = "B"


class Synchronisation(ABC):
    """Which of the gate's tensors travel, and when."""

    @abstractmethod
    def travels(self, tensor: str, round: int, rounds: int) -> bool:
        """Say whether a tensor is sent up and averaged at the end of a round, and sent down before the next."""

    def per_expert(self) -> bool:
        """Say whether an expert's row is averaged only over nodes that can reach it."""
        return False


@dataclass(frozen=True, slots=True)
class FullSync(Synchronisation):
    """Every tensor, every round: one gate for all."""

    def travels(self, tensor: str, round: int, rounds: int) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class TrunkSync(Synchronisation):
    """Hidden layers travel, the output layer stays: a personal gate."""

    def travels(self, tensor: str, round: int, rounds: int) -> bool:
        return tensor.startswith("trunk.")


@dataclass(frozen=True, slots=True)
class HeadSync(Synchronisation):
    """The output layer travels, hidden layers stay."""

    def travels(self, tensor: str, round: int, rounds: int) -> bool:
        return not tensor.startswith("trunk.")


@dataclass(frozen=True, slots=True)
class PeriodicSync(Synchronisation):
    """Every tensor, but only in every ``period``-th round and in the last."""

    period: int

    def __post_init__(self) -> None:
        if self.period < 1:
            raise ValueError(f"period must be at least 1, got {self.period}")

    def travels(self, tensor: str, round: int, rounds: int) -> bool:
        return (round + 1) % self.period == 0 or round + 1 == rounds


@dataclass(frozen=True, slots=True)
class NeighbourSync(Synchronisation):
    """Every tensor; an expert's row is averaged only over the nodes that can reach that expert."""

    def travels(self, tensor: str, round: int, rounds: int) -> bool:
        return True

    def per_expert(self) -> bool:
        return True


class GateScheme(ABC):
    """Who trains in a round, which experts a batch may ask, and what is synchronised."""

    @abstractmethod
    def trainers(self, nodes: tuple[int, ...], round: int, seed: int) -> tuple[int, ...]:
        """Return the nodes that train in a round."""

    @abstractmethod
    def asked(self, mask: Bool[Tensor, " expert"], k: int, batch: int, generator: torch.Generator) -> Bool[Tensor, " expert"]:
        """Return the experts that training batch number ``batch`` of the run may ask; at least k of those in ``mask``."""

    @abstractmethod
    def synchronisation(self) -> Synchronisation:
        """Return what travels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FedGate(GateScheme):
    """All nodes train in parallel and what ``sync`` names is averaged."""

    sync: Synchronisation = FullSync()

    def trainers(self, nodes: tuple[int, ...], round: int, seed: int) -> tuple[int, ...]:
        return nodes

    def asked(self, mask: Bool[Tensor, " expert"], k: int, batch: int, generator: torch.Generator) -> Bool[Tensor, " expert"]:
        return mask

    def synchronisation(self) -> Synchronisation:
        return self.sync


@dataclass(frozen=True, slots=True, kw_only=True)
class RanGate(GateScheme):
    """Reading A: one random node trains a round. Reading B: all train, each batch asks k random experts."""

    reading: Reading = Reading.A

    def trainers(self, nodes: tuple[int, ...], round: int, seed: int) -> tuple[int, ...]:
        if self.reading is Reading.B:
            return nodes
        return (nodes[int(torch.randint(len(nodes), (), generator=torch_generator(seed, "rangate", round)))],)

    def asked(self, mask: Bool[Tensor, " expert"], k: int, batch: int, generator: torch.Generator) -> Bool[Tensor, " expert"]:
        if self.reading is Reading.A:
            return mask
        reachable = mask.nonzero().squeeze(1)
        return _only(mask, reachable[torch.randperm(len(reachable), generator=generator)[:k]])

    def synchronisation(self) -> Synchronisation:
        return FullSync()


@dataclass(frozen=True, slots=True, kw_only=True)
class RollGate(GateScheme):
    """Reading A: the gate goes round the nodes in turn. Reading B: all train, batches ask the next k experts in a fixed order."""

    reading: Reading = Reading.A

    def trainers(self, nodes: tuple[int, ...], round: int, seed: int) -> tuple[int, ...]:
        return nodes if self.reading is Reading.B else (nodes[round % len(nodes)],)

    def asked(self, mask: Bool[Tensor, " expert"], k: int, batch: int, generator: torch.Generator) -> Bool[Tensor, " expert"]:
        if self.reading is Reading.A:
            return mask
        reachable = mask.nonzero().squeeze(1)
        return _only(mask, reachable[torch.arange(batch * k, (batch + 1) * k) % len(reachable)])

    def synchronisation(self) -> Synchronisation:
        return FullSync()


def _only(mask: Bool[Tensor, " expert"], experts: Tensor) -> Bool[Tensor, " expert"]:
    kept = torch.zeros_like(mask)
    kept[experts] = True
    return kept
