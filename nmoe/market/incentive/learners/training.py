"""Training: play batches of episodes, and let learners learn from them.

Source: specification of this project, section 3.6: 16 games at once, episodes of 50 slots, 2,000 to 3,000 of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from torch import Tensor

from nmoe.market.incentive.learners.conduct import Conduct
from nmoe.market.incentive.learners.ppo import Learner, Lived, stack_lived
from nmoe.market.incentive.learners.seats import View, blank_actions, look
from nmoe.market.incentive.learners.slots import SlotGame, StandingOrders, begin, draw, step

Rewards = dict[str, float]
Report = Callable[[int, int, Rewards], None]  # episodes played, episodes in all, mean reward per slot by learner


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        episodes: in all, at least 1.
        first_rate, last_rate: share of the learning rates at the beginning and at the end, in [0, 1].
        least_order, most_order: every owner's target of an episode is what it orders times a factor drawn between these, above 0.
    """

    episodes: int
    first_rate: float = 1.0
    last_rate: float = 0.05
    least_order: float = 0.9
    most_order: float = 1.1

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: when one is out of range.
        """
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")
        if not 0 <= self.last_rate <= 1 or not 0 <= self.first_rate <= 1:
            raise ValueError(f"rates must be between 0 and 1, got {self.first_rate} and {self.last_rate}")
        if not 0 < self.least_order <= self.most_order < float("inf"):
            raise ValueError(f"orders must vary from a factor above 0 to no smaller one, got {self.least_order} and {self.most_order}")


def train(
    game: SlotGame,
    draw_orders: Callable[[np.random.Generator], StandingOrders],
    learners: Sequence[Learner],
    *,
    others: Sequence[Conduct],
    schedule: Schedule,
    generator: np.random.Generator,
    report: Report | None = None,
) -> list[Rewards]:
    """Train learners together.

    Args:
        game: the rules.
        draw_orders: returns what a batch of episodes is played for, always as many.
        learners: who learn; between them and ``others`` every agent has to be.
        others: who do not; where a learner sits at the same seat, it decides.
        schedule: how long and how fast; whole batches are played.
        generator: of orders, first prices and drift.
        report: told of every batch.

    Returns:
        Mean reward per slot by learner, one entry per batch.
    """
    curve: list[Rewards] = []
    played = 0
    while played < schedule.episodes:
        orders = draw_orders(generator)
        rate = schedule.first_rate + (schedule.last_rate - schedule.first_rate) * played / schedule.episodes
        lived = live(game, orders, learners, others, generator, rate=rate)
        played += len(orders.targets)
        for learner, episode in zip(learners, lived, strict=True):
            learner.learn(episode, rate=rate)
        curve.append({learner.name: float(episode.rewards.mean()) for learner, episode in zip(learners, lived, strict=True)})
        if report is not None:
            report(min(played, schedule.episodes), schedule.episodes, curve[-1])
    return curve


def live(
    game: SlotGame,
    orders: StandingOrders,
    learners: Sequence[Learner],
    others: Sequence[Conduct],
    generator: np.random.Generator,
    *,
    rate: float,
) -> list[Lived]:
    """Play an episode in every game of a batch, learners exploring; return what each of them lived through."""
    state = begin(game, orders, generator.uniform(0.0, game.price_max, orders.targets.shape))
    views: list[View] = []
    drawn: list[list[tuple[Tensor, Tensor]]] = [[] for _ in learners]
    rewards: list[list[ndarray]] = [[] for _ in learners]
    for _ in range(game.horizon):
        view, actions = look(game, state), blank_actions(game, len(orders.targets))
        views.append(view)
        for conduct in others:
            actions = conduct.decide(game, state, view, actions)
        for place, learner in enumerate(learners):
            drawn[place].append(learner.explore(view, rate=rate))
            actions = learner.seats.act(game, actions, drawn[place][-1][0].numpy().astype(float))
        outcome = step(game, state, actions, draw(game, len(orders.targets), generator))
        for place, learner in enumerate(learners):
            rewards[place].append(learner.seats.rewards(game, outcome))
        state = outcome.state
    views.append(look(game, state))
    return [stack_lived(views, acts, paid, learner.seats) for acts, paid, learner in zip(drawn, rewards, learners, strict=True)]
