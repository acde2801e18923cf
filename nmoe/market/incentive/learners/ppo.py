"""PPO: a policy and its critic, trained on what its agents have lived through.

Source: J. Schulman et al., "Proximal policy optimization algorithms", arXiv 1707.06347, and, for several agents that share a policy with a
critic who sees everything, C. Yu et al. (MAPPO), arXiv 2103.01955. The objective is TorchRL's (``clipped``); which algorithm the paper of
this incentive uses is not known.

Departures, each measured once, on one game (seed 0 of ``nmoe.recipes.market_learn``):

- Rates fall linearly over a training, and so does the logarithm of the standard deviation that actions are explored with; there is no bonus
  for entropy, which would not change it. Learned at the specification's rate it fell from -0.7 to -0.8 in 400 episodes; at 17 times that
  rate it fell before efforts were right, and prices followed wrong efforts (errors of 0.82 and 0.14 after 800 episodes).
- The actor's rate is 1e-3, the specification's 3e-4: efforts were off by 0.46 and by 0.61 after 400 episodes.
- The discount is 0, the specification's 0.95: slots do not touch each other unless workers tire, and what prices do later is noise to a
  worker's advantage. Efforts were off by 0.05 without and by 0.18 with it after 1,200 episodes. Where workers tire (``Drift.refresh``) it
  is for the caller to give one.
- Advantages are standardised per agent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor, nn

from nmoe.core.seeds import torch_generator
from nmoe.market.incentive.learners.clipped import ClippedLoss, Transitions, estimate_advantages
from nmoe.market.incentive.learners.networks import CentralCritic, GaussianPolicy, log_density
from nmoe.market.incentive.learners.seats import Seats, View
from nmoe.market.incentive.learners.slots import SlotGame


@dataclass(frozen=True, slots=True, kw_only=True)
class PPO:
    """How policies are trained; defaults are the specification's, section 3.6, but for the departures above and where it is silent.

    Attributes:
        actor_rate, critic_rate: of Adam.
        first_log_std, last_log_std: of raw actions, at the full rate and at none.
        clip: of the ratio of densities, in (0, 1).
        discount: gamma, in [0, 1].
        trace: lambda of the advantages, in [0, 1].
        width: of hidden layers.
        num_envs: games played at once; as many episodes are one batch.
        epochs: over a batch.
        minibatches: that an epoch takes a batch in.
        largest_minibatch: transitions that a minibatch keeps, drawn anew in every epoch, so that many agents cost no more than some.
        largest_gradient: norm that gradients are cut to.
    """

    actor_rate: float = 1e-3
    critic_rate: float = 1e-3
    first_log_std: float = -1.0
    last_log_std: float = -4.0
    clip: float = 0.2
    discount: float = 0.0
    trace: float = 0.95
    width: int = 128
    num_envs: int = 16
    epochs: int = 4
    minibatches: int = 4
    largest_minibatch: int = 2048
    largest_gradient: float = 0.5

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: when one is out of range.
        """
        for name in ("actor_rate", "critic_rate", "largest_gradient"):
            _check(name, value := getattr(self, name), 0 < value < float("inf"), "finite and above 0")
        for name in ("discount", "trace"):
            _check(name, value := getattr(self, name), 0 <= value <= 1, "between 0 and 1")
        _check("clip", self.clip, 0 < self.clip < 1, "above 0 and below 1")
        falls = -float("inf") < self.last_log_std <= self.first_log_std < float("inf")
        _check("last_log_std", self.last_log_std, falls, f"finite and at most first_log_std, {self.first_log_std}")
        for name in ("width", "num_envs", "epochs", "minibatches", "largest_minibatch"):
            _check(name, value := getattr(self, name), value >= 1, "at least 1")


class Lived(NamedTuple):
    """What agents saw before every slot and after the last, and did and were paid in every slot."""

    features: Float[Tensor, "slot+1 env agent feature"]
    central: Float[Tensor, "slot+1 env agent feature"]
    raw: Float[Tensor, "slot env agent action"]
    log_density: Float[Tensor, "slot env agent"]
    rewards: Float[Tensor, "slot env agent"]


