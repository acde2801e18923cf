"""Single-agent PPO: one planner learns all prices against workers who answer exactly. A baseline.

Source: specification of this project, section 3.7; J. Schulman et al., arXiv 1707.06347.

Departures: of the ways to have a single learner, the one that shows what is lost by learning decisions apart: the planner sees what all
owners see, posts all prices, and is paid the sum of the owners' rewards, penalties included. It is given workers who need not learn.
As shares of the reward sum to 1 whatever is bought, it has no contest to win, and learns what a cartel would: on three drawn games it
bought 6 % of what was ordered.
"""

from nmoe.market.incentive.learners.conduct import BestReplies
from nmoe.market.incentive.learners.ppo import PPO, Learner
from nmoe.market.incentive.learners.seats import PlannerSeat
from nmoe.market.incentive.learners.slots import SlotGame
from nmoe.market.incentive.learners.team import Team, first_view

METHOD = "single-ppo"


def new_planner(game: SlotGame, *, ppo: PPO, seed: int) -> Team:
    """Return a planner that has learned nothing yet.

    Args:
        game: that it will play.
        ppo: how it will be trained.
        seed: of first weights and all chance, at least 0.
    """
    planner = Learner(PlannerSeat(), game, first_view(game), ppo=ppo, seed=seed, name="planner")
    return Team(method=METHOD, game=game, ppo=ppo, learners=(planner,), others=(BestReplies(),), seed=seed)
