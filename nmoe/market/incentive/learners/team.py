"""Team: policies that play one game together and are trained together, and whoever plays with them without learning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nmoe.core.seeds import numpy_generator
from nmoe.market.incentive.base import Orders
from nmoe.market.incentive.learners.clearing import penalty_for
from nmoe.market.incentive.learners.conduct import Conduct, MeanConduct, Played, play
from nmoe.market.incentive.learners.ppo import PPO, Learner
from nmoe.market.incentive.learners.seats import View, look
from nmoe.market.incentive.learners.slots import SlotGame, StandingOrders, begin, standing
from nmoe.market.incentive.learners.training import Report, Rewards, Schedule, train

PENALTY_FACTOR = 1.1  # mu over p(S) + S p'(S), more than 1; the more, the higher prices stay while agents explore


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Team:
    """Policies and what trains them.

    Attributes:
        method: how they are trained, one word.
        game: that they play.
        ppo: hyperparameters.
        learners: who learn.
        others: who do not.
        seed: of all chance.
    """

    method: str
    game: SlotGame
    ppo: PPO
    learners: tuple[Learner, ...]
    others: tuple[Conduct, ...]
    seed: int

    def train(self, orders: Orders, schedule: Schedule, *, stage: str, report: Report | None = None) -> list[Rewards]:
        """Train on, from where the policies are.

        Args:
            orders: what owners want.
            schedule: how long and how fast.
            stage: tells this training's chance from another's.
            report: told of every batch.

        Returns:
            Mean reward per slot by learner, one entry per batch.
        """
        return train(
            self.game,
            self.varied(orders, schedule),
            self.learners,
            others=self.others,
            schedule=schedule,
            generator=numpy_generator(self.seed, "incentive", self.method, stage),
            report=report,
        )

    def conducts(self) -> list[Conduct]:
        """Return how everybody behaves when nobody explores."""
        return [*self.others, *(MeanConduct(seats=learner.seats, policy=learner.policy) for learner in self.learners)]

    def play(self, orders: Orders, *, instead: Sequence[Conduct] = (), num_envs: int = 1) -> Played:
        """Play an episode without exploring.

        Args:
            orders: what owners want.
            instead: who takes the place of some.
            num_envs: games at once.
        """
        generator = numpy_generator(self.seed, "incentive", self.method, "play")
        return play(self.game, self.standing(orders, num_envs), [*self.conducts(), *instead], generator=generator)

    def standing(self, orders: Orders, num_envs: int) -> StandingOrders:
        """Return orders with the penalty that makes owners want them, for a batch of games."""
        return standing(orders, penalty_for(self.game.recruitment, orders.targets, factor=PENALTY_FACTOR), num_envs)

    def varied(self, orders: Orders, schedule: Schedule) -> Callable[[np.random.Generator], StandingOrders]:
        """Return what draws orders for a batch of games, about the size of those given, each with its penalty."""
        same = self.standing(orders, self.ppo.num_envs)

        def draw_orders(generator: np.random.Generator) -> StandingOrders:
            targets = same.targets * generator.uniform(schedule.least_order, schedule.most_order, same.targets.shape)
            penalty = np.stack([penalty_for(self.game.recruitment, one, factor=PENALTY_FACTOR) for one in targets])
            return replace(same, targets=targets, penalty=penalty)

        return draw_orders


def first_view(game: SlotGame) -> View:
    """Return a view of the game before anything is ordered: its shapes are those of every other."""
    num_owners = game.buyers.shape[1]
    nothing = np.zeros(num_owners)
    orders = Orders(targets=nothing, samples=nothing, reward=1.0, efficiency=1.0, costs=np.ones(num_owners))
    return look(game, begin(game, standing(orders, nothing, 1), np.zeros((1, num_owners))))
