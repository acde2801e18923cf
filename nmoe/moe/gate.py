"""Gates: which experts a sample asks, and with what weight.

Source: NMoE (arXiv 2511.01743), G(h) = Softmax(TopK(h W_G + eps, k)); noise as in Shazeer et al., ICLR 2017.

| paper | here | meaning |
|---|---|---|
| h | features | output of the shared extractor |
| W_G | output (and trunk) | the gate's weights |
| eps | generator | N(0,1) * softplus(h W_noise), in training only |
| k | k | experts asked per sample |

Departures: the paper prints eps without its distribution; the standard reading is taken, off at test time; the recipes
train without it (top-k training reached 0.947 without and 0.939 with noise in the project's trial on digits). An optional hidden layer
(``trunk``) exists because "partially synchronised" gates need a part to keep at home; without it the gate is the paper's linear map.
"""

import math
from typing import NamedTuple

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


class TopKGate(nn.Module):
    """A linear or two-layer gate over all experts with noisy top-k routing.

    Args:
        feature_dim: numbers per feature vector.
        num_experts: experts scored.
        trunk_dim: width of the hidden layer; 0 for the paper's linear gate.
        noisy: whether the gate has a learned noise scale.
        generator: draws the initial weights of the trunk; the output layer starts at zero, so that every expert starts equal.
    """

    def __init__(self, *, feature_dim: int, num_experts: int, trunk_dim: int, noisy: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.trunk = nn.Linear(feature_dim, trunk_dim) if trunk_dim else None
        if self.trunk is not None:
            nn.init.kaiming_normal_(self.trunk.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(self.trunk.bias)
        self.output = nn.Linear(trunk_dim or feature_dim, num_experts)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.noise = nn.Linear(trunk_dim or feature_dim, num_experts) if noisy else None
        if self.noise is not None:
            nn.init.zeros_(self.noise.weight)
            nn.init.zeros_(self.noise.bias)

    def scores(self, features: Float[Tensor, "batch dim"], *, generator: torch.Generator | None = None) -> Float[Tensor, "batch expert"]:
        """Score every expert.

        Args:
            features: output of the extractor.
            generator: draws the noise; None (test time) for no noise.
        """
        hidden = features if self.trunk is None else functional.relu(self.trunk(features))
        scores: Tensor = self.output(hidden)
        if self.noise is None or generator is None:
            return scores
        normal = torch.randn(scores.shape, generator=generator, dtype=scores.dtype)
        return scores + normal * functional.softplus(self.noise(hidden))

    def forward(
        self,
        features: Float[Tensor, "batch dim"],
        *,
        k: int,
        mask: Bool[Tensor, " expert"],
        generator: torch.Generator | None = None,
    ) -> Routing:
        """Route each sample to its k best reachable experts; see ``route`` and ``scores``."""
        return route(self.scores(features, generator=generator), k=k, mask=mask)


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


def importance_cv2(weights: Float[Tensor, "batch expert"]) -> Float[Tensor, ""]:
    """Squared coefficient of variation of the experts' summed weights: 0 when all are used alike (Shazeer et al., eq. (7))."""
    importance = weights.sum(dim=0)
    return importance.var(unbiased=False) / importance.mean().square()
