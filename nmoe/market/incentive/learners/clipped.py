"""Clipped: the one door to TorchRL, an extra: advantages and the clipped objective of (multi-agent) PPO.

Source: TorchRL 0.14 (Bou et al., arXiv 2306.00577): ``MAPPOLoss``, after C. Yu et al., "The surprising effectiveness of PPO in cooperative
multi-agent games", arXiv 2103.01955, and ``generalized_advantage_estimate``, after J. Schulman et al., arXiv 1506.02438. Imported at first
use, which takes about 10 s.

Importing TorchRL sets how ``multiprocessing`` starts processes; the door puts that back.
"""

import multiprocessing
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nmoe.core.errors import EngineError


class Transitions(NamedTuple):
    """Transitions of a role's agents.

    Attributes:
        features, central: what the policy and the critic see.
        raw: actions before squashing.
        log_density: of those, when they were drawn.
        advantage, target: how much better than expected, and what the critic should say.
    """

    features: Float[Tensor, "row agent feature"]
    central: Float[Tensor, "row agent central"]
    raw: Float[Tensor, "row agent action"]
    log_density: Float[Tensor, "row agent"]
    advantage: Float[Tensor, "row agent"]
    target: Float[Tensor, "row agent"]


class Losses(NamedTuple):
    """What a batch's gradient is taken of."""

    policy: Float[Tensor, ""]
    critic: Float[Tensor, ""]


def require_torchrl() -> None:
    """Make sure that TorchRL is installed, without importing it.

    Raises:
        EngineError: when it is not.
    """
    if find_spec("torchrl") is None:
        raise EngineError("learned workers need the extra market: pip install nmoe[market]")


def estimate_advantages(
    rewards: Float[Tensor, "slot env agent"], values: Float[Tensor, "slot+1 env agent"], *, discount: float, trace: float
) -> tuple[Float[Tensor, "slot env agent"], Float[Tensor, "slot env agent"]]:
    """Return generalised advantages and the critic's targets of episodes that were cut off, not ended.

    Args:
        rewards: of every slot.
        values: before every slot and after the last.
        discount: gamma, in [0, 1].
        trace: lambda, in [0, 1].

    Raises:
        EngineError: when TorchRL is not installed.
    """
    _load()
    from torchrl.objectives.value.functional import generalized_advantage_estimate

    shape = rewards.shape
    rows = [one.reshape(one.shape[0], -1) for one in (values[:-1], values[1:], rewards)]  # [slot, env * agent]
    ended = torch.zeros_like(rows[0], dtype=torch.bool)
    cut = ended.clone()
    cut[-1] = True
    advantage, target = generalized_advantage_estimate(discount, trace, *rows, done=cut, terminated=ended, time_dim=-2)
    return advantage.reshape(shape), target.reshape(shape)


class ClippedLoss:
    """The clipped objective of a role.

    Args:
        policy: returns loc and scale.
        critic: returns values.
        clip: how far the ratio of densities may pay, in (0, 1).

    Raises:
        EngineError: when TorchRL is not installed.
    """

    def __init__(self, policy: nn.Module, critic: nn.Module, *, clip: float) -> None:
        _load()
        from tensordict.nn import TensorDictModule
        from torchrl.modules import IndependentNormal, ProbabilisticActor
        from torchrl.objectives.multiagent import MAPPOLoss

        actor = ProbabilisticActor(
            TensorDictModule(policy, in_keys=["features"], out_keys=["loc", "scale"]),
            in_keys=["loc", "scale"],
            out_keys=["action"],
            distribution_class=IndependentNormal,
            distribution_kwargs={"validate_args": False},
        )
        self._loss: Any = MAPPOLoss(
            actor,
            TensorDictModule(critic, in_keys=["central"], out_keys=["state_value"]),
            clip_epsilon=clip,
            entropy_bonus=False,
            loss_critic_type="l2",
            log_explained_variance=False,
            functional=False,
        )

    def __call__(self, batch: Transitions) -> Losses:
        """Return the losses of a batch.

        Args:
            batch: at least two rows; advantages are standardised per agent over them.
        """
        from tensordict import TensorDict

        rows = {
            "features": batch.features,
            "central": batch.central,
            "action": batch.raw,
            "action_log_prob": batch.log_density,
            "advantage": batch.advantage[..., None],
            "value_target": batch.target[..., None],
        }
        losses = self._loss(TensorDict(rows, batch_size=batch.advantage.shape))
        return Losses(losses["loss_objective"], losses["loss_critic"])


def _load() -> None:
    """Import TorchRL, leaving the way to start processes as it was.

    Raises:
        EngineError: when it is not installed.
    """
    require_torchrl()
    before = multiprocessing.get_start_method(allow_none=True)
    import torchrl  # noqa: F401

    multiprocessing.set_start_method(before, force=True)
