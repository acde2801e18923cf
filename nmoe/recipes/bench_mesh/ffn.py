"""The computation every system carries out: a linear gate at the caller, four feed-forward experts behind it, top 2 of 4.

The expert is hivemind's ``ffn`` (hivemind 1.1.12, moe/server/layers/common.py, ``FeedforwardBlock``): its parameter names, its tanh GELU
and its epsilon of 1e-12, so that hivemind's own server can load the same weights. This file imports torch and nothing else, because it
also runs in the interpreter of a peer.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

NUM_EXPERTS, NUM_CHOSEN = 4, 2
SEED = 0


class FfnExpert(nn.Module):
    """LayerNorm(x + W2 gelu(W1 x)), hidden -> 4 hidden -> hidden.

    Args:
        hidden: width of input and output, at least 1.
        generator: source of the weights.
    """

    def __init__(self, *, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.ffn = nn.Linear(hidden, 4 * hidden)
        self.ffn_output = nn.Linear(4 * hidden, hidden)
        self.layer_norm = nn.LayerNorm(hidden, eps=1e-12)
        for layer in (self.ffn, self.ffn_output):
            _draw(layer, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output [batch, hidden] for inputs [batch, hidden]."""
        inner = functional.gelu(self.ffn(x), approximate="tanh")  # [batch, 4 hidden]
        return cast("Tensor", self.layer_norm(x + self.ffn_output(inner)))


class Share(NamedTuple):
    """What one chosen expert has to do for a batch."""

    expert: int
    inputs: Tensor  # [rows, hidden]


class Plan(NamedTuple):
    """Where a batch goes. The rows of all shares together, in order, are the batch's (sample, choice) pairs sorted by expert."""

    shares: list[Share]
    samples: Tensor  # [batch * k] the sample that each row belongs to
    weights: Tensor  # [batch * k, 1]


class FfnGate(nn.Module):
    """Linear scores, the best ``NUM_CHOSEN`` of them, softmax over the chosen."""

    def __init__(self, *, hidden: int) -> None:
        super().__init__()
        self.scores = nn.Linear(hidden, NUM_EXPERTS)
        _draw(self.scores, torch.Generator().manual_seed(SEED))

    def plan(self, x: Tensor) -> Plan:
        """Group a batch [batch, hidden] by chosen expert, one share per expert that has any sample."""
        best, chosen = self.scores(x).topk(NUM_CHOSEN)  # [batch, k]
        experts = chosen.flatten()  # [batch * k]
        order = experts.argsort()
        samples = order // NUM_CHOSEN
        rows = x[samples]  # [batch * k, hidden]
        counts = torch.bincount(experts, minlength=NUM_EXPERTS).tolist()
        shares = [Share(expert, part) for expert, part in enumerate(rows.split(counts)) if len(part)]
        return Plan(shares, samples, best.softmax(dim=1).flatten()[order].unsqueeze(1))


def combine(plan: Plan, outputs: Sequence[Tensor]) -> Tensor:
    """Return the weighted sum [batch, hidden] of the shares' outputs, which are in the plan's order."""
    rows = torch.cat(list(outputs)) * plan.weights  # [batch * k, hidden]
    batch = len(rows) // NUM_CHOSEN
    return rows.new_zeros(batch, rows.shape[1]).index_add_(0, plan.samples, rows)


def make_experts(hidden: int) -> list[FfnExpert]:
    """Return the four experts; the same weights in every process."""
    return [FfnExpert(hidden=hidden, generator=torch.Generator().manual_seed(SEED + 1 + expert)).eval() for expert in range(NUM_EXPERTS)]


def make_inputs(batch: int, hidden: int, count: int) -> list[Tensor]:
    """Return ``count`` batches [batch, hidden]; the same in every process."""
    generator = torch.Generator().manual_seed(SEED + 1_000 + batch)
    return [torch.randn(batch, hidden, generator=generator) for _ in range(count)]


class LocalMoe(nn.Module):
    """The whole mixture in one process: the reference every system must equal."""

    def __init__(self, *, hidden: int) -> None:
        super().__init__()
        self.gate = FfnGate(hidden=hidden)
        self.experts = nn.ModuleList(make_experts(hidden))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return the mixture's output [batch, hidden] for inputs [batch, hidden]."""
        plan = self.gate.plan(x)
        return combine(plan, [self.experts[share.expert](share.inputs) for share in plan.shares])


def local_moe(x: Tensor) -> Tensor:
    """Return the reference output [batch, hidden] for inputs [batch, hidden]."""
    return cast("Tensor", LocalMoe(hidden=x.shape[1])(x))


def _draw(layer: nn.Linear, generator: torch.Generator) -> None:
    """Fill a layer as torch does by default, from a generator."""
    bound = 1 / math.sqrt(layer.in_features)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
