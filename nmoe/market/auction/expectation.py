"""Expectation: what a mechanism earns on average over its draw."""

import math

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from nmoe.market.auction.base import Bids, Mechanism, Supply


def midpoints(points: int) -> Float[ndarray, " point"]:
    """Return the midpoints of equal parts of [0, 1).

    Raises:
        ValueError: when there is no part.
    """
    if points < 1:
        raise ValueError(f"points must be at least 1, got {points}")
    return (np.arange(points) + 0.5) / points


def expected_profit(mechanism: Mechanism, bids: Bids, supply: Supply, *, points: int = 400) -> float:
    """Integrate the profit over the draw by midpoints: no noise where the profit is piecewise smooth in the draw.

    A mechanism that seeds a generator with its draw (``RSOP``, ``SamplingExtraction``) is sampled ``points`` times instead.

    Args:
        mechanism: whose.
        bids: taken as they are.
        supply: what is sold.
        points: how many, at least 1.

    Raises:
        ValueError: when ``points`` is below 1.
    """
    return math.fsum(mechanism.clear(bids, supply, draw=float(draw)).profit for draw in midpoints(points)) / points
