"""Experts: features to class logits, one personal expert a node; and all of them at once.

Source: the personal experts H_i of NMoE (arXiv 2511.01743). Departure: their shape is not known; a two-layer perceptron is our choice.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class Expert(nn.Module):
    """A two-layer perceptron from features to logits.

    Args:
        feature_dim: numbers per feature vector.
        hidden_dim: width of the hidden layer.
        num_classes: logits per sample.
        generator: draws the initial weights.
    """

    def __init__(self, *, feature_dim: int, hidden_dim: int, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.hidden = nn.Linear(feature_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, num_classes)
        for layer in (self.hidden, self.output):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch class"]:
        """Return the logits of each sample."""
        return self.output(functional.relu(self.hidden(features)))  # type: ignore[no-any-return]  # nn.Module calls are untyped


class LinearHead(nn.Module):
    """One linear map from features to logits; the head that FedCE trains and drops.

    Args:
        feature_dim: numbers per feature vector.
        num_classes: logits per sample.
        generator: draws the initial weights.
    """

    def __init__(self, *, feature_dim: int, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.output = nn.Linear(feature_dim, num_classes)
        nn.init.kaiming_normal_(self.output.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(self.output.bias)

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch class"]:
        """Return the logits of each sample."""
        return self.output(features)  # type: ignore[no-any-return]  # nn.Module calls are untyped


class StackedExperts(nn.Module):
    """All experts executed together: two batched matrix products instead of 2 x experts small ones.

    Args:
        experts: experts of one shape, in the order of the gate's outputs.

    Raises:
        ValueError: when there is no expert, or their shapes differ.
    """

    def __init__(self, experts: Sequence[Expert]) -> None:
        super().__init__()
        if not experts:
            raise ValueError("at least one expert is needed, got none")
        shapes = {tuple(expert.hidden.weight.shape) + tuple(expert.output.weight.shape) for expert in experts}
        if len(shapes) != 1:
            raise ValueError(f"experts to be stacked must have one shape, got {sorted(shapes)}")
        states = [expert.state_dict() for expert in experts]
        stacked = {name: nn.Parameter(torch.stack([state[name] for state in states])) for name in states[0]}
        self.hidden_weight, self.hidden_bias = stacked["hidden.weight"], stacked["hidden.bias"]
        self.output_weight, self.output_bias = stacked["output.weight"], stacked["output.bias"]

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch expert class"]:
        """Return every expert's logits for every sample."""
        shared = features.expand(self.hidden_weight.shape[0], -1, -1)  # [expert, batch, dim]
        hidden = torch.baddbmm(self.hidden_bias.unsqueeze(1), shared, self.hidden_weight.transpose(1, 2)).relu()
        logits = torch.baddbmm(self.output_bias.unsqueeze(1), hidden, self.output_weight.transpose(1, 2))
        return logits.transpose(0, 1)  # [batch, expert, class]