class Learner:
    """The policy of some seats, and what trains it.

    Args:
        seats: who plays with it.
        game: that is played; it says how much agents see and decide.
        view: of any state of the game.
        ppo: how it is trained.
        seed: of first weights and of all exploration.
        name: tells its streams of chance from another's.
    """

    def __init__(self, seats: Seats, game: SlotGame, view: View, *, ppo: PPO, seed: int, name: str) -> None:
        self.seats, self.name = seats, name
        self._ppo = ppo
        self._chance = torch_generator(seed, "incentive", name, "chance")
        first = torch_generator(seed, "incentive", name, "weights")
        num_features, num_central = seats.features(view).shape[2], seats.central(view).shape[2]
        self.policy = GaussianPolicy(num_features=num_features, num_actions=seats.num_actions(game), width=ppo.width, generator=first)
        self.critic = CentralCritic(num_features=num_central, width=ppo.width, generator=first)
        self._loss: ClippedLoss | None = None  # made when it is needed: to play takes no TorchRL
        self._actor_steps = torch.optim.Adam(self.policy.parameters(), lr=ppo.actor_rate)
        self._critic_steps = torch.optim.Adam(self.critic.parameters(), lr=ppo.critic_rate)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Policy and critic by name."""
        return {"policy": self.policy, "critic": self.critic}

    def explore(self, view: View, *, rate: float) -> tuple[Float[Tensor, "env agent action"], Float[Tensor, "env agent"]]:
        """Draw raw actions, as widely as a rate between 0 and 1 says; return them and their log density."""
        with torch.no_grad():
            self.policy.log_std.fill_(self._ppo.last_log_std + (self._ppo.first_log_std - self._ppo.last_log_std) * rate)
            found = self.policy(self.seats.features(view))
            raw = found.loc + found.scale * torch.randn(found.loc.shape, generator=self._chance)
            return raw, log_density(found, raw)

    def learn(self, lived: Lived, *, rate: float) -> None:
        """Improve policy and critic on what was lived through.

        Args:
            lived: by all agents of the seats, in whole episodes.
            rate: share of the rates to learn with now, in [0, 1].

        Raises:
            EngineError: when TorchRL is not installed.
        """
        for steps, full in ((self._actor_steps, self._ppo.actor_rate), (self._critic_steps, self._ppo.critic_rate)):
            steps.param_groups[0]["lr"] = full * rate
        batch = self._batch(lived)
        num_rows, num_agents = batch.advantage.shape
        most = max(2, self._ppo.largest_minibatch // num_agents)
        num_pieces = max(1, min(self._ppo.minibatches, num_rows // 2))  # two rows at least, for advantages are standardised
        if self._loss is None:
            self._loss = ClippedLoss(self.policy, self.critic, clip=self._ppo.clip)
        for _ in range(self._ppo.epochs):
            for rows in torch.randperm(num_rows, generator=self._chance).tensor_split(num_pieces):
                losses = self._loss(Transitions(*(column[rows[:most]] for column in batch)))
                self._descend(self._actor_steps, losses.policy, self.policy)
                self._descend(self._critic_steps, losses.critic, self.critic)

    def _batch(self, lived: Lived) -> Transitions:
        """Return transitions, each action with the reward that it earned."""
        late = self.seats.delay
        features, central = lived.features[: len(lived.features) - late], lived.central[: len(lived.central) - late]
        with torch.no_grad():
            values = self.critic(central)[..., 0]
        rewards = lived.rewards[late:]
        advantage, target = estimate_advantages(rewards, values, discount=self._ppo.discount, trace=self._ppo.trace)
        num_slots = len(rewards)
        columns = (features[:-1], central[:-1], lived.raw[:num_slots], lived.log_density[:num_slots], advantage, target)
        return Transitions(*(column.flatten(0, 1) for column in columns))

    def _descend(self, steps: torch.optim.Optimizer, loss: Float[Tensor, ""], network: nn.Module) -> None:
        """Take one step down a loss."""
        steps.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), self._ppo.largest_gradient)
        steps.step()


def stack_lived(
    views: Sequence[View], drawn: Sequence[tuple[Tensor, Tensor]], rewards: Sequence[Float[ndarray, "env agent"]], seats: Seats
) -> Lived:
    """Return an episode as one record.

    Args:
        views: before every slot and after the last.
        drawn: raw actions and their log density, of every slot.
        rewards: of every slot.
        seats: whose it is.
    """
    return Lived(
        features=torch.stack([seats.features(view) for view in views]),
        central=torch.stack([seats.central(view) for view in views]),
        raw=torch.stack([raw for raw, _ in drawn]),
        log_density=torch.stack([density for _, density in drawn]),
        rewards=torch.as_tensor(np.stack(rewards), dtype=torch.float32),
    )


def _check(name: str, value: float, good: bool, wanted: str) -> None:
    """Check a hyperparameter.

    Raises:
        ValueError: when it is not good.
    """
    if not good:
        raise ValueError(f"{name} must be {wanted}, got {value}")
