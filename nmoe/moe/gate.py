"""Gates: which experts a sample asks, and with what weight.

Source: NMoE (arXiv 2511.01743), G(h) = Softmax(TopK(h W_G + eps, k)); noise as in Shazeer et al., ICLR 2017.

| paper | here | meaning |
|---|---|---|
| h | features | output of the shared extractor |
| W_G | output (and trunk) | the gate's weights, a column per expert |
| eps | generator | N(0,1) * softplus(h W_noise), in training only |
| k | k | experts asked per sample |

Departures: the paper prints eps without its distribution; the standard reading is taken, off at test time; the recipes
train without it (top-k training reached 0.947 without and 0.939 with noise in the project's trial on digits). An optional hidden layer
(``trunk``) exists because "partially synchronised" gates need a part to keep at home; without it the gate is the paper's linear map.
Gates that see the channel are in ``nmoe.moe.channel_gate``.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional


class Routing(NamedTuple):
    """The experts chosen for each sample, best first, and their weights, which add up to 1."""

    experts: Int[Tensor, "batch k"]
    weights: Float[Tensor, "batch k"]

    def dense(self, num_experts: int) -> Float[Tensor, "batch expert"]:
        """Spread the weights over all experts; those not chosen get 0."""
        zeros = self.weights.new_zeros(self.weights.shape[0], num_experts)
        return zeros.scatter(1, self.experts, self.weights)


def route(scores: Float[Tensor, "batch expert"], *, k: int, mask: Bool[Tensor, " expert"]) -> Routing:
    """Keep the k best reachable experts of each sample and normalise their scores.

    Args:
        scores: one score per sample and expert.
        k: experts to keep, at least 1 and at most the number of reachable ones.
        mask: true for experts that can be reached.

    Raises:
        ValueError: when k is larger than the number of reachable experts or below 1.
    """
    reachable = int(mask.sum())
    if not 1 <= k <= reachable:
        raise ValueError(f"k must be between 1 and the {reachable} reachable experts, got {k}")
    best = scores.masked_fill(~mask, -math.inf).topk(k, dim=1)
    return Routing(experts=best.indices, weights=best.values.softmax(dim=1))


class Gate(nn.Module, ABC):
    """A score for every expert, and top-k routing by it.

    A score is a column of the expert's own, applied to what the gate makes of the features, plus what the expert's link is worth; so an
    expert that joins later needs a column only (``nmoe.moe.newcomer``).

    Args:
        feature_dim: numbers per feature vector.
        num_experts: experts scored.

    Attributes:
        sees_links: whether scores depend on links, so that it is worth finding out what they are like.

    Raises:
        ValueError: when one of them is below 1.
    """

    sees_links: ClassVar[bool] = True

    def __init__(self, *, feature_dim: int, num_experts: int) -> None:
        if feature_dim < 1 or num_experts < 1:
            raise ValueError(f"feature_dim and num_experts must be at least 1, got {feature_dim} and {num_experts}")
        super().__init__()
        self.feature_dim = feature_dim
        self.num_experts = num_experts

    @abstractmethod
    def scores(
        self,
        features: Float[Tensor, "batch dim"],
        *,
        snr_db: Float[Tensor, "batch expert"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch expert"]:
        """Score every expert.

        Args:
            features: output of the extractor.
            snr_db: signal-to-noise ratio of the link to each expert in dB; infinity for a perfect link, NaN for one never measured; None
                where all are perfect.
            generator: draws the noise of a gate that has any; None (test time) for no noise.

        Raises:
            ValueError: when there is not one SNR per sample and expert.
        """

    @abstractmethod
    def hidden(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch hidden"]:
        """Return what the columns see; of width 0 where the gate does not look at features."""

    @property
    @abstractmethod
    def columns(self) -> Float[Tensor, "expert hidden"]:
        """The weights of every expert's column."""

    @abstractmethod
    def link_scores(self, features: Float[Tensor, "batch dim"], snr_db: Float[Tensor, "batch link"]) -> Float[Tensor, "batch link"]:
        """Return what links add to scores, of any number of experts; 0 where the gate does not look at links."""

    def forward(
        self,
        features: Float[Tensor, "batch dim"],
        *,
        k: int,
        mask: Bool[Tensor, " expert"],
        snr_db: Float[Tensor, "batch expert"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Routing:
        """Route each sample to its k best reachable experts; see ``route`` and ``scores``."""
        return route(self.scores(features, snr_db=snr_db, generator=generator), k=k, mask=mask)


def check_snr(snr_db: Tensor, *, batch: int, num_experts: int) -> None:
    """Check that there is one SNR per sample and expert.

    Raises:
        ValueError: when there is not.
    """
    if snr_db.shape != (batch, num_experts):
        raise ValueError(f"one SNR per sample and expert wanted, [{batch}, {num_experts}], got {list(snr_db.shape)}")


class ColumnGate(Gate, ABC):
    """A gate that scores features by a linear map, straight or behind one hidden layer.

    Args:
        feature_dim: numbers per feature vector.
        num_experts: experts scored.
        trunk_dim: width of the hidden layer; 0 for the paper's linear gate.
        generator: draws the initial weights of the trunk; the output layer starts at zero, so that every expert starts equal.
    """

    def __init__(self, *, feature_dim: int, num_experts: int, trunk_dim: int, generator: torch.Generator) -> None:
        super().__init__(feature_dim=feature_dim, num_experts=num_experts)
        self.trunk = nn.Linear(feature_dim, trunk_dim) if trunk_dim else None
        if self.trunk is not None:
            nn.init.kaiming_normal_(self.trunk.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(self.trunk.bias)
        self.output = nn.Linear(trunk_dim or feature_dim, num_experts)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def hidden(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch hidden"]:
        return features if self.trunk is None else functional.relu(self.trunk(features))

    @property
    def columns(self) -> Float[Tensor, "expert hidden"]:
        return self.output.weight


class TopKGate(ColumnGate):
    """A linear or two-layer gate over all experts with noisy top-k routing; it sees features and no links (the naive gate).

    Args:
        feature_dim: numbers per feature vector.
        num_experts: experts scored.
        trunk_dim: width of the hidden layer; 0 for the paper's linear gate.
        noisy: whether the gate has a learned noise scale.
        generator: draws the initial weights of the trunk; the output layer starts at zero, so that every expert starts equal.
    """

    sees_links = False

    def __init__(self, *, feature_dim: int, num_experts: int, trunk_dim: int, noisy: bool, generator: torch.Generator) -> None:
        super().__init__(feature_dim=feature_dim, num_experts=num_experts, trunk_dim=trunk_dim, generator=generator)
        self.noise = nn.Linear(trunk_dim or feature_dim, num_experts) if noisy else None
        if self.noise is not None:
            nn.init.zeros_(self.noise.weight)
            nn.init.zeros_(self.noise.bias)

    def scores(
        self,
        features: Float[Tensor, "batch dim"],
        *,
        snr_db: Float[Tensor, "batch expert"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch expert"]:
        if snr_db is not None:
            check_snr(snr_db, batch=len(features), num_experts=self.num_experts)
        hidden = self.hidden(features)
        scores: Tensor = self.output(hidden)
        if self.noise is None or generator is None:
            return scores
        normal = torch.randn(scores.shape, generator=generator, dtype=scores.dtype)
        return scores + normal * functional.softplus(self.noise(hidden))

    def link_scores(self, features: Float[Tensor, "batch dim"], snr_db: Float[Tensor, "batch link"]) -> Float[Tensor, "batch link"]:
        return features.new_zeros(snr_db.shape)


def random_uniform(batch: int, *, k: int, mask: Bool[Tensor, " expert"], generator: torch.Generator) -> Routing:
    """Control: k random reachable experts per sample, equal weights."""
    scores = torch.rand(batch, mask.shape[0], generator=generator)
    chosen = route(scores, k=k, mask=mask).experts
    return Routing(experts=chosen, weights=torch.full(chosen.shape, 1 / k))


def all_uniform(batch: int, *, mask: Bool[Tensor, " expert"]) -> Routing:
    """Control: every reachable expert, equal weights; a ValueError without any."""
    reachable = mask.nonzero().squeeze(1)  # [k]
    if not len(reachable):
        raise ValueError("at least one expert must be reachable, got none")
    return Routing(experts=reachable.expand(batch, -1), weights=torch.full((batch, len(reachable)), 1 / len(reachable)))


def oracle(logits: Float[Tensor, "batch expert class"], labels: Int[Tensor, " batch"], *, mask: Bool[Tensor, " expert"]) -> Routing:
    """Control: per sample the one reachable expert that gives the true label the highest probability."""
    truth = logits.softmax(dim=2).gather(2, labels.view(-1, 1, 1).expand(-1, logits.shape[1], 1)).squeeze(2)  # [batch, expert]
    return route(truth, k=1, mask=mask)
