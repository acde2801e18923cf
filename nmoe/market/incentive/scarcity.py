"""Scarcity: the price at which owners want no more than what workers gather, where a higher price would bring no more.

Source: this project's; workers without caps, which are all that its derivation has, are never scarce.

    T/q_n (1 - eta (c_n^0 + p)/q_n) - x_n^0 = limit_n,   for a pool the sum of the left sides above 0 is the pool's limit

Departures: T and eta of the contest stay; the loop around this moves them.
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import brentq

from nmoe.market.incentive.base import POOL, Orders, Recruitment


def demand_at(recruitment: Recruitment, orders: Orders, prices: Float[ndarray, "owner price"]) -> Float[ndarray, "owner price"]:
    """Return what each owner would order at other prices than its own, the contest's T and eta staying; 0 where there is no task."""
    owners, total = recruitment.owners, orders.efficiency * orders.reward
    if total <= 0:
        return np.zeros_like(prices)
    q, cost, stock = (column[:, None] for column in (owners.quality, owners.unit_cost, owners.stock))
    return np.asarray(np.maximum(total / q * (1 - orders.efficiency * (cost + prices) / q) - stock, 0.0))


def scarcity_prices(recruitment: Recruitment, orders: Orders, limits: Float[ndarray, " owner"]) -> Float[ndarray, " owner"]:
    """Return the prices at which owners would order their limits; minus infinity where there is no limit or no task.

    Args:
        recruitment: the game.
        orders: of the contest.
        limits: the most that each owner can get; those of the pool's buyers sum to the pool's.
    """
    owners, total = recruitment.owners, orders.efficiency * orders.reward
    if total <= 0:
        return np.full(len(owners), -np.inf)
    q = owners.quality
    prices = q * (1 - q * (owners.stock + limits) / total) / orders.efficiency - owners.unit_cost
    pooled = recruitment.sellers() == POOL
    sold = float(limits[pooled].sum())
    if not pooled.any() or not 0 < sold < np.inf:
        return np.asarray(prices)

    def excess(price: float) -> float:
        wanted = total / q * (1 - orders.efficiency * (owners.unit_cost + price) / q) - owners.stock
        return float(np.maximum(wanted, 0.0)[pooled].sum()) - sold

    high = float((q / orders.efficiency - owners.unit_cost)[pooled].max())
    low = -float(owners.unit_cost.max()) - 1
    found = float(brentq(excess, low, high)) if high > low and excess(low) > 0 else -np.inf
    return np.where(pooled, found, prices)
