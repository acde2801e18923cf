"""Slots: recruitment as a game in slots of time, the very same transition for one game or for many at once.

Source: specification of this project, section 3.6 (a reconstruction; the paper, arXiv 2509.10512, is known by its abstract alone).

    paper   | here                | unit
    S_n     | orders.targets      | samples per slot
    p_n,t   | state.posted        | money per sample
    s_m,t   | actions.efforts     | samples per slot
    mu      | penalty             | money per sample
    R       | orders.reward       | money per slot
    H       | MEMORY              | slots

In a slot workers deliver at the prices that are posted, everybody is paid, and owners post prices for the next slot. So all act at once,
as PettingZoo's parallel environments ask, and workers still see the price before they choose. Every slot is one play of the static game;
what is left of a worker's capacity, its costs and who is there may change between slots.

Departures: a first price is drawn where an episode begins. An owner also observes the price that it has posted and that is not answered
yet. Effort ranges up to ``most_effort``, which no price in range makes worth while, and is cut at the capacity left. Where nobody
delivers, nobody has a share of the reward.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from nmoe.market.incentive.base import POOL, Orders, Recruitment

MEMORY = 4  # slots that agents remember
STEEPEST = 8.0  # largest preference of a pool's worker for an owner, before the softmax


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How workers change between slots; by default they do not.

    Attributes:
        persistence: of a first sample's cost, beta, from slot to slot (AR(1)), in [0, 1).
        shock: standard deviation of what is new in beta, relative to it, at least 0.
        availability: chance that a worker is there in a slot, in (0, 1].
        refresh: share of its cap that a worker recovers in a slot, in (0, 1].
    """

    persistence: float = 0.0
    shock: float = 0.0
    availability: float = 1.0
    refresh: float = 1.0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: when one is out of range.
        """
        if not 0 <= self.persistence < 1:
            raise ValueError(f"persistence must be at least 0 and below 1, got {self.persistence}")
        if not 0 <= self.shock < float("inf"):
            raise ValueError(f"shock must be finite and at least 0, got {self.shock}")
        for name, value in (("availability", self.availability), ("refresh", self.refresh)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlotGame:
    """What stays the same from slot to slot.

    Attributes:
        recruitment: owners and workers.
        price_max: highest price that can be posted, finite and above 0.
        horizon: slots of an episode, at least 1.
        drift: how workers change.
    """

    recruitment: Recruitment
    price_max: float
    horizon: int = 50
    drift: Drift = Drift()

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: when one is out of range, or there are no workers.
        """
        if not 0 < self.price_max < float("inf"):
            raise ValueError(f"the highest price must be finite and above 0, got {self.price_max}")
        if self.horizon < 1:
            raise ValueError(f"horizon must be at least 1 slot, got {self.horizon}")
        if not len(self.recruitment.workers):
            raise ValueError("a game in slots needs at least one worker, got none")

    @property
    def most_effort(self) -> Float[ndarray, " worker"]:
        """Effort whose last sample costs the highest price, were the first for free: no worker has reason for more."""
        return np.asarray(self.price_max / (2 * self.recruitment.workers.alpha))

    @property
    def capacity(self) -> Float[ndarray, " worker"]:
        """What a worker can do when it is fresh."""
        return np.asarray(np.minimum(self.recruitment.workers.cap, self.most_effort))

    @property
    def buyers(self) -> Bool[ndarray, "worker owner"]:
        """Who buys from whom."""
        return np.asarray(self.recruitment.workers.owner[:, None] == self.recruitment.sellers()[None, :])

    @property
    def pooled(self) -> bool:
        """Whether some workers choose between owners."""
        return bool((self.recruitment.workers.owner == POOL).any())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StandingOrders:
    """What every game of a batch is played for; does not change within an episode.

    Attributes:
        targets: to be bought per slot, S_n.
        own: of an owner's own samples that it trains on next to those.
        reward: R, above 0.
        efficiency: eta.
        costs: k_n.
        penalty: mu_n per sample short of the target.
    """

    targets: Float[ndarray, "env owner"]
    own: Float[ndarray, "env owner"]
    reward: Float[ndarray, " env"]
    efficiency: Float[ndarray, " env"]
    costs: Float[ndarray, "env owner"]
    penalty: Float[ndarray, "env owner"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlotState:
    """Where every game of a batch is. Memories have the latest slot last, and zeros for slots before the first.

    Attributes:
        orders: what they are played for.
        slot: slots played.
        posted: prices that workers answer next.
        prices, collected: paid and got, by owner.
        beta: of workers now.
        capacity: that is left to workers; 0 for those who are not there.
        fatigue: what of their capacity workers have spent and not recovered.
        payments, efforts: got and done, by worker.
    """

    orders: StandingOrders
    slot: int
    posted: Float[ndarray, "env owner"]
    prices: Float[ndarray, "env owner memory"]
    collected: Float[ndarray, "env owner memory"]
    beta: Float[ndarray, "env worker"]
    capacity: Float[ndarray, "env worker"]
    fatigue: Float[ndarray, "env worker"]
    payments: Float[ndarray, "env worker memory"]
    efforts: Float[ndarray, "env worker memory"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlotActions:
    """What everybody does at once; out of range is cut to the range.

    Attributes:
        prices: posted for the next slot, in [0, price_max].
        efforts: offered now, in [0, most_effort]; the capacity left bounds what is done.
        preferences: of workers between owners, softmax over those who buy from them, in [-STEEPEST, STEEPEST].
    """

    prices: Float[ndarray, "env owner"]
    efforts: Float[ndarray, "env worker"]
    preferences: Float[ndarray, "env worker owner"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draws:
    """All chance of one transition.

    Attributes:
        shocks: standard normal.
        presence: uniform in [0, 1).
    """

    shocks: Float[ndarray, "env worker"]
    presence: Float[ndarray, "env worker"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlotOutcome:
    """What a slot brought.

    Attributes:
        state: the next one.
        owner_rewards: utility less the penalty, divided by the reward R.
        worker_rewards: utility.
        efforts: done.
        collected: got by owners.
        wages: paid to workers.
    """

    state: SlotState
    owner_rewards: Float[ndarray, "env owner"]
    worker_rewards: Float[ndarray, "env worker"]
    efforts: Float[ndarray, "env worker"]
    collected: Float[ndarray, "env owner"]
    wages: Float[ndarray, "env worker"]


def standing(orders: Orders, penalty: Float[ndarray, " owner"], num_envs: int) -> StandingOrders:
    """Repeat one order for a batch of games.

    Args:
        orders: with a reward above 0.
        penalty: mu_n, at least 0.
        num_envs: size of the batch, at least 1.

    Raises:
        ValueError: when no reward is announced.
    """
    if orders.reward <= 0:
        raise ValueError(f"workers are recruited for a reward above 0, got {orders.reward}")
    return StandingOrders(
        targets=np.tile(orders.targets, (num_envs, 1)),
        own=np.tile(orders.samples - orders.targets, (num_envs, 1)),
        reward=np.full(num_envs, orders.reward),
        efficiency=np.full(num_envs, orders.efficiency),
        costs=np.tile(orders.costs, (num_envs, 1)),
        penalty=np.tile(penalty, (num_envs, 1)),
    )


def draw(game: SlotGame, num_envs: int, generator: np.random.Generator) -> Draws:
    """Draw all chance of one transition."""
    shape = (num_envs, len(game.recruitment.workers))
    return Draws(shocks=generator.standard_normal(shape), presence=generator.random(shape))


def begin(game: SlotGame, orders: StandingOrders, first_prices: Float[ndarray, "env owner"]) -> SlotState:
    """Return the state that an episode begins with: everybody there and fresh, and first prices posted."""
    num_envs, num_owners = orders.targets.shape
    num_workers = len(game.recruitment.workers)
    return SlotState(
        orders=orders,
        slot=0,
        posted=np.clip(first_prices, 0.0, game.price_max),
        prices=np.zeros((num_envs, num_owners, MEMORY)),
        collected=np.zeros((num_envs, num_owners, MEMORY)),
        beta=np.tile(game.recruitment.workers.beta, (num_envs, 1)),
        capacity=np.tile(game.capacity, (num_envs, 1)),
        fatigue=np.zeros((num_envs, num_workers)),
        payments=np.zeros((num_envs, num_workers, MEMORY)),
        efforts=np.zeros((num_envs, num_workers, MEMORY)),
    )


def step(game: SlotGame, state: SlotState, actions: SlotActions, draws: Draws) -> SlotOutcome:
    """Play one slot in every game of a batch; the same arguments give the same outcome.

    Args:
        game: the rules.
        state: before.
        actions: of all.
        draws: chance.

    Returns:
        Rewards, amounts, and the state after.
    """
    workers, owners, orders = game.recruitment.workers, game.recruitment.owners, state.orders
    efforts = np.clip(actions.efforts, 0.0, state.capacity)
    delivered = efforts[:, :, None] * split(game, actions.preferences)  # [env, worker, owner]
    collected = delivered.sum(axis=1)
    wages = (delivered * state.posted[:, None, :]).sum(axis=2)
    samples = orders.own + collected
    effective = owners.quality * samples
    total = effective.sum(axis=1, keepdims=True)
    shares = np.divide(effective, total, out=np.zeros_like(effective), where=total > 0)
    spent = owners.unit_cost * samples + state.posted * collected
    short = np.maximum(orders.targets - collected, 0.0)
    reward = orders.reward[:, None]
    fatigue = np.maximum(state.fatigue + efforts - game.drift.refresh * game.capacity, 0.0)
    after = replace(
        state,
        slot=state.slot + 1,
        posted=np.clip(actions.prices, 0.0, game.price_max),
        prices=_remember(state.prices, state.posted),
        collected=_remember(state.collected, collected),
        beta=_next_beta(game, state.beta, draws.shocks),
        capacity=np.where(draws.presence < game.drift.availability, game.capacity - fatigue, 0.0),
        fatigue=fatigue,
        payments=_remember(state.payments, wages),
        efforts=_remember(state.efforts, efforts),
    )
    return SlotOutcome(
        state=after,
        owner_rewards=(reward * shares - spent - orders.penalty * short) / reward,
        worker_rewards=wages - workers.alpha * efforts**2 - state.beta * efforts,
        efforts=efforts,
        collected=collected,
        wages=wages,
    )


def split(game: SlotGame, preferences: Float[ndarray, "env worker owner"]) -> Float[ndarray, "env worker owner"]:
    """Return to whom workers deliver which share: the softmax over those who buy from them, if anybody does."""
    buyers = game.buyers
    if not game.pooled:
        return np.broadcast_to(buyers.astype(float), (len(preferences), *buyers.shape))
    weights = np.where(buyers, np.exp(np.clip(preferences, -STEEPEST, STEEPEST)), 0.0)
    total = weights.sum(axis=2, keepdims=True)
    return np.asarray(np.divide(weights, total, out=np.zeros_like(weights), where=total > 0))


def observe_owners(state: SlotState) -> Float[ndarray, "env owner feature"]:
    """Return what owners see: target, what was short, price posted, memory of prices and of amounts, R, eta, k_n."""
    orders = state.orders
    short = np.maximum(orders.targets - state.collected[:, :, -1], 0.0)
    public = np.stack([orders.reward, orders.efficiency], axis=1)[:, None, :]
    public = np.broadcast_to(public, (*orders.targets.shape, 2))
    own = np.stack([orders.targets, short, state.posted], axis=2)
    return np.concatenate([own, state.prices, state.collected, public, orders.costs[:, :, None]], axis=2)


def observe_workers(game: SlotGame, state: SlotState) -> Float[ndarray, "env worker feature"]:
    """Return what workers see: prices posted to them, their alpha and beta, the capacity left, memory of payments and of efforts."""
    if game.pooled:
        posted = np.where(game.buyers, state.posted[:, None, :], 0.0)
    else:
        posted = state.posted[:, game.recruitment.workers.owner, None]
    alpha = np.broadcast_to(game.recruitment.workers.alpha, state.beta.shape)
    own = np.stack([alpha, state.beta, state.capacity], axis=2)
    return np.concatenate([posted, own, state.payments, state.efforts], axis=2)


def own_prices(game: SlotGame, posted: Float[ndarray, "env owner"]) -> Float[ndarray, "env worker"]:
    """Return the best price posted to each worker; 0 where nobody buys from it."""
    return np.asarray(np.where(game.buyers, posted[:, None, :], 0.0).max(axis=2))


def best_efforts(game: SlotGame, state: SlotState) -> Float[ndarray, "env worker"]:
    """Return what a worker does who takes the best price posted to it as it is: s* = (p - beta) / (2 alpha), within what it can."""
    wanted = (own_prices(game, state.posted) - state.beta) / (2 * game.recruitment.workers.alpha)
    return np.asarray(np.clip(wanted, 0.0, state.capacity))


def best_preferences(game: SlotGame, posted: Float[ndarray, "env owner"]) -> Float[ndarray, "env worker owner"]:
    """Return preferences of workers who deliver to whoever pays most, as far as a softmax within its range lets them."""
    best = own_prices(game, posted)[:, :, None]
    return np.where(posted[:, None, :] >= best, STEEPEST, -STEEPEST)


def _remember(memory: Float[ndarray, "env agent memory"], latest: Float[ndarray, "env agent"]) -> Float[ndarray, "env agent memory"]:
    """Return a memory with the latest slot in and the oldest out."""
    return np.concatenate([memory[:, :, 1:], latest[:, :, None]], axis=2)


def _next_beta(game: SlotGame, beta: Float[ndarray, "env worker"], shocks: Float[ndarray, "env worker"]) -> Float[ndarray, "env worker"]:
    """Return beta one slot later: drawn back to its mean, and never below 0."""
    mean, drift = game.recruitment.workers.beta, game.drift
    return np.asarray(np.maximum(mean + drift.persistence * (beta - mean) + drift.shock * mean * shocks, 0.0))
