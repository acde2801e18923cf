"""Supply: how many samples workers gather at a price, and at which price they gather so many.

Source: this project's static benchmark of the workers' decisions; the paper leaves them to reinforcement learning.

| symbol | here | unit |
|---|---|---|
| alpha_m, beta_m | Workers.alpha, beta | money/sample^2, money/sample |
| s_m^max | Workers.cap | sample |
| p | price | money/sample |
| s_m* | efforts_at | sample |
| g_m = 1/(2 alpha_m) | slope of one worker's supply | sample^2/money |

    s_m*(p) = min(max(0, (p - beta_m) g_m), s_m^max)

What a group of workers supplies is piecewise linear in the price: a worker joins at its beta and is at its cap at beta + 2 alpha s^max.

Departures: caps are part of the inverse, which is infinite beyond what all can gather.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from nmoe.market.incentive.base import POOL, Recruitment, Workers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SupplyCurves:
    """One supply curve a row, between breaks of which the number differs by row; rows are filled up with infinite prices.

    Attributes:
        breaks: prices at which the slope changes, ascending; none is finite where nobody sells.
        amounts: supplied at a break.
        slopes: more samples per unit of price after a break; infinite where any amount is to be had at the price.
    """

    breaks: Float[ndarray, "... row break"]
    amounts: Float[ndarray, "... row break"]
    slopes: Float[ndarray, "... row break"]

    @property
    def lowest(self) -> Float[ndarray, "... row"]:
        """The price of a first sample; infinite where nobody sells."""
        return np.asarray(self.breaks[..., 0])

    @property
    def most(self) -> Float[ndarray, " row"]:
        """What is supplied at no matter which price."""
        last = np.isfinite(self.breaks).sum(axis=1) - 1
        rows = np.arange(len(last))
        endless = (last >= 0) & (self.slopes[rows, last] > 0)
        return np.where(endless, np.inf, np.where(last < 0, 0.0, self.amounts[rows, last]))

    def supply(self, prices: Float[ndarray, "... row"]) -> Float[ndarray, "... row"]:
        """Return what is supplied at finite prices."""
        place = (self.breaks <= prices[..., None]).sum(axis=-1) - 1
        rows, found = np.arange(place.shape[-1]), np.maximum(place, 0)
        with np.errstate(invalid="ignore"):
            amounts = self.amounts[rows, found] + self.slopes[rows, found] * (prices - self.breaks[rows, found])
        return np.where(place < 0, 0.0, amounts)

    def price(self, amounts: Float[ndarray, " row"]) -> Float[ndarray, " row"]:
        """Return the lowest price at which so much is supplied, p(S); ``lowest`` for 0, infinite for more than ``most``."""
        below = (self.amounts < amounts[:, None]) & np.isfinite(self.breaks)
        place = np.maximum(below.sum(axis=1) - 1, 0)
        rows = np.arange(len(place))
        missing = amounts - self.amounts[rows, place]
        slopes = self.slopes[rows, place]
        with np.errstate(divide="ignore", invalid="ignore"):
            rise = np.where(missing > 0, missing / slopes, 0.0)
        return np.asarray(self.breaks[rows, place] + rise)

    def limits(self, demand: Float[ndarray, "row break"]) -> Float[ndarray, " row"]:
        """Return what is supplied where demand meets a gap, in which a higher price brings no more samples; infinite where it meets none.

        A gap lies between the price at which all who work are at their caps and the one at which the next worker joins, if any.

        Args:
            demand: at every break, falling along a row.
        """
        after = np.concatenate([demand[:, 1:], np.zeros((len(demand), 1))], axis=1)
        gap = np.isfinite(self.breaks) & (self.slopes == 0) & (demand >= self.amounts) & (after <= self.amounts)
        return np.asarray(np.where(gap, self.amounts, np.inf).min(axis=1))

    def with_flat(self, rows: Bool[ndarray, " row"], price: Float[ndarray, "..."]) -> "SupplyCurves":
        """Return curves of which some rows supply any amount at a price, one or many along new first axes; nothing at an infinite one."""
        breaks = np.broadcast_to(self.breaks, (*price.shape, *self.breaks.shape)).copy()
        amounts, slopes = self.amounts.copy(), self.slopes.copy()
        breaks[..., rows, :] = np.inf
        breaks[..., rows, 0] = price[..., None]
        amounts[rows] = 0.0
        slopes[rows] = 0.0
        slopes[rows, 0] = np.inf
        return SupplyCurves(breaks=breaks, amounts=amounts, slopes=slopes)


def flat_curves(prices: Float[ndarray, " row"]) -> SupplyCurves:
    """Return curves that supply any amount at a price each; nothing where it is infinite."""
    zeros = np.zeros((len(prices), 1))
    return SupplyCurves(breaks=prices[:, None].astype(float), amounts=zeros, slopes=np.full_like(zeros, np.inf))


def supply_curves(workers: Workers, row: Int[ndarray, " worker"], num_rows: int) -> SupplyCurves:
    """Return what groups of workers supply.

    Args:
        workers: all of them.
        row: each worker's group, from 0; negative for none.
        num_rows: number of groups.
    """
    kept = np.flatnonzero(row >= 0)
    capped = kept[np.isfinite(workers.cap[kept])]
    price = np.concatenate([workers.beta[kept], workers.beta[capped] + 2 * workers.alpha[capped] * workers.cap[capped]])
    steeper = np.concatenate([1 / (2 * workers.alpha[kept]), -1 / (2 * workers.alpha[capped])])
    joins = np.concatenate([np.ones(len(kept), dtype=int), -np.ones(len(capped), dtype=int)])
    rows = np.concatenate([row[kept], row[capped]])
    order = np.lexsort((price, rows))
    price, steeper, joins, rows = price[order], steeper[order], joins[order], rows[order]
    counts = np.bincount(rows, minlength=num_rows)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = max(int(counts.max(initial=0)), 1)
    breaks = np.full((num_rows, width), np.inf)
    slopes, active = np.zeros((num_rows, width)), np.zeros((num_rows, width), dtype=int)
    breaks[rows, place], slopes[rows, place], active[rows, place] = price, steeper, joins
    there = np.isfinite(breaks)
    slopes = np.where(np.cumsum(active, axis=1) > 0, np.cumsum(slopes, axis=1), 0.0)  # exactly 0 where all are at their caps
    amounts = np.zeros_like(breaks)
    with np.errstate(invalid="ignore"):
        steps = np.where(there[:, 1:], slopes[:, :-1] * np.diff(breaks, axis=1), 0.0)
    amounts[:, 1:] = np.cumsum(steps, axis=1)
    return SupplyCurves(breaks=breaks, amounts=amounts, slopes=np.where(there, slopes, 0.0))


def dedicated_supply(recruitment: Recruitment) -> SupplyCurves:
    """Return what each owner's own workers supply, a row per owner."""
    return supply_curves(recruitment.workers, recruitment.workers.owner, len(recruitment.owners))


def pool_supply(recruitment: Recruitment) -> SupplyCurves:
    """Return what the pool supplies, in one row."""
    return supply_curves(recruitment.workers, np.where(recruitment.workers.owner == POOL, 0, -1), 1)


def efforts_at(recruitment: Recruitment, prices: Float[ndarray, " owner"]) -> Float[ndarray, " worker"]:
    """Return what each worker gathers best for itself, s_m*, given the price per sample of every owner."""
    workers = recruitment.workers
    paid = worker_prices(recruitment, prices)
    return np.asarray(np.clip((paid - workers.beta) / (2 * workers.alpha), 0.0, workers.cap))


def worker_prices(recruitment: Recruitment, prices: Float[ndarray, " owner"]) -> Float[ndarray, " worker"]:
    """Return what each worker is paid per sample, given every owner's price; 0 in a pool that no owner buys from."""
    buyers = recruitment.sellers() == POOL
    pool_price = float(prices[buyers][0]) if buyers.any() and np.isfinite(prices[buyers][0]) else 0.0
    return np.asarray(np.append(prices, pool_price)[recruitment.workers.owner])  # POOL is the last
