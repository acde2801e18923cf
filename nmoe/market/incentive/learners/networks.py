"""Networks: what a role's policy and critic are, plain torch.

Source: multilayer perceptrons of two hidden layers of 128 tanh units (specification of this project, section 3.6), made as PPO's usually
are: orthogonal weights, and a last layer of nearly none so that training begins in the middle of every range.

Departures: the standard deviation is not learned; it falls as the training says (``ppo``).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

FIRST_LOG_STD = -1.0


class Gaussian(NamedTuple):
    """A normal distribution per action, before it is squashed into the action's range."""

    loc: Float[Tensor, "*batch action"]
    scale: Float[Tensor, "*batch action"]


class GaussianPolicy(nn.Module):
    """What a role does, given what its agents observe; shared by all agents of the role.

    Args:
        num_features: observed by an agent.
        num_actions: of an agent.
        width: of both hidden layers.
        generator: draws the first weights.
    """

    def __init__(self, *, num_features: int, num_actions: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.body = _perceptron(num_features, num_actions, width, last_gain=0.01, generator=generator)
        self.register_buffer("log_std", torch.full((num_actions,), FIRST_LOG_STD))
        self.log_std: Tensor

    def forward(self, features: Float[Tensor, "*batch feature"]) -> Gaussian:
        """Return the distribution of raw actions."""
        loc = self.body(features)
        return Gaussian(loc, self.log_std.exp().expand_as(loc))


class CentralCritic(nn.Module):
    """What an agent can expect, given what all agents observe; used in training alone.

    Args:
        num_features: of the state as seen from an agent.
        width: of both hidden layers.
        generator: draws the first weights.
    """

    def __init__(self, *, num_features: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.body = _perceptron(num_features, 1, width, last_gain=1.0, generator=generator)

    def forward(self, features: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch 1"]:
        """Return the value of the state to each agent."""
        values: Tensor = self.body(features)
        return values


def log_density(policy: Gaussian, raw: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch"]:
    """Return the log density of raw actions.

    Squashing multiplies old and new densities by the same factor, so ratios of these are ratios of the squashed Gaussian's.
    """
    standard = (raw - policy.loc) / policy.scale
    return (-0.5 * standard**2 - policy.scale.log() - 0.5 * math.log(2 * math.pi)).sum(dim=-1)


def _perceptron(num_inputs: int, num_outputs: int, width: int, *, last_gain: float, generator: torch.Generator) -> nn.Sequential:
    """Return two hidden layers of tanh units and a linear one."""
    layers = [nn.Linear(num_inputs, width), nn.Linear(width, width), nn.Linear(width, num_outputs)]
    for layer, gain in zip(layers, (5 / 3, 5 / 3, last_gain), strict=True):
        nn.init.orthogonal_(layer.weight, gain, generator=generator)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
