"""Channel-aware gates: experts are chosen by the features and by the links that lead to them.

Source: channel-aware gating (Song, Jing, Zhang, Zhang and Huang, arXiv 2504.00819, ICC Workshops 2025): the gate sees features and the
SNR of every expert's link. Formulas and sizes are a reconstruction (ours; the paper's are not known to us).

| paper | here | unit |
|---|---|---|
| z | features | output of the extractor |
| SNR_i | snr_db | dB; of the link to expert i |
| s_i | levels | 10 dB; SNR_i clamped to [-20, 40] dB, divided by 10 |
| A(z) | output (and trunk) | the feature branch: the naive gate |
| B(s) | branch | the SNR branch |

    additive   score_i = A(z)_i + b(s_i),                              b(s) = c . relu(w s + v)
    joint      score_i = A(z)_i + c . relu(U z + W [s_i, mean s] + v)

Both forms are kept, as the source's is unknown. With U = 0 and no weight on the mean the joint form is the additive one.

Departures: the weights of the SNR branch are shared over experts, so that experts may come and go, and permuting experts with their SNRs
permutes scores; links of equal quality change no routing. c starts at zero: a fresh gate, like one that is told of no links, is the naive
gate. Kinks of the hidden units start spread over the range of SNRs; with biases of zero they would all lie at 0 dB.

Links without measurement (NaN) count as the mean, in dB, of the sample's measured ones. A perfect link (infinity: a node's own expert,
which no radio lies before) is clamped like any other but is no measurement: a node that knows its own expert alone must not take strangers
for perfect. Where nothing is measured, the branch adds nothing.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from nmoe.core.units import HIGHEST_GATE_SNR_DB, LOWEST_GATE_SNR_DB
from nmoe.moe.gate import ColumnGate, Gate, check_snr

DB_PER_LEVEL = 10.0


class LinkLevels(NamedTuple):
    """SNRs as the branch sees them, in 10 dB.

    Attributes:
        levels: of every link; without measurement, the mean.
        mean: of the sample's measured links; 0 where there are none.
        measured: whether the sample has any.
    """

    levels: Float[Tensor, "batch link"]
    mean: Float[Tensor, "batch 1"]
    measured: Bool[Tensor, "batch 1"]


def link_levels(snr_db: Float[Tensor, "batch link"]) -> LinkLevels:
    """Scale SNRs and fill in those never measured.

    Args:
        snr_db: in dB; infinity for a perfect link, NaN for one never measured.
    """
    unknown = snr_db.isnan()
    measured = ~unknown & (snr_db != math.inf)
    levels = snr_db.nan_to_num(nan=0.0).clamp(LOWEST_GATE_SNR_DB, HIGHEST_GATE_SNR_DB) / DB_PER_LEVEL
    count = measured.sum(dim=1, keepdim=True)  # [batch, 1]
    mean = (levels * measured).sum(dim=1, keepdim=True) / count.clamp_min(1)
    return LinkLevels(levels=torch.where(unknown, mean, levels), mean=mean, measured=count > 0)


class LinkBranch(nn.Module):
    """What links are worth: a two-layer perceptron on each link's SNR, one for all experts.

    Args:
        hidden_dim: hidden units, at least 1.
        feature_dim: numbers per feature vector where features and the mean SNR have a say (the joint form); 0 for the link's SNR alone.
        generator: draws the initial weights; the output layer starts at zero.

    Raises:
        ValueError: when ``hidden_dim`` is below 1.
    """

    def __init__(self, *, hidden_dim: int, feature_dim: int, generator: torch.Generator) -> None:
        if hidden_dim < 1:
            raise ValueError(f"hidden_dim must be at least 1, got {hidden_dim}")
        super().__init__()
        self.levels = nn.Linear(2 if feature_dim else 1, hidden_dim)
        self.features = nn.Linear(feature_dim, hidden_dim, bias=False) if feature_dim else None
        self.output = nn.Linear(hidden_dim, 1, bias=False)  # a bias would raise all experts alike
        nn.init.normal_(self.levels.weight, generator=generator)
        knots = torch.empty_like(self.levels.weight).uniform_(
            LOWEST_GATE_SNR_DB / DB_PER_LEVEL, HIGHEST_GATE_SNR_DB / DB_PER_LEVEL, generator=generator
        )
        with torch.no_grad():
            self.levels.bias.copy_(-(self.levels.weight * knots).sum(dim=1))
        if self.features is not None:
            nn.init.normal_(self.features.weight, std=feature_dim**-0.5, generator=generator)
        nn.init.zeros_(self.output.weight)

    def forward(self, features: Float[Tensor, "batch dim"], snr_db: Float[Tensor, "batch link"]) -> Float[Tensor, "batch link"]:
        """Return what every link adds to its expert's score; 0 for a sample without any measured link."""
        levels, mean, measured = link_levels(snr_db.to(features.dtype))
        inputs = levels.unsqueeze(2)  # [batch, link, 1]
        if self.features is None:
            hidden = self.levels(inputs)  # [batch, link, hidden]
        else:
            inputs = torch.cat((inputs, mean.unsqueeze(1).expand_as(inputs)), dim=2)  # [batch, link, 2]
            hidden = self.levels(inputs) + self.features(features).unsqueeze(1)
        scores: Tensor = self.output(functional.relu(hidden)).squeeze(2)  # [batch, link]
        return scores * measured


