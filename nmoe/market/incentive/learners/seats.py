"""Seats: who plays with one policy: what they see without units, what a network's raw action means, and what they are paid.

Source: specification of this project, section 3.6. Policies see what their agents observe; critics see besides, as means, what all owners
and all workers observe, so that they serve any number of either.

Departures: observations are divided by natural scales: prices by the highest, samples by the target (owners) or by the effort that the
highest price could make worth while (workers); so are the workers' rewards. A price is answered, and paid for, one slot after it is posted;
the learner pairs it with that slot's reward.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from nmoe.market.incentive.learners.slots import (
    MEMORY,
    STEEPEST,
    SlotActions,
    SlotGame,
    SlotOutcome,
    SlotState,
    observe_owners,
    observe_workers,
)

REACH = 1.1  # how far beyond its range a squashed action can go, and is cut: both ends are reached
MOST_OF_TARGET = 3.0  # collected amounts are seen up to so many times the target
NOTHING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """What everybody sees, without units.

    Attributes:
        owners: target, what was short, price posted, memory of prices and amounts, R, eta, k_n.
        workers: prices posted, alpha, beta, capacity, memory of payments and efforts.
        served: mean of what the workers see who sell to an owner, for critics.
    """

    owners: Float[Tensor, "env owner feature"]
    workers: Float[Tensor, "env worker feature"]
    served: Float[Tensor, "env owner feature"]


def look(game: SlotGame, state: SlotState) -> View:
    """Return what everybody sees."""
    owners, workers = _of_owners(game, observe_owners(state)), _of_workers(game, observe_workers(game, state))
    weights = game.buyers / np.maximum(game.buyers.sum(axis=0), 1)
    served = np.einsum("emf,mn->enf", workers, weights)
    return View(owners=_tensor(owners), workers=_tensor(workers), served=_tensor(served))


def blank_actions(game: SlotGame, num_envs: int) -> SlotActions:
    """Return actions of agents who do nothing."""
    num_workers, num_owners = game.buyers.shape
    return SlotActions(
        prices=np.zeros((num_envs, num_owners)),
        efforts=np.zeros((num_envs, num_workers)),
        preferences=np.zeros((num_envs, num_workers, num_owners)),
    )


class Seats(ABC):
    """Agents that share a policy. Final classes are frozen dataclasses.

    Attributes:
        delay: slots from an action to the slot that pays for it.
    """

    delay: ClassVar[int]

    @abstractmethod
    def num_actions(self, game: SlotGame) -> int:
        """Return how many numbers an agent decides on."""

    @abstractmethod
    def features(self, view: View) -> Float[Tensor, "env agent feature"]:
        """Return what the agents' policy sees."""

    @abstractmethod
    def central(self, view: View) -> Float[Tensor, "env agent feature"]:
        """Return what the agents' critic sees."""

    @abstractmethod
    def act(self, game: SlotGame, actions: SlotActions, raw: Float[ndarray, "env agent action"]) -> SlotActions:
        """Return actions with the agents' own put in, squashed into their ranges."""

    @abstractmethod
    def rewards(self, game: SlotGame, outcome: SlotOutcome) -> Float[ndarray, "env agent"]:
        """Return what a slot paid the agents, on a scale of about 1."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnerSeats(Seats):
    """Some owners, who post prices.

    Attributes:
        index: which.
    """

    index: Int[ndarray, " agent"]
    delay: ClassVar[int] = 1

    def num_actions(self, game: SlotGame) -> int:
        return 1

    def features(self, view: View) -> Float[Tensor, "env agent feature"]:
        return view.owners[:, self.index]

    def central(self, view: View) -> Float[Tensor, "env agent feature"]:
        return torch.cat([self.features(view), view.served[:, self.index], _everybody(view, len(self.index))], dim=2)

    def act(self, game: SlotGame, actions: SlotActions, raw: Float[ndarray, "env agent action"]) -> SlotActions:
        prices = actions.prices.copy()
        prices[:, self.index] = game.price_max * squash(raw[:, :, 0])
        return replace(actions, prices=prices)

    def rewards(self, game: SlotGame, outcome: SlotOutcome) -> Float[ndarray, "env agent"]:
        return np.asarray(outcome.owner_rewards[:, self.index])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WorkerSeats(Seats):
    """Some workers, who choose what to gather and, where some are in the pool, for whom.

    Attributes:
        index: which.
    """

    index: Int[ndarray, " agent"]
    delay: ClassVar[int] = 0

    def num_actions(self, game: SlotGame) -> int:
        return 1 + (len(game.recruitment.owners) if game.pooled else 0)

    def features(self, view: View) -> Float[Tensor, "env agent feature"]:
        return view.workers[:, self.index]

    def central(self, view: View) -> Float[Tensor, "env agent feature"]:
        return torch.cat([self.features(view), _everybody(view, len(self.index))], dim=2)

    def act(self, game: SlotGame, actions: SlotActions, raw: Float[ndarray, "env agent action"]) -> SlotActions:
        efforts, preferences = actions.efforts.copy(), actions.preferences.copy()
        efforts[:, self.index] = game.most_effort[self.index] * squash(raw[:, :, 0])
        if game.pooled:
            preferences[:, self.index] = STEEPEST * np.tanh(raw[:, :, 1:])
        return replace(actions, efforts=efforts, preferences=preferences)

    def rewards(self, game: SlotGame, outcome: SlotOutcome) -> Float[ndarray, "env agent"]:
        scale = game.price_max * game.most_effort / 2  # what the highest price would leave a worker whose first sample is for free
        return np.asarray(outcome.worker_rewards[:, self.index] / scale[self.index])


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerSeat(Seats):
    """One planner in place of all owners, who posts all prices and is paid all their rewards."""

    delay: ClassVar[int] = 1

    def num_actions(self, game: SlotGame) -> int:
        return len(game.recruitment.owners)

    def features(self, view: View) -> Float[Tensor, "env agent feature"]:
        return view.owners.flatten(1)[:, None]

    def central(self, view: View) -> Float[Tensor, "env agent feature"]:
        return torch.cat([self.features(view), view.served.flatten(1)[:, None]], dim=2)

    def act(self, game: SlotGame, actions: SlotActions, raw: Float[ndarray, "env agent action"]) -> SlotActions:
        return replace(actions, prices=game.price_max * squash(raw[:, 0]))

    def rewards(self, game: SlotGame, outcome: SlotOutcome) -> Float[ndarray, "env agent"]:
        return np.asarray(outcome.owner_rewards.sum(axis=1, keepdims=True))


def squash(raw: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    """Return the share of its range that a raw action stands for, from just below 0 to just above 1."""
    return np.asarray((1 + REACH * np.tanh(raw)) / 2)


def _of_owners(game: SlotGame, seen: Float[ndarray, "env owner feature"]) -> Float[ndarray, "env owner feature"]:
    """Return owners' observations without units."""
    target, prices, amounts = seen[..., :1], seen[..., 2 : 3 + MEMORY], seen[..., 3 + MEMORY : 3 + 2 * MEMORY]
    unit = np.maximum(target, NOTHING)
    collected = np.minimum(amounts / unit, MOST_OF_TARGET)
    contest = np.log10(np.maximum(seen[..., -3:], NOTHING))
    parts = [np.log10(unit + 1), seen[..., 1:2] / unit, prices / game.price_max, collected, contest]
    return np.concatenate(parts, axis=2)


def _of_workers(game: SlotGame, seen: Float[ndarray, "env worker feature"]) -> Float[ndarray, "env worker feature"]:
    """Return workers' observations without units."""
    width = seen.shape[2] - 3 - 2 * MEMORY
    alpha, beta, capacity = (seen[..., width + place, None] for place in range(3))
    most = game.price_max / (2 * alpha)
    payments, efforts = seen[..., width + 3 : width + 3 + MEMORY], seen[..., width + 3 + MEMORY :]
    parts = [seen[..., :width] / game.price_max, np.log10(alpha) + 1, beta / game.price_max, capacity / most]
    return np.concatenate([*parts, payments / (game.price_max * most), efforts / most], axis=2)


def _everybody(view: View, num_agents: int) -> Float[Tensor, "env agent feature"]:
    """Return the means of what owners and workers see, once per agent."""
    means = torch.cat([view.owners.mean(dim=1), view.workers.mean(dim=1)], dim=1)
    return means[:, None].expand(-1, num_agents, -1)


def _tensor(array: Float[ndarray, "..."]) -> Float[Tensor, "..."]:
    """Return single-precision numbers for networks."""
    return torch.as_tensor(array, dtype=torch.float32)
