"""Strategies: ways to settle a game from end to end: ASOSA, the joint equilibrium, and the baselines that ASOSA is compared with.

Source: the list is that of this project's notes (section 3.7) on J. Cao, Y. Gao, J. Huang, arXiv 2509.10512; the paper's baselines are not
known to us.

Departures: every rule is ours, as its class says. Under all but ``EqualSplitStrategy`` the publisher announces its best reward for the
costs that it believes in, and owners share it by what they train.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from nmoe.market.incentive.asosa import Asosa, Damping, Loop, settle_response, upper_layer
from nmoe.market.incentive.base import POOL, Recruitment, Settlement, WorkerLayer, WorkerResponse, Workers
from nmoe.market.incentive.contract import ContractWorkers
from nmoe.market.incentive.exact_workers import exact_workers
from nmoe.market.incentive.joint import anticipating_equilibrium, empty_settlement, joint_equilibrium, lowest_prices
from nmoe.market.incentive.supply import dedicated_supply, efforts_at, pool_supply

CEILING = 2.0  # times the dearest worker's first sample: the highest price that is drawn; a fixed price is half of it


class Strategy(ABC):
    """A way to settle a game. Final classes are frozen dataclasses.

    Attributes:
        name: in tables and figures.
    """

    name: ClassVar[str]

    @abstractmethod
    def settle(self, recruitment: Recruitment, generator: np.random.Generator) -> Settlement:
        """Settle a game.

        Args:
            recruitment: the game.
            generator: of strategies that draw.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class AsosaStrategy(Strategy):
    """ASOSA's loop over the exact lower layer."""

    name: ClassVar[str] = "asosa"
    loop: Asosa = field(default_factory=Asosa)

    def settle(self, recruitment: Recruitment, generator: np.random.Generator) -> Settlement:
        return self.loop.run(recruitment, exact_workers(recruitment)).settlement


@dataclass(frozen=True, slots=True, kw_only=True)
class JointStrategy(Strategy):
    """The joint equilibrium by a bracketed search, which knows all costs of all tiers."""

    name: ClassVar[str] = "oracle"

    def settle(self, recruitment: Recruitment, generator: np.random.Generator) -> Settlement:
        return joint_equilibrium(recruitment)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnticipatingStrategy(Strategy):
    """A publisher that also foresees how workers' prices rise with its reward."""

    name: ClassVar[str] = "anticipating"

    def settle(self, recruitment: Recruitment, generator: np.random.Generator) -> Settlement:
        return anticipating_equilibrium(recruitment)


