"""Conduct: how agents behave who do not learn at the moment: as a policy's mean says, as is best, or with prices that stay.

``play`` lets them meet, and tells what came of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from nmoe.market.incentive.learners.networks import GaussianPolicy
from nmoe.market.incentive.learners.seats import Seats, View, blank_actions, look
from nmoe.market.incentive.learners.slots import (
    SlotActions,
    SlotGame,
    SlotState,
    StandingOrders,
    begin,
    best_efforts,
    best_preferences,
    draw,
    step,
)


class Conduct(ABC):
    """What some agents do. Final classes are frozen dataclasses."""

    @abstractmethod
    def decide(self, game: SlotGame, state: SlotState, view: View, actions: SlotActions) -> SlotActions:
        """Return actions with those of the agents put in."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeanConduct(Conduct):
    """What a policy finds best.

    Attributes:
        seats: whose policy.
        policy: of theirs.
    """

    seats: Seats
    policy: GaussianPolicy

    def decide(self, game: SlotGame, state: SlotState, view: View, actions: SlotActions) -> SlotActions:
        with torch.no_grad():
            raw = self.policy(self.seats.features(view)).loc
        return self.seats.act(game, actions, raw.numpy().astype(float))


@dataclass(frozen=True, slots=True, kw_only=True)
class BestReplies(Conduct):
    """All workers, who take posted prices as they are and answer them exactly."""

    def decide(self, game: SlotGame, state: SlotState, view: View, actions: SlotActions) -> SlotActions:
        return replace(actions, efforts=best_efforts(game, state), preferences=best_preferences(game, state.posted))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SteadyPrices(Conduct):
    """All owners, who post the same prices for ever.

    Attributes:
        prices: of a game or of each in a batch.
    """

    prices: Float[ndarray, "*env owner"]

    def decide(self, game: SlotGame, state: SlotState, view: View, actions: SlotActions) -> SlotActions:
        return replace(actions, prices=np.broadcast_to(self.prices, actions.prices.shape).copy())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Played:
    """Means over the second half of an episode, when what was posted first is forgotten.

    Attributes:
        prices, collected, owner_rewards: by owner.
        efforts, best, wages, worker_rewards: by worker; ``best`` is what it had best done at the prices that were posted.
    """

    prices: Float[ndarray, "env owner"]
    collected: Float[ndarray, "env owner"]
    owner_rewards: Float[ndarray, "env owner"]
    efforts: Float[ndarray, "env worker"]
    best: Float[ndarray, "env worker"]
    wages: Float[ndarray, "env worker"]
    worker_rewards: Float[ndarray, "env worker"]


def play(
    game: SlotGame,
    orders: StandingOrders,
    conducts: Sequence[Conduct],
    *,
    generator: np.random.Generator,
    first_prices: Float[ndarray, "env owner"] | None = None,
) -> Played:
    """Play an episode.

    Args:
        game: the rules.
        orders: one per game of the batch.
        conducts: of all agents; where two decide for an agent, the later one does.
        generator: of the workers' drift.
        first_prices: posted before the episode; half of the highest by default.
    """
    num_envs = len(orders.targets)
    first = np.full(orders.targets.shape, game.price_max / 2) if first_prices is None else first_prices
    state, kept = begin(game, orders, first), []
    for slot in range(game.horizon):
        view, actions = look(game, state), blank_actions(game, num_envs)
        for conduct in conducts:
            actions = conduct.decide(game, state, view, actions)
        outcome = step(game, state, actions, draw(game, num_envs, generator))
        if 2 * slot >= game.horizon - 1:
            best = best_efforts(game, state)
            amounts = (state.posted, outcome.collected, outcome.owner_rewards, outcome.efforts, best, outcome.wages, outcome.worker_rewards)
            kept.append(amounts)
        state = outcome.state
    means = [np.mean(column, axis=0) for column in zip(*kept, strict=True)]
    names = ("prices", "collected", "owner_rewards", "efforts", "best", "wages", "worker_rewards")
    return Played(**dict(zip(names, means, strict=True)))
