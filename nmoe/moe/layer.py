"""The mixture: how experts' answers are combined, and the whole layer in one process.

``Mixture`` is the reference that the mesh of processes is tested against: same parts, same arithmetic, no network.

Source: NMoE (arXiv 2511.01743), y' = sum_i G(h)_i H_i(h). Departure: whether the paper mixes logits or probabilities is not known;
probabilities are our default (own trial on digits), logits a switch.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nmoe.moe.expert import Expert, together
from nmoe.moe.extractor import Extractor
from nmoe.moe.gate import Gate, Routing


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

    def __init__(self, *, extractor: Extractor, experts: Sequence[Expert], gate: Gate, mix: Mix) -> None:
        super().__init__()
        self.extractor = extractor
        self.experts = together(experts)
        self.gate = gate
        self.mix = mix

    def forward(
        self,
        images: Float[Tensor, "batch channel height width"],
        *,
        k: int,
        mask: Bool[Tensor, " expert"],
        snr_db: Float[Tensor, "batch expert"] | None = None,
    ) -> MixtureOutput:
        """Answer a batch of images in [0, 1].

        Args:
            images: the batch.
            k: experts asked per sample.
            mask: experts that can be reached.
            snr_db: what the gate is told of the links, in dB, as ``Gate.scores`` takes it; features reach experts unharmed here.
        """
        features = self.extractor(images)
        routing = self.gate(features, k=k, mask=mask, snr_db=snr_db)
        probabilities = combine(pick(self.experts(features), routing), routing.weights, mix=self.mix)
        return MixtureOutput(probabilities=probabilities, routing=routing)


class ExpertOutputs(NamedTuple):
    """The outputs of the experts behind each sample, best first.

    ``experts`` is -1, and weight and outputs are 0, where fewer than k answered; the weights of the others add up to 1.
    """

    outputs: Float[Tensor, "batch k out"]
    experts: Int[Tensor, "batch k"]
    weights: Float[Tensor, "batch k"]

    def mixed(self) -> Float[Tensor, "batch out"]:
        """Return the weighted sum of each sample's outputs."""
        return torch.bmm(self.weights.unsqueeze(1), self.outputs).squeeze(1)  # y' = sum_i G(h)_i H_i(h)


class TopKExperts(nn.Module, ABC):
    """A bank of experts asked by gate scores: the k best of each sample, wherever they run."""

    @abstractmethod
    def forward(self, features: Float[Tensor, "batch dim"], scores: Float[Tensor, "batch expert"], *, k: int) -> ExpertOutputs:
        """Run the k best experts of each sample.

        Args:
            features: inputs of the experts.
            scores: the gate's, one per expert.
            k: experts per sample.
        """


class LocalExperts(TopKExperts):
    """Experts in this process; each runs on the samples that chose it.

    Args:
        experts: modules from [rows, dim] to [rows, out], in the order of the scores.
    """

    def __init__(self, experts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)

    def forward(self, features: Float[Tensor, "batch dim"], scores: Float[Tensor, "batch expert"], *, k: int) -> ExpertOutputs:
        best = scores.topk(k, dim=1)
        rows, slots, parts = [], [], []
        for index, expert in enumerate(self.experts):
            row, slot = (best.indices == index).nonzero(as_tuple=True)
            if len(row):
                rows.append(row)
                slots.append(slot)
                parts.append(expert(features[row]))
        outputs = parts[0].new_zeros(*best.indices.shape, parts[0].shape[1])  # [batch, k, out]
        outputs = outputs.index_put((torch.cat(rows), torch.cat(slots)), torch.cat(parts))
        return ExpertOutputs(outputs=outputs, experts=best.indices, weights=best.values.softmax(dim=1))
