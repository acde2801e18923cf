"""Gate training: the loss of a mixture whose experts are frozen, given only their logits.

Source: NMoE (arXiv 2511.01743), stage 3; the mixture y' = sum_i G(h)_i H_i(h).

Departures: the loss is a reconstruction (ours; the paper's is not known to us). No gradient passes through an expert: its logits are
constants that came over the network.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from nmoe.moe import Mix, Routing, combine, importance_cv2, pick


def gate_loss(
    routing: Routing, logits: Float[Tensor, "batch expert class"], labels: Int[Tensor, " batch"], *, mix: Mix, balance: float
) -> Float[Tensor, ""]:
    """Return the negative log-likelihood of the mixture, plus ``balance`` times the importance's squared coefficient of variation.

    Args:
        routing: the gate's choice, with gradient in its weights.
        logits: every expert's logits, constants.
        labels: true classes.
        mix: what is averaged.
        balance: weight of the balance term, 0 for none.
    """
    probabilities = combine(pick(logits, routing), routing.weights, mix=mix)
    loss = functional.nll_loss(probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log(), labels)
    if balance:
        loss = loss + balance * importance_cv2(routing.dense(logits.shape[1]))
    return loss