class ChannelAwareGate(ColumnGate):
    """A gate that sees features and links.

    Args:
        feature_dim: numbers per feature vector.
        num_experts: experts scored.
        trunk_dim: width of the feature branch's hidden layer; 0 for a linear one.
        hidden_dim: hidden units of the SNR branch; 16 is ours.
        joint: whether the SNR branch sees features and the mean SNR as well (the joint form), or an expert's own SNR alone (additive).
        generator: draws the initial weights; a fresh gate treats every expert alike.
    """

    def __init__(
        self, *, feature_dim: int, num_experts: int, trunk_dim: int = 0, hidden_dim: int = 16, joint: bool, generator: torch.Generator
    ) -> None:
        super().__init__(feature_dim=feature_dim, num_experts=num_experts, trunk_dim=trunk_dim, generator=generator)
        self.branch = LinkBranch(hidden_dim=hidden_dim, feature_dim=feature_dim if joint else 0, generator=generator)

    def scores(
        self,
        features: Float[Tensor, "batch dim"],
        *,
        snr_db: Float[Tensor, "batch expert"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch expert"]:
        scores: Tensor = self.output(self.hidden(features))  # A(z)
        if snr_db is None:
            return scores
        check_snr(snr_db, batch=len(features), num_experts=self.num_experts)
        return scores + self.link_scores(features, snr_db)

    def link_scores(self, features: Float[Tensor, "batch dim"], snr_db: Float[Tensor, "batch link"]) -> Float[Tensor, "batch link"]:
        return self.branch(features, snr_db)  # type: ignore[no-any-return]  # nn.Module calls are untyped


class SnrGate(Gate):
    """Control: a gate that sees links alone; told of none, it finds all experts equal.

    Args:
        feature_dim: numbers per feature vector, which it ignores.
        num_experts: experts scored.
        hidden_dim: hidden units of the SNR branch; 16 is ours.
        generator: draws the initial weights.
    """

    def __init__(self, *, feature_dim: int, num_experts: int, hidden_dim: int = 16, generator: torch.Generator) -> None:
        super().__init__(feature_dim=feature_dim, num_experts=num_experts)
        self.branch = LinkBranch(hidden_dim=hidden_dim, feature_dim=0, generator=generator)

    def scores(
        self,
        features: Float[Tensor, "batch dim"],
        *,
        snr_db: Float[Tensor, "batch expert"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch expert"]:
        if snr_db is None:
            return features.new_zeros(len(features), self.num_experts)
        check_snr(snr_db, batch=len(features), num_experts=self.num_experts)
        return self.link_scores(features, snr_db)

    def hidden(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch hidden"]:
        return features[:, :0]

    @property
    def columns(self) -> Float[Tensor, "expert hidden"]:
        return torch.zeros(self.num_experts, 0)

    def link_scores(self, features: Float[Tensor, "batch dim"], snr_db: Float[Tensor, "batch link"]) -> Float[Tensor, "batch link"]:
        return self.branch(features, snr_db)  # type: ignore[no-any-return]  # nn.Module calls are untyped
