"""ASOSA: the loop that lets the publisher and owners above and the workers below settle, each layer in its own way.

Source: J. Cao, Y. Gao, J. Huang, "Service-oriented adaptive hierarchical incentive mechanism for federated learning", arXiv 2509.10512; its
abstract says that ASOSA stabilises everyone's strategies and solves the coupling of the layers. The loop is this project's reconstruction.

| symbol | here | unit |
|---|---|---|
| k_n = (c_n^0 + p_n)/q_n | costs | money/effective sample |
| kappa | Damping.first, Step.damping | 1 |
| res | Step.residual | 1 |
| R, x_n, p_n, S_n | Step.reward, samples, prices; Orders.targets | money, sample, money/sample, sample |

    k <- (c + p(0))/q, then until res < tolerance:
    1 upper layer: owners' shares and R from k;  2 lower layer: prices and samples collected for S_n;  3 k' = (c + p)/q, res = max |k'-k|/k
    4 res > 0.999 of the last one: kappa <- max(kappa/2, 0.001); after 10 good steps: kappa <- min(0.5, 1.2 kappa)
    5 k <- (1 - kappa) k + kappa k'

Departures: where the lower layer says that a higher price brings no more samples, all who work being at their caps, p is the price at which
the owners would want no more than what they got. Where owners have stocks the upper layer is searched over a grid, and res counts as
nothing from 1e-6. Where workers are scarce prices have a long way to rise and the residual need not fall on it: after 20 turns at the least
damping kappa is 0.3 again. With stocks the best reward may jump between two peaks as prices move: the loop has no end in such games, and
gives up when that has been so five times. The joint equilibrium takes over then, as at the last turn, and the result says so; it is that of
a publisher that foresees how prices rise with its reward, which the loop's does not.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from nmoe.market.incentive.base import POOL, Orders, Recruitment, Settlement, WorkerLayer, WorkerResponse
from nmoe.market.incentive.contest import settle_contest, totals_for
from nmoe.market.incentive.joint import empty_settlement, joint_equilibrium, why_nobody
from nmoe.market.incentive.nash import nash_shares
from nmoe.market.incentive.scarcity import scarcity_prices
from nmoe.market.incentive.stackelberg import best_reward, largest_reward, search_reward
from nmoe.market.incentive.supply import flat_curves, worker_prices

WORSE = 0.999  # a residual above this part of the last one is no progress
LEAST = 1e-3  # damping
GOOD_STEPS = 10
FASTER = 1.2
PATIENCE = 20  # turns at the least damping, up to a factor of 2: what has not settled by then crawls, or jumps
AGAIN = 0.3  # damping after that
CHANCES = 5  # times; what has not settled by then jumps
STOCK_TOLERANCE = 1e-6  # the reward comes from a grid then


@dataclass(frozen=True, slots=True, kw_only=True)
class Damping:
    """How far costs move towards what they were found to be.

    Attributes:
        first: kappa at the start, above 0 and at most 1; 1 for none.
        adaptive: as ASOSA does it; else kappa stays.
    """

    first: float = 0.5
    adaptive: bool = True

    def __post_init__(self) -> None:
        """Check the start.

        Raises:
            ValueError: when it is out of range.
        """
        if not 0 < self.first <= 1:
            raise ValueError(f"damping must be above 0 and at most 1, got {self.first}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast costs move, as turns go well or not.

    Attributes:
        kappa: the damping.
        good: steps since it changed, all good.
        slow: turns on end at the least damping, up to a factor of 2.
        crawls: how often there were too many of these.
    """

    kappa: float
    good: int = 0
    slow: int = 0
    crawls: int = 0

    def after(self, *, worse: bool) -> "Pace":
        """Return the pace after a turn that made things worse or not."""
        kappa, good = (max(self.kappa / 2, LEAST), 0) if worse else (self.kappa, self.good + 1)
        if good == GOOD_STEPS:
            kappa, good = min(0.5, FASTER * kappa), 0
        slow = self.slow + 1 if kappa < 2 * LEAST else 0
        if slow == PATIENCE:
            return Pace(kappa=AGAIN, crawls=self.crawls + 1)
        return Pace(kappa=kappa, good=good, slow=slow, crawls=self.crawls)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One turn of the loop.

    Attributes:
        reward: R.
        samples: x_n that owners want.
        prices: p_n that workers answered with.
        costs: k_n before the turn.
        residual: largest relative change of a cost that the prices ask for.
        damping: kappa that the costs moved by.
        policy_change: of the lower layer.
    """

    reward: float
    samples: Float[ndarray, " owner"]
    prices: Float[ndarray, " owner"]
    costs: Float[ndarray, " owner"]
    residual: float
    damping: float
    policy_change: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loop:
    """What became of the loop.

    Attributes:
        settlement: the end; the joint equilibrium's where the loop did not settle and ``fell_back``.
        steps: all turns.
        converged: the residual fell below the tolerance.
        fell_back: the settlement is not the loop's.
    """

    settlement: Settlement
    steps: tuple[Step, ...]
    converged: bool
    fell_back: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Asosa:
    """The loop's parameters.

    Attributes:
        damping: how costs move.
        tolerance: residual that ends it; None for the lower layer's own.
        policy_tolerance: change of a learned lower layer's policies that ends it with the residual.
        max_steps: turns before it gives up, at least 1.
        fall_back: take the joint equilibrium then; else the last turn.
    """

    damping: Damping = Damping()
    tolerance: float | None = None
    policy_tolerance: float = 0.05
    max_steps: int = 1000
    fall_back: bool = True

    def __post_init__(self) -> None:
        """Check the number of turns.

        Raises:
            ValueError: when it is below 1.
        """
        if self.max_steps < 1:
            raise ValueError(f"at least 1 step wanted, got {self.max_steps}")

    def run(self, recruitment: Recruitment, layer: WorkerLayer) -> Loop:
        """Let the layers settle.

        Args:
            recruitment: the game.
            layer: its workers.
        """
        owners = recruitment.owners
        tolerance = layer.tolerance if self.tolerance is None else self.tolerance
        if (owners.stock > 0).any():
            tolerance = max(tolerance, STOCK_TOLERANCE)
        prices, last, pace = layer.opening_prices(), np.inf, Pace(kappa=self.damping.first)
        steps: list[Step] = []
        while True:
            orders = upper_layer(recruitment, prices)
            response = layer.respond(orders)
            found = _clearing(recruitment, orders, response)
            residual = _residual(recruitment, prices, found)
            if self.damping.adaptive:
                pace = pace.after(worse=residual > WORSE * last)
            steps.append(_step(orders, found, residual, pace.kappa, response))
            if residual < tolerance and response.policy_change < self.policy_tolerance:
                return self._end(recruitment, orders, response, found, steps, converged=True)
            if len(steps) >= self.max_steps or pace.crawls >= CHANCES:
                return self._end(recruitment, orders, response, found, steps, converged=False)
            last = residual
            prices = np.where(np.isfinite(found), (1 - pace.kappa) * prices + pace.kappa * found, prices)

    def _end(
        self,
        recruitment: Recruitment,
        orders: Orders,
        response: WorkerResponse,
        prices: Float[ndarray, " owner"],
        steps: list[Step],
        *,
        converged: bool,
    ) -> Loop:
        """Return the loop's own end, or the joint equilibrium where it has none."""
        fell_back = self.fall_back and not converged
        if fell_back:
            settlement = joint_equilibrium(recruitment)
            foresees = ", whose publisher foresees prices" if settlement.method == "anticipating" else ""
            settlement = replace(settlement, method=f"asosa, fallen back on the joint equilibrium{foresees}")
        else:
            settlement = settle_response(recruitment, orders, replace(response, prices=prices), method="asosa")
        return Loop(settlement=settlement, steps=tuple(steps), converged=converged, fell_back=fell_back)


