"""Methods of the ASOSA reproduction that learn: workers and owners by MAPPO, and one planner of all prices by PPO."""

from collections.abc import Mapping
from functools import partial

from nmoe.market.incentive import Asosa, Recruitment, Settlement
from nmoe.market.incentive.learners.ppo import PPO
from nmoe.market.incentive.learners.single_agent import new_planner
from nmoe.market.incentive.learners.slots import SlotGame
from nmoe.market.incentive.learners.workers import LearnedWorkers, learned_workers, price_range
from nmoe.recipes.incentive import Contender

TURNS = 40  # of the loop: each trains on


def contenders(episodes: int) -> Mapping[str, Contender]:
    """Return the methods that learn, by name.

    Args:
        episodes: trained before the first answer, at least 1; a tenth of them before every further one.
    """
    return {"learned": partial(_learned, episodes), "single-agent": partial(_planned, episodes)}


def _learned(episodes: int, recruitment: Recruitment, seed: int) -> Settlement:
    return _loop().run(recruitment, learned_workers(recruitment, seed=seed, episodes=episodes)).settlement


def _planned(episodes: int, recruitment: Recruitment, seed: int) -> Settlement:
    game = SlotGame(recruitment=recruitment, price_max=price_range(recruitment))
    team = new_planner(game, ppo=PPO(), seed=seed)
    layer = LearnedWorkers(team, trained=0, first_episodes=episodes, more_episodes=-(-episodes // 10))
    return _loop().run(recruitment, layer).settlement


def _loop() -> Asosa:
    return Asosa(max_steps=TURNS, fall_back=False)
