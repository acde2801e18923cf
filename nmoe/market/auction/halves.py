"""Halves: a coin for every user splits the market in two."""

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from nmoe.market.auction.floor import Pool


def heads(pool: Pool, draw: float) -> Bool[ndarray, " member"]:
    """Return which users of a pool are in the first half.

    The coins are tossed for all users of the market in its order, so that no bid moves anybody's coin. The draw seeds them: a double in
    [0, 1) times 2^53 is an integer.

    Args:
        pool: whose users.
        draw: in [0, 1).
    """
    coins = np.random.default_rng(int(draw * 2**53)).random(pool.market) < 0.5
    return np.asarray(coins[pool.users], dtype=bool)