@dataclass(frozen=True, slots=True, kw_only=True)
class UndampedStrategy(Strategy):
    """The loop without damping: costs jump to what they were found to be; where it ends in a cycle, the last turn counts."""

    name: ClassVar[str] = "undamped"
    max_steps: int = 100

    def settle(self, recruitment: Recruitment, generator: np.random.Generator) -> Settlement:
        return undamped(recruitment, exact_workers(recruitment), max_steps=self.max_steps).settlement


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractStrategy(Strategy):
    """The loop over menus of contracts (``nmoe.market.incentive.contract``)."""

    name: ClassVar[str] = "contract"
    loop: Asosa = field(default_factory=lambda: Asosa(max_steps=200, fall_back=False))

    def settle(self, recruitment: Recruitment, generator: np.random.Generator) -> Settlement:
        return self.loop.run(recruitment, ContractWorkers(recruitment=recruitment)).settlement


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyStrategy(Strategy):
    """Nobody looks beyond the present: everybody plans with the prices of first samples, once, and pays what clears the orders then."""

    name: ClassVar[str] = "greedy"

    def settle(self, recruitment: Recruitment, generator: np.random.Generator) -> Settlement:
        layer = exact_workers(recruitment)
        orders = upper_layer(recruitment, layer.opening_prices())
        return settle_response(recruitment, orders, layer.respond(orders), method=self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedPriceStrategy(Strategy):
    """All owners pay one price per sample, that of the dearest worker's first; workers gather what is best for them, if it is ordered."""

    name: ClassVar[str] = "fixed-price"

    def settle(self, recruitment: Recruitment, generator: np.random.Generator) -> Settlement:
        price = float(recruitment.workers.beta.max(initial=0.0))
        return at_posted_prices(recruitment, np.full(len(recruitment.owners), price), method=self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomPriceStrategy(Strategy):
    """Every owner, and the pool, draws a price per sample between 0 and twice that of the dearest worker's first."""

    name: ClassVar[str] = "random-price"

    def settle(self, recruitment: Recruitment, generator: np.random.Generator) -> Settlement:
        ceiling = CEILING * float(recruitment.workers.beta.max(initial=0.0))
        drawn = generator.uniform(0, ceiling, len(recruitment.owners) + 1)
        prices = np.where(recruitment.sellers() == POOL, drawn[-1], drawn[:-1])
        return at_posted_prices(recruitment, prices, method=self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoWorkersStrategy(Strategy):
    """Owners train on their stocks alone."""

    name: ClassVar[str] = "no-worker"

    def settle(self, recruitment: Recruitment, generator: np.random.Generator) -> Settlement:
        nobody = Workers(ids=(), alpha=np.zeros(0), beta=np.zeros(0), cap=np.zeros(0), owner=np.zeros(0, dtype=int))
        alone = anticipating_equilibrium(replace(recruitment, workers=nobody))
        idle = np.zeros(len(recruitment.workers))
        return replace(alone, recruitment=recruitment, efforts=idle, wages=idle, method=self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualSplitStrategy(Strategy):
    """The joint equilibrium's reward and total are split equally: whoever brings an equal part gets an equal part; others get nothing."""

    name: ClassVar[str] = "equal-split"

    def settle(self, recruitment: Recruitment, generator: np.random.Generator) -> Settlement:
        aim, owners = joint_equilibrium(recruitment), recruitment.owners
        if aim.reward <= 0:
            return replace(aim, method=self.name)
        pay, samples = aim.reward / len(owners), aim.total / len(owners) / owners.quality
        bought = np.maximum(samples - owners.stock, 0.0)
        accepts = np.ones(len(owners), dtype=bool)
        while True:  # owners leave until nobody who stays loses; prices in a pool only fall as they do
            ordered = np.where(accepts, bought, 0.0)
            prices = clearing_prices(recruitment, ordered)
            spent = np.where(ordered > 0, prices, 0.0) * ordered
            stays = accepts & (pay >= owners.unit_cost * samples + spent)
            if (stays == accepts).all():
                break
            accepts = stays
        if not accepts.any():
            return empty_settlement(recruitment, method=self.name, why="no owner brings an equal part for an equal part of the reward")
        efforts = efforts_at(recruitment, np.where(np.isfinite(prices), prices, 0.0))
        response = WorkerResponse(prices=prices, collected=ordered, efforts=np.where(_ordered_of(recruitment, ordered) > 0, efforts, 0.0))
        orders = replace(upper_layer(recruitment, prices), samples=np.where(accepts, samples, 0.0), reward=pay * int(accepts.sum()))
        return replace(
            settle_response(recruitment, orders, response, method=self.name), shares=np.where(accepts, 1.0, 0.0) / int(accepts.sum())
        )


STRATEGIES: tuple[Strategy, ...] = (
    AsosaStrategy(),
    JointStrategy(),
    AnticipatingStrategy(),
    ContractStrategy(),
    EqualSplitStrategy(),
    GreedyStrategy(),
    FixedPriceStrategy(),
    RandomPriceStrategy(),
    UndampedStrategy(),
    NoWorkersStrategy(),
)


def undamped(recruitment: Recruitment, layer: WorkerLayer, *, max_steps: int) -> Loop:
    """Run the loop without damping and without falling back."""
    loop = Asosa(damping=Damping(first=1.0, adaptive=False), max_steps=max_steps, fall_back=False)
    return loop.run(recruitment, layer)


def clearing_prices(recruitment: Recruitment, ordered: Float[ndarray, " owner"]) -> Float[ndarray, " owner"]:
    """Return the prices at which workers gather what is ordered; infinite where they cannot."""
    pooled = recruitment.sellers() == POOL
    price = float(pool_supply(recruitment).price(np.array([ordered[pooled].sum()]))[0])
    return np.where(pooled, price, dedicated_supply(recruitment).price(ordered))


def at_posted_prices(recruitment: Recruitment, prices: Float[ndarray, " owner"], *, method: str) -> Settlement:
    """Return what comes of prices that owners post whatever happens: orders at these prices, of which workers gather what they like.

    Args:
        recruitment: the game.
        prices: per sample that an owner buys, finite.
        method: name of the rule that posted them.
    """
    reachable = np.isfinite(lowest_prices(recruitment))
    orders = upper_layer(recruitment, np.where(reachable, prices, np.inf))
    supplied = np.append(dedicated_supply(recruitment).supply(prices), 0.0)
    pooled = recruitment.sellers() == POOL
    if pooled.any():
        supplied[-1] = pool_supply(recruitment).supply(prices[pooled][:1])[0]
    ordered = np.append(np.where(pooled, 0.0, orders.targets), orders.targets[pooled].sum())
    met = np.minimum(np.divide(supplied, ordered, out=np.ones_like(ordered), where=ordered > 0), 1.0)
    used = np.divide(ordered, supplied, out=np.zeros_like(ordered), where=supplied > 0)
    collected = orders.targets * np.where(pooled, met[-1], met[:-1])
    efforts = efforts_at(recruitment, prices) * np.minimum(used, 1.0)[recruitment.workers.owner]  # less is ordered: all gather less
    response = WorkerResponse(prices=np.where(reachable, prices, np.inf), collected=collected, efforts=efforts)
    return settle_response(recruitment, orders, response, method=method)


def _ordered_of(recruitment: Recruitment, ordered: Float[ndarray, " owner"]) -> Float[ndarray, " worker"]:
    """Return what is ordered, in all, from the group of each worker."""
    pooled = recruitment.sellers() == POOL
    groups = np.append(np.where(pooled, 0.0, ordered), ordered[pooled].sum())
    return np.asarray(groups[recruitment.workers.owner])
