"""Learned workers: the lower layer of ASOSA as a game that is learned, and learned on with every new order.

Source: specification of this project, sections 3.5 (step 2) and 3.6.

Departures: an owner who orders nothing plays for ``LEAST_ORDER`` of the largest order, so that its price stays known, and gets nothing.
The highest price that can be posted is ``PRICE_RANGE`` times the highest of the joint equilibrium by default: the range is given to the
learners, not the price. Opening prices are those of a first sample.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from nmoe.market.incentive.base import Orders, Recruitment, WorkerLayer, WorkerResponse
from nmoe.market.incentive.joint import joint_equilibrium, lowest_prices
from nmoe.market.incentive.learners.clipped import require_torchrl
from nmoe.market.incentive.learners.conduct import Played
from nmoe.market.incentive.learners.mappo import new_mappo
from nmoe.market.incentive.learners.policies import read_policies, write_policies
from nmoe.market.incentive.learners.ppo import PPO
from nmoe.market.incentive.learners.seats import View, look, squash
from nmoe.market.incentive.learners.slots import SlotGame, begin
from nmoe.market.incentive.learners.team import Team
from nmoe.market.incentive.learners.training import Report, Schedule

EPISODES = 2000
TOLERANCE = 1e-2
LEAST_ORDER = 0.02  # of the largest order
PRICE_RANGE = 1.5  # highest price over that of the joint equilibrium
NEAR_HIGHEST = 0.95  # of the highest price: an owner that posts more and still gets too little can do no more
SHORT = 0.95  # of the order
LEAST_FACTOR = 0.1  # of the first order: it is placed at opening prices, and orders become smaller as prices rise
WARM_RATE = 0.3  # of the learning rates, where training goes on


class LearnedWorkers(WorkerLayer):
    """Workers, and owners' prices for them, as trained policies.

    Args:
        team: of owners and workers.
        trained: episodes that it was trained for already.
        first_episodes: trained before the first response, unless it was trained already, at least 1.
        more_episodes: trained before every further one, at least 0.
        report: told of every batch.
    """

    def __init__(self, team: Team, *, trained: int, first_episodes: int, more_episodes: int, report: Report | None = None) -> None:
        self.team = team
        self.trained = trained
        self._first, self._more, self._report = first_episodes, more_episodes, report
        self._turn = 0

    @property
    def tolerance(self) -> float:
        return TOLERANCE

    def opening_prices(self) -> Float[ndarray, " owner"]:
        return lowest_prices(self.team.game.recruitment)

    def respond(self, orders: Orders) -> WorkerResponse:
        recruitment = self.team.game.recruitment
        buying = np.isfinite(lowest_prices(recruitment))
        least = np.where(buying, LEAST_ORDER * float(orders.targets.max(initial=0.0)), 0.0)
        targets = np.where(buying, np.maximum(orders.targets, least), 0.0)
        wanted = replace(orders, targets=targets, samples=orders.samples + targets - orders.targets)
        before = self._habits(wanted)
        self._train(wanted)
        after = self._habits(wanted)
        change = float(np.abs(after - before).mean() / max(float(np.abs(before).mean()), 1e-9)) if self._turn > 1 else 1.0
        return self._response(orders, self.team.play(wanted), buying, change)

    def save(self, folder: Path) -> None:
        """Write the policies as they are now."""
        write_policies(folder, self.team, episodes=self.trained)

    def _train(self, orders: Orders) -> None:
        """Train on for these orders; at full rate where nothing was learned yet."""
        fresh = self.trained == 0
        episodes = self._first if fresh else self._more
        if episodes:
            schedule = Schedule(episodes=episodes, least_order=LEAST_FACTOR) if fresh else Schedule(episodes=episodes, first_rate=WARM_RATE)
            self.team.train(orders, schedule, stage=f"turn {self._turn}", report=self._report)
        self.trained += episodes
        self._turn += 1

    def _habits(self, orders: Orders) -> Float[ndarray, " action"]:
        """Return what policies do, as shares of their ranges, at prices from 0 to the highest: to see how far they move."""
        game = self.team.game
        prices = np.repeat(np.linspace(0.0, game.price_max, 9)[:, None], len(orders.targets), axis=1)
        view: View = look(game, begin(game, self.team.standing(orders, len(prices)), prices))
        with torch.no_grad():
            raw = [learner.policy(learner.seats.features(view)).loc.numpy() for learner in self.team.learners]
        return np.concatenate([np.clip(squash(one), 0.0, 1.0).ravel() for one in raw])

    def _response(self, orders: Orders, played: Played, buying: ndarray, change: float) -> WorkerResponse:
        """Return what was played as an answer to what was ordered."""
        game, ordered = self.team.game, orders.targets > 0
        serving = (game.buyers & ordered).any(axis=1)
        prices, collected = played.prices[0], np.where(ordered, np.minimum(played.collected[0], orders.targets), 0.0)
        exhausted = buying & ordered & (prices > NEAR_HIGHEST * game.price_max) & (collected < SHORT * orders.targets)
        return WorkerResponse(
            prices=np.where(buying, prices, np.inf),
            collected=collected,
            efforts=np.where(serving, played.efforts[0], 0.0),
            wages=np.where(serving, played.wages[0], 0.0),
            exhausted=exhausted,
            policy_change=change,
        )


def learned_workers(
    recruitment: Recruitment,
    *,
    seed: int,
    episodes: int = EPISODES,
    more_episodes: int | None = None,
    price_max: float | None = None,
    ppo: PPO = PPO(),  # noqa: B008  # frozen
    policies: Path | None = None,
    progress: Report | None = None,
) -> LearnedWorkers:
    """Return a lower layer that learns.

    Args:
        recruitment: the game.
        seed: of all chance, at least 0.
        episodes: trained before the first response, at least 1.
        more_episodes: trained before every further response; a tenth by default.
        price_max: highest price that can be posted, money per sample; 1.5 times the joint equilibrium's highest by default.
        ppo: hyperparameters; those of ``policies`` where they are given.
        policies: folder of policies to begin with, trained for this game.
        progress: told of every batch: episodes played, episodes in all, mean rewards by role.

    Raises:
        ValueError: when a number is out of range, or there are no workers, or nothing is worth publishing.
        EngineError: when TorchRL is not installed.
        BadFile: when the policies are damaged or of another game.
    """
    require_torchrl()
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    more_episodes = -(-episodes // 10) if more_episodes is None else more_episodes
    if more_episodes < 0:
        raise ValueError(f"further episodes must be at least 0, got {more_episodes}")
    game = SlotGame(recruitment=recruitment, price_max=price_range(recruitment) if price_max is None else price_max)
    if policies is None:
        team, trained = new_mappo(game, ppo=ppo, seed=seed), 0
    else:
        team, trained = read_policies(policies, game)
    return LearnedWorkers(team, trained=trained, first_episodes=episodes, more_episodes=more_episodes, report=progress)


def price_range(recruitment: Recruitment) -> float:
    """Return a highest price for learners: well above what workers are paid in the joint equilibrium.

    Raises:
        ValueError: when nobody is paid there.
    """
    found = joint_equilibrium(recruitment)
    paid = found.prices[(found.bought > 0) & np.isfinite(found.prices)]
    if not len(paid):
        raise ValueError(f"learned workers need somebody to buy from them: {found.why_empty or 'nobody does'}")
    return PRICE_RANGE * float(paid.max())
