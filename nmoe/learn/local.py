"""Local training: what one node does between two messages.

A node's optimiser is made anew every round (as in FedSC's public code), so a round depends on nothing but the weights it receives, the data
and the generators it is given: the same in process, over Ray and after a resume.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn


class Optimiser(ABC):
    """How to make a torch optimiser for one round."""

    @abstractmethod
    def make(self, parameters: Iterable[nn.Parameter], *, scale: float) -> torch.optim.Optimizer:
        """Make the optimiser; ``scale`` multiplies the learning rate (1 without a schedule)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd(Optimiser):
    """Stochastic gradient descent.

    Attributes:
        lr: learning rate, above 0.
        momentum: in [0, 1).
        weight_decay: L2 penalty, at least 0.
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    def make(self, parameters: Iterable[nn.Parameter], *, scale: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr * scale, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam(Optimiser):
    """Adam with PyTorch's default moments; ``lr`` above 0."""

    lr: float

    def make(self, parameters: Iterable[nn.Parameter], *, scale: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr * scale)


def cosine_scale(round: int, rounds: int) -> float:
    """Return the cosine factor of the learning rate in round 0 .. rounds-1, constant inside a round."""
    return 0.5 * (1 + math.cos(math.pi * round / rounds))


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTraining:
    """Some epochs of minibatch descent.

    Attributes:
        optimiser: makes the round's optimiser.
        batch_size: samples per step; a smaller data set is one batch.
        epochs: passes over the local data.
        max_gradient_norm: the gradient's norm is clipped to it; infinity for no clipping.
    """

    optimiser: Optimiser
    batch_size: int
    epochs: int
    max_gradient_norm: float = math.inf

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.epochs < 1:
            raise ValueError(f"batch_size and epochs must be at least 1, got {self.batch_size} and {self.epochs}")

    def run(
        self,
        module: nn.Module,
        num_samples: int,
        loss: Callable[[Int[Tensor, " batch"]], Tensor],
        *,
        generator: torch.Generator,
        scale: float = 1.0,
        after_epoch: Callable[[int], None] | None = None,
    ) -> float:
        """Train ``module`` in place.

        Args:
            module: what is trained; parameters without gradient stay as they are.
            num_samples: size of the local data.
            loss: loss of a batch, given the indices of its samples.
            generator: draws the order of the samples.
            scale: factor on the learning rate.
            after_epoch: told how many epochs have ended.

        Returns:
            The mean loss over all steps.
        """
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimiser = self.optimiser.make(parameters, scale=scale)
        losses = []
        for epoch in range(self.epochs):
            for batch in batches(num_samples, self.batch_size, generator):
                value = loss(batch)
                optimiser.zero_grad(set_to_none=True)
                value.backward()
                if self.max_gradient_norm < math.inf:
                    nn.utils.clip_grad_norm_(parameters, self.max_gradient_norm)
                optimiser.step()
                losses.append(value.detach())
            if after_epoch:
                after_epoch(epoch + 1)
        return float(torch.stack(losses).mean())


def batches(num_samples: int, batch_size: int, generator: torch.Generator) -> Iterator[Int[Tensor, " batch"]]:
    """Yield the indices of each batch of one shuffled pass."""
    yield from torch.randperm(num_samples, generator=generator).split(batch_size)
