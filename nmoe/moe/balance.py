"""Balance: how evenly a gate uses its experts over a batch, and the penalty that keeps it from collapsing onto a few.

Sources: Shazeer et al., Outrageously large neural networks, ICLR 2017, eq. (6) and (7) (importance, its squared coefficient of variation,
load); channel-aware gating (arXiv 2504.00819) trains with a regulariser against collapse, whose form is not known to us.

| source | here | meaning |
|---|---|---|
| G(x) | weights | a sample's weight of every expert, 0 for those not chosen; rows add up to 1 |
| Importance(X) | importance | an expert's weights summed over the batch |
| Load(X) | expert_load | samples that chose the expert |
| | entropy | of the batch's mean gate, in nats; from 0 (one expert takes all) to log n (all alike) |

Departures: load is the plain count, not Shazeer's smooth estimate, which needs a noisy gate. All are of the batch on average: links differ
from sample to sample, and balance within a sample would fight the preference for good links.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nmoe.moe.gate import Routing


def importance(weights: Float[Tensor, "batch expert"]) -> Float[Tensor, " expert"]:
    """Return each expert's weight, summed over the batch."""
    return weights.sum(dim=0)  # eq. (6)


def importance_cv2(weights: Float[Tensor, "batch expert"]) -> Float[Tensor, ""]:
    """Squared coefficient of variation of the experts' importance: 0 when all are used alike (Shazeer et al., eq. (7))."""
    summed = importance(weights)
    return summed.var(unbiased=False) / summed.mean().square()


def expert_load(routing: Routing, *, num_experts: int) -> Int[Tensor, " expert"]:
    """Return how many samples chose each expert; divided by the batch it is the share of samples, which adds up to k."""
    return torch.bincount(routing.experts.flatten(), minlength=num_experts)


def gate_entropy(weights: Float[Tensor, "batch expert"]) -> Float[Tensor, ""]:
    """Return the entropy of the batch's mean gate in nats, between 0 and log of the number of experts.

    Raises:
        ValueError: when the batch is empty.
    """
    if not len(weights):
        raise ValueError("the weights of at least one sample are wanted, got none")
    mean = weights.mean(dim=0)
    entropy: Tensor = torch.special.entr(mean.clamp_min(torch.finfo(mean.dtype).tiny)).sum()  # at exactly 0 the slope would be infinite
    return entropy
