"""Accuracy: how far learned behaviour is from the closed form."""

from typing import NamedTuple

import numpy as np

from nmoe.market.incentive.base import Orders
from nmoe.market.incentive.learners.clearing import clear
from nmoe.market.incentive.learners.conduct import Played
from nmoe.market.incentive.learners.team import Team


class Errors(NamedTuple):
    """Relative errors of policies that do not explore.

    Attributes:
        effort: of workers' efforts against their best replies to the prices that were posted; all deviations over all efforts.
        worst_effort: of a worker, over the mean effort.
        price: of owners' prices against those that clear their orders; mean of owners who order.
        worst_price: of an owner.
        collected: of what owners got against what they ordered; all deviations over all orders.
    """

    effort: float
    worst_effort: float
    price: float
    worst_price: float
    collected: float


def errors_of(team: Team, orders: Orders) -> Errors:
    """Return how far a team is from the closed form.

    Args:
        team: that plays.
        orders: that it plays for; at least one target above 0.
    """
    return errors_in(team, orders, team.play(orders))


def errors_in(team: Team, orders: Orders, played: Played) -> Errors:
    """Return how far an episode was from the closed form; see ``errors_of``."""
    ordered = orders.targets > 0
    cleared = clear(team.game.recruitment, orders.targets).prices[ordered]
    off = np.abs(played.prices[0, ordered] - cleared) / cleared
    missed = np.abs(played.efforts[0] - played.best[0])
    gap = np.abs(played.collected[0] - orders.targets)[ordered]
    return Errors(
        effort=float(missed.sum() / played.best[0].sum()),
        worst_effort=float(missed.max() / played.best[0].mean()),
        price=float(off.mean()),
        worst_price=float(off.max()),
        collected=float(gap.sum() / orders.targets.sum()),
    )
