"""Experts: features to class logits, one personal expert a node; and all of them at once.

Source: the personal experts H_i of NMoE (arXiv 2511.01743). Departure: their shape is not known; a two-layer perceptron is our choice.
Experts that are the rest of a network cut in two stand beside its front (``nmoe.moe.backbone``).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class Expert(nn.Module, ABC):
    """Features to logits.

    Args:
        feature_dim: numbers per feature vector.
        num_classes: logits per sample.

    Raises:
        ValueError: when one of them is below 1.
    """

    def __init__(self, *, feature_dim: int, num_classes: int) -> None:
        if feature_dim < 1 or num_classes < 1:
            raise ValueError(f"feature_dim and num_classes must be at least 1, got {feature_dim} and {num_classes}")
        super().__init__()
        self.feature_dim = feature_dim
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch class"]:
        """Return the logits of each sample."""


class MlpExpert(Expert):
    """A two-layer perceptron from features to logits.

    Args:
        feature_dim: numbers per feature vector.
        hidden_dim: width of the hidden layer.
        num_classes: logits per sample.
        generator: draws the initial weights.
    """

    def __init__(self, *, feature_dim: int, hidden_dim: int, num_classes: int, generator: torch.Generator) -> None:
        super().__init__(feature_dim=feature_dim, num_classes=num_classes)
        self.hidden = nn.Linear(feature_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, num_classes)
        for layer in (self.hidden, self.output):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch class"]:
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


class Experts(nn.Module, ABC):
    """All experts of a mixture, in the order of the gate's outputs.

    Args:
        num_experts: how many they are.
    """

    def __init__(self, *, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch expert class"]:
        """Return every expert's logits for every sample."""
        return self.each(features.unsqueeze(1).expand(-1, self.num_experts, -1))

    @abstractmethod
    def each(self, features: Float[Tensor, "batch expert dim"]) -> Float[Tensor, "batch expert class"]:
        """Return every expert's logits for what reached it of every sample, such as over a noisy link."""


class StackedExperts(Experts):
    """Perceptrons executed together: two batched matrix products instead of 2 x experts small ones; their weights are copied.

    Args:
        experts: experts of one shape.

    Raises:
        ValueError: when there is no expert, or their shapes differ.
    """

    def __init__(self, experts: Sequence[MlpExpert]) -> None:
        super().__init__(num_experts=len(experts))
        if not experts:
            raise ValueError("at least one expert is needed, got none")
        shapes = {_shape(expert) for expert in experts}
        if len(shapes) != 1:
            raise ValueError(f"experts to be stacked must have one shape, got {sorted(shapes)}")
        states = [expert.state_dict() for expert in experts]
        stacked = {name: nn.Parameter(torch.stack([state[name] for state in states])) for name in states[0]}
        self.hidden_weight, self.hidden_bias = stacked["hidden.weight"], stacked["hidden.bias"]
        self.output_weight, self.output_bias = stacked["output.weight"], stacked["output.bias"]

    def each(self, features: Float[Tensor, "batch expert dim"]) -> Float[Tensor, "batch expert class"]:
        rows = features.transpose(0, 1)  # [expert, batch, dim]
        hidden = torch.baddbmm(self.hidden_bias.unsqueeze(1), rows, self.hidden_weight.transpose(1, 2)).relu()
        logits = torch.baddbmm(self.output_bias.unsqueeze(1), hidden, self.output_weight.transpose(1, 2))
        return logits.transpose(0, 1)  # [batch, expert, class]


class SeparateExperts(Experts):
    """Experts of any kind, executed one after another; they are the given modules themselves, not copies.

    Args:
        experts: experts with the same numbers of features and classes.

    Raises:
        ValueError: when there is no expert, or their numbers of features or classes differ.
    """

    def __init__(self, experts: Sequence[Expert]) -> None:
        super().__init__(num_experts=len(experts))
        if not experts:
            raise ValueError("at least one expert is needed, got none")
        sizes = {(expert.feature_dim, expert.num_classes) for expert in experts}
        if len(sizes) != 1:
            raise ValueError(f"experts must agree on their numbers of features and classes, got {sorted(sizes)}")
        self.experts = nn.ModuleList(experts)

    def each(self, features: Float[Tensor, "batch expert dim"]) -> Float[Tensor, "batch expert class"]:
        return torch.stack([expert(features[:, place]) for place, expert in enumerate(self.experts)], dim=1)


def together(experts: Sequence[Expert]) -> Experts:
    """Put experts into one module: stacked copies where all are perceptrons of one shape, else the experts themselves, one by one.

    Args:
        experts: experts in the order of the gate's outputs.

    Raises:
        ValueError: when there is no expert, or their numbers of features or classes differ.
    """
    perceptrons = [expert for expert in experts if isinstance(expert, MlpExpert)]
    if len(perceptrons) == len(experts) and len({_shape(expert) for expert in perceptrons}) == 1:
        return StackedExperts(perceptrons)
    return SeparateExperts(experts)


def _shape(expert: MlpExpert) -> tuple[int, int, int]:
    return expert.feature_dim, expert.hidden.out_features, expert.num_classes
