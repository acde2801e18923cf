"""The mixture: how experts' answers are combined, and the whole layer in one process.

``Mixture`` is the reference that the mesh of processes is tested against: same parts, same arithmetic, no network.

Source: NMoE (arXiv 2511.01743), y' = sum_i G(h)_i H_i(h). Departure: whether the paper mixes logits or probabilities is not known;
probabilities are our default (own trial on digits), logits a switch.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor, nn

from nmoe.moe.expert import Expert, StackedExperts
from nmoe.moe.extractor import Extractor
from nmoe.moe.gate import Routing, TopKGate


class Mix(StrEnum):
    """What is averaged: each expert's probabilities, or its logits before one softmax."""

    PROBABILITIES = "probabilities"
    LOGITS = "logits"


class MixtureOutput(NamedTuple):
    """Class probabilities of each sample and the routing behind them."""

    probabilities: Float[Tensor, "batch class"]
    routing: Routing


def combine(logits: Float[Tensor, "batch k class"], weights: Float[Tensor, "batch k"], *, mix: Mix) -> Float[Tensor, "batch class"]:
    """Average the chosen experts' answers; weights must add up to 1 in each row.

    Args:
        logits: answers of the chosen experts.
        weights: their weights.
        mix: what is averaged.

    Returns:
        Class probabilities.
    """
    if mix is Mix.PROBABILITIES:
        return (logits.softmax(dim=2) * weights.unsqueeze(2)).sum(dim=1)  # y' = sum_i G(h)_i H_i(h)
    return (logits * weights.unsqueeze(2)).sum(dim=1).softmax(dim=1)


def pick(logits: Float[Tensor, "batch expert class"], routing: Routing) -> Float[Tensor, "batch k class"]:
    """Select the chosen experts' logits out of all experts' logits."""
    return logits.gather(1, routing.experts.unsqueeze(2).expand(-1, -1, logits.shape[2]))


class Mixture(nn.Module):
    """Extractor, all experts and one gate in one process.

    Args:
        extractor: shared extractor.
        experts: experts in the order of the gate's outputs.
        gate: the gate of the node that receives the request.
        mix: what is averaged.
    """

    def __init__(self, *, extractor: Extractor, experts: Sequence[Expert], gate: TopKGate, mix: Mix) -> None:
        super().__init__()
        self.extractor = extractor
        self.experts = StackedExperts(experts)
        self.gate = gate
        self.mix = mix

    def forward(self, images: Float[Tensor, "batch channel height width"], *, k: int, mask: Bool[Tensor, " expert"]) -> MixtureOutput:
        """Answer a batch of images in [0, 1].

        Args:
            images: the batch.
            k: experts asked per sample.
            mask: experts that can be reached.
        """
        features = self.extractor(images)
        routing = self.gate(features, k=k, mask=mask)
        probabilities = combine(pick(self.experts(features), routing), routing.weights, mix=self.mix)
        return MixtureOutput(probabilities=probabilities, routing=routing)