def upper_layer(recruitment: Recruitment, prices: Float[ndarray, " owner"]) -> Orders:
    """Return what publisher and owners settle on at prices that they take as given; a reward of 0 where nothing is worth it."""
    owners, publisher = recruitment.owners, recruitment.publisher
    costs = (owners.unit_cost + prices) / owners.quality
    if not (owners.stock > 0).any():
        nash = nash_shares(costs)
        reward = best_reward(publisher, nash.efficiency) if nash.efficiency > 0 else 0.0
        samples = nash.amounts(reward) / owners.quality
        return Orders(targets=samples, samples=samples, reward=reward, efficiency=nash.efficiency if reward > 0 else 0.0, costs=costs)
    curves = flat_curves(prices)
    high = largest_reward(publisher, float((owners.quality / owners.unit_cost).max()))
    reward = search_reward(publisher, lambda rewards: totals_for(owners, curves, rewards), high=high)
    first = 0.0 if reward > 0 else np.inf
    contest = settle_contest(owners, curves, lambda efficiency: efficiency * reward, first=first)
    targets = np.maximum(contest.samples - owners.stock, 0.0)
    return Orders(targets=targets, samples=contest.samples, reward=reward, efficiency=contest.efficiency, costs=costs)


def settle_response(recruitment: Recruitment, orders: Orders, response: WorkerResponse, *, method: str) -> Settlement:
    """Return what comes of a response: owners train on their stock and what they got, at most what they wanted, and share the reward."""
    owners = recruitment.owners
    samples = np.minimum(orders.samples, owners.stock + response.collected)
    effective = owners.quality * samples
    if effective.sum() <= 0:
        return empty_settlement(recruitment, method=method, why=why_nobody(recruitment))
    finite = np.where(np.isfinite(response.prices), response.prices, 0.0)
    wages = response.wages
    if wages is None:
        wages, spent = response.efforts * worker_prices(recruitment, finite), finite * response.collected
    else:
        dedicated = recruitment.workers.owner != POOL
        spent = np.bincount(recruitment.workers.owner[dedicated], weights=wages[dedicated], minlength=len(owners))
        pooled = np.where(recruitment.sellers() == POOL, response.collected, 0.0)
        spent = spent + float(wages[~dedicated].sum()) * pooled / max(float(pooled.sum()), 1e-300)
    return Settlement(
        recruitment=recruitment,
        reward=orders.reward,
        shares=effective / effective.sum(),
        samples=samples,
        prices=response.prices,
        spent=spent,
        efforts=response.efforts,
        wages=wages,
        method=method,
    )


def _residual(recruitment: Recruitment, prices: Float[ndarray, " owner"], found: Float[ndarray, " owner"]) -> float:
    """Return the largest relative change of a cost, |k'-k|/k = |p'-p|/(c+p)."""
    known = np.isfinite(prices) & np.isfinite(found)
    changes = np.abs(found[known] - prices[known]) / (recruitment.owners.unit_cost[known] + prices[known])
    return float(changes.max(initial=0.0))


def _clearing(recruitment: Recruitment, orders: Orders, response: WorkerResponse) -> Float[ndarray, " owner"]:
    """Return the response's prices; where workers are exhausted, those at which owners would want no more than they can get."""
    if response.exhausted is None or not response.exhausted.any():
        return response.prices
    limits = response.collected if response.limits is None else response.limits
    scarce = scarcity_prices(recruitment, orders, limits)
    return np.where(response.exhausted, np.maximum(scarce, response.prices), response.prices)


def _step(orders: Orders, prices: Float[ndarray, " owner"], residual: float, kappa: float, response: WorkerResponse) -> Step:
    return Step(
        reward=orders.reward,
        samples=orders.samples,
        prices=prices,
        costs=orders.costs,
        residual=residual,
        damping=kappa,
        policy_change=response.policy_change,
    )
