"""Exact workers: the lower layer in closed form, for which ASOSA's loop can be held against the joint equilibrium.

Source: this project's static benchmark of the workers' game (``nmoe.market.incentive.supply``).

Departures: where more is ordered than workers gather, for all who work are at their caps, a pool gives all its buyers the same share of
their orders. A supply curve has a gap there: the orders' own price is within it (``nmoe.market.incentive.scarcity``). The tolerance is
1e-10, not the derivation's 1e-8, which leaves one game in ten further than 1e-8 from the joint equilibrium.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from nmoe.market.incentive.base import POOL, Orders, Recruitment, WorkerLayer, WorkerResponse
from nmoe.market.incentive.joint import lowest_prices
from nmoe.market.incentive.scarcity import demand_at
from nmoe.market.incentive.supply import SupplyCurves, dedicated_supply, efforts_at, pool_supply

TOLERANCE = 1e-10  # leaves the loop within 1e-8 of the joint equilibrium


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
        limits = self.dedicated.limits(demand_at(self.recruitment, orders, self.dedicated.breaks))
        collected = np.minimum(orders.targets, np.minimum(limits, self.dedicated.most))
        prices = self.dedicated.price(collected)
        if buyers.any():
            ordered = float(orders.targets[buyers].sum())
            parts = orders.targets / ordered if ordered > 0 else np.full_like(orders.targets, 1 / buyers.sum())
            breaks = np.repeat(self.pool.breaks, len(buyers), axis=0)
            limit = float(self.pool.limits(demand_at(self.recruitment, orders, breaks)[buyers].sum(axis=0, keepdims=True))[0])
            gathered = min(ordered, limit, float(self.pool.most[0]))
            limits = np.where(buyers, parts * limit if np.isfinite(limit) else np.inf, limits)
            collected = np.where(buyers, np.minimum(orders.targets, parts * gathered), collected)
            prices = np.where(buyers, self.pool.price(np.array([gathered]))[0], prices)
        efforts = efforts_at(self.recruitment, np.where(np.isfinite(prices), prices, 0.0))
        return WorkerResponse(prices=prices, collected=collected, efforts=efforts, exhausted=np.isfinite(limits), limits=limits)


def exact_workers(recruitment: Recruitment) -> ExactWorkers:
    """Return the exact lower layer of a game."""
    return ExactWorkers(recruitment=recruitment, dedicated=dedicated_supply(recruitment), pool=pool_supply(recruitment))
