"""Spectral contrastive learning with an external correlation matrix: the local objective of FedSC.

Source: Jing, Yu, Zhang, Zhang, "FedSC: Provable Federated Self-supervised Learning with Spectral Contrastive Objective over Non-i.i.d.
Data", ICML 2024 (arXiv 2405.03949), and its public code; the loss is HaoChen et al., NeurIPS 2021.

| paper | here | meaning |
|---|---|---|
| Z(X; theta) | embeddings | output of extractor and projection head, clipped to radius sqrt(mu) |
| R_j, R+_j | correlation | E[z z^T], d x d |
| R~_{-j} | external | noisy mean of the other nodes' matrices, a constant in the round |
| alpha | alpha | weight of the node's own negatives |
| mu | mu | bound on the squared norm of an embedding |

Departures: the source's noise is not symmetrised; ``nmoe.learn.privacy`` says what we do. Everything here is as in the code.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class ProjectionHead(nn.Module):
    """Linear, ReLU, linear: features to embeddings; dropped after stage 1.

    Args:
        feature_dim: numbers per feature vector; the hidden layer has twice as many.
        embedding_dim: numbers per embedding, d.
        generator: draws the initial weights.
    """

    def __init__(self, *, feature_dim: int, embedding_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.hidden = nn.Linear(feature_dim, 2 * feature_dim)
        self.output = nn.Linear(2 * feature_dim, embedding_dim)
        for layer in (self.hidden, self.output):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch embedding"]:
        """Project features to embeddings (not yet clipped)."""
        return self.output(functional.relu(self.hidden(features)))  # type: ignore[no-any-return]  # nn.Module calls are untyped


def clip(embeddings: Float[Tensor, "batch embedding"], *, mu: float) -> Float[Tensor, "batch embedding"]:
    """Project embeddings into the ball of radius sqrt(mu): z if ||z|| < sqrt(mu), else sqrt(mu) z / ||z||.

    Args:
        embeddings: any embeddings.
        mu: bound on the squared norm, above 0.

    Raises:
        ValueError: when ``mu`` is not above 0.
    """
    if not mu > 0:
        raise ValueError(f"mu must be above 0, got {mu}")
    norms: Tensor = embeddings.norm(dim=1, keepdim=True)
    return embeddings * (math.sqrt(mu) / norms.clamp(min=math.sqrt(mu)))


def correlation(embeddings: Float[Tensor, "batch embedding"]) -> Float[Tensor, "embedding embedding"]:
    """Return R = E[z z^T] over the batch."""
    return embeddings.T @ embeddings / embeddings.shape[0]


def spectral_contrastive_loss(
    first: Float[Tensor, "batch embedding"],
    second: Float[Tensor, "batch embedding"],
    *,
    external: Float[Tensor, "embedding embedding"] | None,
    alpha: float,
) -> Float[Tensor, ""]:
    """Return FedSC's local loss on one batch of clipped embeddings of two views.

    L_j = -(2/B) sum_b z1_b^T z0_b + alpha tr(R R) + 2 (1 - alpha) tr(R R~_{-j}), with R over both views.
    Without an external matrix the negatives are ||R||_F^2, the plain loss on local data.

    Args:
        first: embeddings of the first view, norms at most sqrt(mu).
        second: embeddings of the second view of the same images.
        external: mean of the other nodes' matrices, or None before any exchange.
        alpha: weight of the own negatives, in [0, 1].

    Raises:
        ValueError: when ``alpha`` is outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    positives: Tensor = -2 * (first * second).sum() / first.shape[0]
    own: Tensor = correlation(torch.cat((first, second)))
    if external is None:
        return positives + own.square().sum()
    return positives + alpha * own.square().sum() + 2 * (1 - alpha) * (own * external.T.detach()).sum()


def annealed_alpha(round: int, rounds: int, *, last: float) -> float:
    """Return alpha_t = 1 - (1 - last) t / T for round t = 0 .. T-1; the source's code has last = 0.2."""
    return 1 - (1 - last) * round / rounds
