"""MAPPO: owners and workers learn together, one policy per role, with critics who see everything.

Source: specification of this project, section 3.6; C. Yu et al., "The surprising effectiveness of PPO in cooperative multi-agent games",
arXiv 2103.01955. Which learner the paper of this incentive uses is not known.
"""

import numpy as np

from nmoe.market.incentive.learners.ppo import PPO, Learner
from nmoe.market.incentive.learners.seats import OwnerSeats, WorkerSeats
from nmoe.market.incentive.learners.slots import SlotGame
from nmoe.market.incentive.learners.team import Team, first_view

METHOD = "mappo"


def new_mappo(game: SlotGame, *, ppo: PPO, seed: int) -> Team:
    """Return policies of owners and of workers that have learned nothing yet.

    Args:
        game: that they will play.
        ppo: how they will be trained.
        seed: of first weights and all chance, at least 0.
    """
    num_workers, num_owners = game.buyers.shape
    view = first_view(game)
    owners = Learner(OwnerSeats(index=np.arange(num_owners)), game, view, ppo=ppo, seed=seed, name="owners")
    workers = Learner(WorkerSeats(index=np.arange(num_workers)), game, view, ppo=ppo, seed=seed, name="workers")
    return Team(method=METHOD, game=game, ppo=ppo, learners=(owners, workers), others=(), seed=seed)
