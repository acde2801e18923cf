"""Exact workers: the lower layer in closed form, for which ASOSA's loop can be held against the joint equilibrium.

Source: this project's static benchmark of the workers' game (``nmoe.market.incentive.supply``).

Departures: where more is ordered than workers can gather at any price, a pool gives all its buyers the same share of their orders.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from nmoe.market.incentive.base import POOL, Orders, Recruitment, WorkerLayer, WorkerResponse
from nmoe.market.incentive.joint import lowest_prices
from nmoe.market.incentive.scarcity import scarcity_prices
from nmoe.market.incentive.supply import SupplyCurves, dedicated_supply, efforts_at, pool_supply

TOLERANCE = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExactWorkers(WorkerLayer):
    """Workers who gather what is best for them at the price that clears the orders.

    Attributes:
        recruitment: whose workers they are.
        dedicated: what each owner's own workers supply, a row per owner.
        pool: what the pool supplies, in one row.
    """

    recruitment: Recruitment
    dedicated: SupplyCurves
    pool: SupplyCurves

    @property
    def tolerance(self) -> float:
        return TOLERANCE

    def opening_prices(self) -> Float[ndarray, " owner"]:
        return lowest_prices(self.recruitment)

    def respond(self, orders: Orders) -> WorkerResponse:
        buyers = self.recruitment.sellers() == POOL
        limits, highest = self.dedicated.most, _highest(self.dedicated)
        collected = np.minimum(orders.targets, limits)
        prices = self.dedicated.price(collected)
        if buyers.any():
            ordered, most = float(orders.targets[buyers].sum()), float(self.pool.most[0])
            parts = orders.targets / ordered if ordered > 0 else np.full_like(orders.targets, 1 / buyers.sum())
            limits = np.where(buyers, parts * most, limits) if np.isfinite(most) else np.where(buyers, np.inf, limits)
            highest = np.where(buyers, _highest(self.pool)[0], highest)
            collected = np.where(buyers, np.minimum(orders.targets, limits), collected)
            prices = np.where(buyers, self.pool.price(np.array([min(ordered, most)]))[0], prices)
        exhausted = scarcity_prices(self.recruitment, orders, limits) >= highest  # then all work as much as they can
        efforts = efforts_at(self.recruitment, np.where(np.isfinite(prices), prices, 0.0))
        return WorkerResponse(prices=prices, collected=collected, efforts=efforts, exhausted=exhausted, limits=limits)


def _highest(curves: SupplyCurves) -> Float[ndarray, " row"]:
    """Return the price from which all workers of a row are at their caps; infinite where that is never."""
    most = curves.most
    return np.where(np.isfinite(most) & (most > 0), curves.price(np.where(np.isfinite(most), most, 0.0)), np.inf)


def exact_workers(recruitment: Recruitment) -> ExactWorkers:
    """Return the exact lower layer of a game."""
    return ExactWorkers(recruitment=recruitment, dedicated=dedicated_supply(recruitment), pool=pool_supply(recruitment))
