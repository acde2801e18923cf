"""Joint: the equilibrium of all three tiers at once, by a bracketed search: the oracle that ASOSA is held against.

Source: this project's derivation (section 3.4 of its notes on J. Cao, Y. Gao, J. Huang, arXiv 2509.10512, whose formulas are not known).

| symbol | here | unit |
|---|---|---|
| eta = T/R | Contest.efficiency | effective sample/money |
| P | price of the pool | money/sample |
| R_loop | joint_equilibrium | money |
| R_true | anticipating_equilibrium | money |

    lambda eta g'(T) = 1 and the shares of the contest at (eta, T) sum to 1;    a pool supplies at P what owners order at P

The publisher takes eta as given here, as it does in ASOSA's loop, and so pays R_loop. One that foresees how prices rise with its reward
pays R_true <= R_loop. Where owners have stocks T(R) has kinks and the first condition may hold at several rewards or none: both searches
are then the same, over a grid of rewards.

Departures: a search over eta at which the publisher's condition already holds, in place of one over T inside one over R; it has one root
for the same reason (shares fall as eta and T(eta) rise). A pool adds a search over its price, whose root need not be the only one where
owners differ much in quality; it has always been in our tests.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.optimize import brentq

from nmoe.market.incentive.base import POOL, Owners, Recruitment, Settlement
from nmoe.market.incentive.contest import SMALLEST, Contest, answers, settle_contest, totals_for
from nmoe.market.incentive.nash import nash_shares
from nmoe.market.incentive.roots import falling_roots
from nmoe.market.incentive.stackelberg import best_total, largest_reward, search_reward
from nmoe.market.incentive.supply import SupplyCurves, dedicated_supply, efforts_at, pool_supply, worker_prices

Follow = Callable[[SupplyCurves], Contest]


def joint_equilibrium(recruitment: Recruitment) -> Settlement:
    """Find the joint fixed point: of the loop where owners have no stock, of a publisher that foresees all where they have.

    Returns:
        The settlement; empty, with the reason, where no task is published.
    """
    if (recruitment.owners.stock > 0).any():
        return anticipating_equilibrium(recruitment)
    publisher = recruitment.publisher
    first = 1 / publisher.factor  # g'(0) = 1: at a lower efficiency nothing is worth publishing

    def follow(curves: SupplyCurves) -> Contest:
        return settle_contest(recruitment.owners, curves, lambda efficiency: best_total(publisher, efficiency), first=first)

    return settled(recruitment, clear_pool(recruitment, follow), method="joint")


def anticipating_equilibrium(recruitment: Recruitment) -> Settlement:
    """Find the reward of a publisher that foresees owners' answers and workers' prices, and what follows from it."""
    owners = recruitment.owners
    high = largest_reward(recruitment.publisher, float((owners.quality / owners.unit_cost).max()))
    buyers, own, pool = recruitment.sellers() == POOL, dedicated_supply(recruitment), pool_supply(recruitment)

    def follow(rewards: ndarray) -> ndarray:
        if not buyers.any() or not np.isfinite(pool.lowest[0]):
            return totals_for(owners, own, rewards)
        return totals_for(owners, own.with_flat(buyers, pool_prices(owners, own, pool, buyers, rewards)), rewards)

    reward = search_reward(recruitment.publisher, follow, high=high)
    return settled(recruitment, contest_for(recruitment, reward), method="anticipating")


def pool_prices(
    owners: Owners, own: SupplyCurves, pool: SupplyCurves, buyers: Bool[ndarray, " owner"], rewards: Float[ndarray, " reward"]
) -> Float[ndarray, " reward"]:
    """Return the pool's prices for many rewards at once.

    Args:
        owners: who train.
        own: what their own workers supply.
        pool: what the pool supplies.
        buyers: who buys from it.
        rewards: at least 0.
    """

    def excess(prices: ndarray) -> ndarray:
        curves = own.with_flat(buyers, prices)
        total = np.maximum(totals_for(owners, curves, rewards), SMALLEST)
        samples, _ = answers(owners, curves, total / np.maximum(rewards, SMALLEST), total)
        ordered = np.maximum(samples - owners.stock, 0.0)[..., buyers].sum(axis=-1)
        return np.asarray(ordered - pool.supply(prices[:, None])[:, 0])

    low = np.full_like(rewards, pool.lowest[0])
    high = 2 * low + 1
    while (excess(high) > 0).any():
        high *= 2
    return falling_roots(excess, low, high)


def contest_for(recruitment: Recruitment, reward: float) -> Contest:
    """Return what owners and workers settle on for a reward."""

    def follow(curves: SupplyCurves) -> Contest:
        first = 0.0 if reward > 0 else np.inf
        return settle_contest(recruitment.owners, curves, lambda efficiency: efficiency * reward, first=first)

    return clear_pool(recruitment, follow)


def clear_pool(recruitment: Recruitment, follow: Follow) -> Contest:
    """Find the pool's price at which owners order what it supplies, and what they settle on then.

    Args:
        recruitment: the game.
        follow: what owners settle on, given curves with a row per owner.
    """
    buyers, own, pool = recruitment.sellers() == POOL, dedicated_supply(recruitment), pool_supply(recruitment)
    lowest = float(pool.lowest[0])
    if not buyers.any() or not np.isfinite(lowest):
        return follow(own)

    def excess(price: float) -> float:
        contest = follow(own.with_flat(buyers, np.asarray(price)))
        ordered = np.maximum(contest.samples - recruitment.owners.stock, 0.0)[buyers].sum()
        return float(ordered - pool.supply(np.array([price]))[0])

    if excess(lowest) <= 0:
        return follow(own.with_flat(buyers, np.asarray(lowest)))
    high = 2 * lowest + 1
    while excess(high) > 0:
        high *= 2
    price = float(brentq(excess, lowest, high, xtol=1e-300, rtol=8.9e-16))
    return follow(own.with_flat(buyers, np.asarray(price)))


def settled(recruitment: Recruitment, contest: Contest, *, method: str) -> Settlement:
    """Return the settlement of a contest whose prices clear: workers gather what is best for them."""
    prices = contest.prices
    efforts = efforts_at(recruitment, np.where(np.isfinite(prices), prices, 0.0))
    trained = float((recruitment.owners.quality * contest.samples).sum())
    if trained <= 0:
        return empty_settlement(recruitment, method=method, why=why_nobody(recruitment))
    bought = np.maximum(contest.samples - recruitment.owners.stock, 0.0)
    efforts = _scaled(recruitment, efforts, bought)
    return Settlement(
        recruitment=recruitment,
        reward=contest.reward,
        shares=recruitment.owners.quality * contest.samples / trained,
        samples=contest.samples,
        prices=prices,
        spent=np.where(bought > 0, np.where(np.isfinite(prices), prices, 0.0) * bought, 0.0),
        efforts=efforts,
        wages=efforts * worker_prices(recruitment, np.where(np.isfinite(prices), prices, 0.0)),
        method=method,
    )


def empty_settlement(recruitment: Recruitment, *, method: str, why: str) -> Settlement:
    """Return the settlement of a task that is not published."""
    nothing, idle = np.zeros(len(recruitment.owners)), np.zeros(len(recruitment.workers))
    return Settlement(
        recruitment=recruitment,
        reward=0.0,
        shares=nothing,
        samples=nothing,
        prices=lowest_prices(recruitment),
        spent=nothing,
        efforts=idle,
        wages=idle,
        method=method,
        why_empty=why,
    )


def lowest_prices(recruitment: Recruitment) -> Float[ndarray, " owner"]:
    """Return the price of a first sample for each owner, p_n(0); infinite where nobody sells to it."""
    pooled = float(pool_supply(recruitment).lowest[0])
    return np.where(recruitment.sellers() == POOL, pooled, dedicated_supply(recruitment).lowest)


def why_nobody(recruitment: Recruitment) -> str:
    """Say why no task is published."""
    owners = recruitment.owners
    first = np.where(owners.stock > 0, 0.0, lowest_prices(recruitment))
    costs = (owners.unit_cost + first) / owners.quality
    num_able = int(np.isfinite(costs).sum())
    if num_able < 2:
        return f"at least 2 owners who have samples or can buy some are wanted, there are {num_able}"
    least = 1 / nash_shares(costs).efficiency
    return f"lambda {recruitment.publisher.factor:g} is too low: a first effective sample costs a reward of {least:.4g}"


def _scaled(recruitment: Recruitment, efforts: ndarray, bought: ndarray) -> ndarray:
    """Make efforts sum to what is bought to the last digit; they do but for rounding."""
    sellers = recruitment.sellers()
    wanted = np.append(np.where(sellers == POOL, 0.0, bought), bought[sellers == POOL].sum())
    groups = np.where(recruitment.workers.owner == POOL, len(bought), recruitment.workers.owner)
    gathered = np.bincount(groups, weights=efforts, minlength=len(bought) + 1)
    factors = np.divide(wanted, gathered, out=np.zeros_like(wanted), where=gathered > 0)
    return np.asarray(efforts * np.where(np.abs(factors - 1) < 1e-6, factors, 1.0)[groups])
