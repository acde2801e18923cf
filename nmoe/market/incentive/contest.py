"""Contest: what owners train for a shared reward, with stocks of their own and workers who sell along supply curves.

Source: this project's derivation (sections 3.3 and 3.4 of its notes on J. Cao, Y. Gao, J. Huang, arXiv 2509.10512, whose formulas are not
known).

| symbol | here | unit |
|---|---|---|
| R | reward | money |
| T, eta = T/R | total, efficiency | effective sample, effective sample/money |
| c_n^0, q_n, x_n^0 | Owners.unit_cost, quality, stock | money/sample, 1, sample |
| p_n(S) | SupplyCurves | money/sample |
| x_n, s_n = q_n x_n / T | samples, shares | sample, 1 |

    marginal income (1 - s_n) / eta  =  k_n,  the cost of one more effective sample: c_n^0/q_n from the stock, (c_n^0 + p_n)/q_n beyond it

Given eta and T every owner has one answer, for income falls and cost rises with its samples; answers fall as eta rises, also where T rises
with it, so shares sum to 1 at one eta. Owners take prices as given; a price is what clears its workers' supply.

Departures: one search covers what is derived as three (constant price, stock, supply curve): a constant price is a curve with an infinite
slope. The search brackets and uses Brent's method instead of halving. Where all workers are at their caps the price is what makes the owner
want no more. Fewer than two owners who have or can buy samples are no contest: nobody trains.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import brentq

from nmoe.market.incentive.base import Owners
from nmoe.market.incentive.roots import falling_roots
from nmoe.market.incentive.supply import SupplyCurves

FIRST = 1e-9  # of the highest efficiency: where a search begins
SMALLEST = 1e-12  # reward


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contest:
    """What owners answer.

    Attributes:
        efficiency: eta; 0 where nobody trains.
        total: T.
        samples: x_n.
        prices: p_n; that of a first sample where none is bought.
    """

    efficiency: float
    total: float
    samples: Float[ndarray, " owner"]
    prices: Float[ndarray, " owner"]

    @property
    def reward(self) -> float:
        """R, for which they train."""
        return self.total / self.efficiency if self.efficiency > 0 else 0.0


def answers(
    owners: Owners, curves: SupplyCurves, efficiency: Float[ndarray, "..."], total: Float[ndarray, "..."]
) -> tuple[Float[ndarray, "... owner"], Float[ndarray, "... owner"]]:
    """Return every owner's samples and price at an efficiency and a total, both above 0.

    Args:
        owners: who trains.
        curves: a row per owner; they may differ along the axes of eta.
        efficiency: eta.
        total: T, of the shape of eta.
    """
    eta, total = efficiency[..., None], total[..., None]  # [..., 1]
    q, stock = owners.quality, owners.stock
    wanted = total / q * (1 - eta * owners.unit_cost / q)  # of an endless stock
    fall = eta * total / q**2  # how much less is wanted per unit of price
    excess = (wanted - stock)[..., None] - fall[..., None] * curves.breaks - curves.amounts  # [..., owner, break] demand less supply
    place = (excess >= 0).sum(axis=-1) - 1
    buys, found = place >= 0, np.maximum(place, 0)[..., None]
    at_break, amount, slope, excess = (
        np.take_along_axis(np.broadcast_to(column, excess.shape), found, axis=-1)[..., 0]
        for column in (curves.breaks, curves.amounts, curves.slopes, excess)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        price = at_break + excess / (fall + slope)
        bought = amount + excess / (1 + fall / slope)
    samples = np.where(buys, stock + bought, np.clip(wanted, 0.0, stock))
    return samples, np.where(buys, price, curves.lowest)


def able(owners: Owners, curves: SupplyCurves) -> int:
    """Return how many owners have or can buy samples."""
    return int(((owners.stock > 0) | np.isfinite(curves.lowest)).sum(axis=-1).min())


def settle_contest(owners: Owners, curves: SupplyCurves, total_at: Callable[[float], float], *, first: float = 0.0) -> Contest:
    """Find the efficiency at which shares sum to 1.

    Args:
        owners: who trains.
        curves: a row per owner.
        total_at: the total at an efficiency, increasing: ``eta R`` for a given reward, or what a leader wants at it.
        first: efficiency above which the total is above 0.

    Returns:
        The only equilibrium; one without samples where no efficiency above ``first`` is reached.
    """
    nobody = Contest(efficiency=0.0, total=0.0, samples=np.zeros(len(owners)), prices=curves.lowest)
    highest = float((owners.quality / owners.unit_cost).max())
    low = max(first * (1 + FIRST), highest * FIRST)
    if able(owners, curves) < 2 or low >= highest:
        return nobody

    def surplus(efficiency: float) -> float:
        total = total_at(efficiency)
        samples, _ = answers(owners, curves, np.asarray(efficiency), np.asarray(total))
        return float((owners.quality * samples).sum()) / total - 1

    if surplus(low) <= 0:
        return nobody
    efficiency = float(brentq(surplus, low, highest, xtol=1e-300, rtol=8.9e-16))
    total = total_at(efficiency)
    samples, prices = answers(owners, curves, np.asarray(efficiency), np.asarray(total))
    return Contest(efficiency=efficiency, total=total, samples=samples, prices=prices)


def totals_for(owners: Owners, curves: SupplyCurves, rewards: Float[ndarray, " reward"]) -> Float[ndarray, " reward"]:
    """Return what owners train in all for many rewards at once; 0 where fewer than two are able.

    Args:
        owners: who trains.
        curves: a row per owner; they may differ by reward.
        rewards: at least 0.
    """
    if able(owners, curves) < 2:
        return np.zeros_like(rewards)
    paid = np.maximum(rewards, SMALLEST)

    def surplus(efficiency: ndarray) -> ndarray:
        total = efficiency * paid
        samples, _ = answers(owners, curves, efficiency, total)
        return np.asarray((owners.quality * samples).sum(axis=-1) / total - 1)

    high = np.full_like(rewards, (owners.quality / owners.unit_cost).max())
    return np.asarray(falling_roots(surplus, FIRST * high, high) * rewards)
