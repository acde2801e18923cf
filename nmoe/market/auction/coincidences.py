"""Coincidences: markets of round numbers with a draw at which an estimate jumps, where rounding alone may decide what a bid changes.

Source: derived for this project, after such markets showed a flaw in 1 of 1,000 deviations that random ones never show. The consensus
estimate c^(i+u) of a market V jumps at u = log_c V mod 1; V is made from numbers that many sets of bids share.
"""

import numpy as np
from numpy.random import Generator

from nmoe.market.auction.base import Bids, Supply
from nmoe.market.auction.benchmarks import two_winner_value
from nmoe.market.auction.flaws import Trial
from nmoe.market.auction.guarantees import VICKREY_PROBABILITY

BASES = (2.0, 2.0, 2.0, 2.0, 1.1, 1.43, 4.0, 10.0)
UNITS = (0.1, 0.3, 1 / 3, 0.7, 1.0, 1.1)
VALUES = (1.0, 2.0, 3.0, 4.0, 5.0, 8.0, 10.0)
NUDGES = (0.0, 0.0, 1e-16, -1e-16, 1e-15)
USERS = (3, 21)  # from, and below


def draw_coincidence(generator: Generator) -> Trial:
    """Draw a market in which the estimate of all users but one is at its jump, for one of ``BASES``.

    Args:
        generator: of everything.
    """
    users = int(generator.integers(*USERS))
    unit = float(generator.choice(UNITS))
    demand = unit * generator.choice((1.0, 1.0, 2.0, 3.0), users)
    value = generator.choice(VALUES, users) / unit
    unit_cost = float(generator.choice((0.0, 0.0, 0.5 / unit)))
    others = np.delete(np.argsort(-value, kind="stable"), int(generator.integers(users)))
    worth = two_winner_value(value[others], demand[others].cumsum())
    draw = (np.log(worth) / np.log(generator.choice(BASES))) % 1.0 + generator.choice(NUDGES)
    if generator.random() < 0.25:  # where the mixture of AERIA and Vickrey draws for AERIA
        draw = VICKREY_PROBABILITY + (1 - VICKREY_PROBABILITY) * draw
    return Trial(
        bids=Bids(ids=tuple(f"user {place + 1}" for place in range(users)), amount=(value + unit_cost) * demand, demand=demand),
        supply=Supply(capacity=float(generator.choice((np.inf, unit * generator.integers(2, 10)))), unit_cost=unit_cost),
        draw=float(np.clip(draw, 0.0, np.nextafter(1.0, 0.0))),
    )
