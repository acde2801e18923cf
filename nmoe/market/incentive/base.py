"""Base: the three tiers of the incentive game, what they settle on, and the layer of workers that the upper tiers buy from.

A publisher announces a reward for training. Model owners train, each for its share of the reward, on samples of their own and on samples
that they buy from workers. The game is this project's derivation: of its source (J. Cao, Y. Gao, J. Huang, arXiv 2509.10512) no more than
the abstract was available. Samples and money are divisible.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

POOL = -1  # owner of a worker that everybody can buy from


class BadRecruitment(ValueError):
    """Owners and workers that are no game; the message names the row and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Owners:
    """Model owners, a column each; validated when made.

    Attributes:
        ids: one per owner, no two alike, none empty; at least two, for with one there is no contest for the reward.
        quality: effective samples per sample, q, above 0 and at most 1.
        unit_cost: of training on one sample and sending the result, c^0, finite and above 0.
        stock: samples already owned, x^0, finite and at least 0.
    """

    ids: tuple[str, ...]
    quality: Float[ndarray, " owner"]
    unit_cost: Float[ndarray, " owner"]
    stock: Float[ndarray, " owner"]

    def __post_init__(self) -> None:
        """Check the columns.

        Raises:
            BadRecruitment: when there are fewer than two owners, an id is empty or there twice, or a number is not in its range.
        """
        if len(self.ids) < 2:
            raise BadRecruitment(f"at least 2 owners wanted, for one alone would be paid for any effort, got {len(self.ids)}")
        columns = {"quality": self.quality, "unit cost": self.unit_cost, "stock": self.stock}
        check_columns("owner", self.ids, columns)
        check_numbers("owner", self.ids, "quality", self.quality, (self.quality > 0) & (self.quality <= 1), "above 0 and at most 1")
        good = np.isfinite(self.unit_cost) & (self.unit_cost > 0)
        check_numbers("owner", self.ids, "unit cost", self.unit_cost, good, "finite and above 0")
        good = np.isfinite(self.stock) & (self.stock >= 0)
        check_numbers("owner", self.ids, "stock", self.stock, good, "finite and at least 0")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workers:
    """Workers who gather samples, a column each; one that gathers s samples pays alpha s^2 + beta s for it. Validated when made.

    Attributes:
        ids: one per worker, no two alike, none empty; there may be none.
        alpha: how fast effort grows dearer, finite and above 0.
        beta: cost of a first sample, finite and at least 0.
        cap: most samples a worker can gather, above 0; infinite for no limit.
        owner: index of the owner that a worker gathers for, or ``POOL``. Owners without workers of their own buy from the pool, the others
            from theirs.
    """

    ids: tuple[str, ...]
    alpha: Float[ndarray, " worker"]
    beta: Float[ndarray, " worker"]
    cap: Float[ndarray, " worker"]
    owner: Int[ndarray, " worker"]

    def __post_init__(self) -> None:
        """Check the columns.

        Raises:
            BadRecruitment: when an id is empty or there twice, or a number is not in its range.
        """
        columns = {"alpha": self.alpha, "beta": self.beta, "cap": self.cap, "owner": self.owner}
        check_columns("worker", self.ids, columns)
        check_numbers("worker", self.ids, "alpha", self.alpha, np.isfinite(self.alpha) & (self.alpha > 0), "finite and above 0")
        check_numbers("worker", self.ids, "beta", self.beta, np.isfinite(self.beta) & (self.beta >= 0), "finite and at least 0")
        check_numbers("worker", self.ids, "cap", self.cap, self.cap > 0, "above 0")
        check_numbers("worker", self.ids, "owner", self.owner, self.owner >= POOL, "an owner's index or the pool")

    def __len__(self) -> int:
        return len(self.ids)

    def cost(self, efforts: Float[ndarray, " worker"]) -> Float[ndarray, " worker"]:
        """Return what gathering so many samples costs each worker."""
        return np.asarray(self.alpha * efforts**2 + self.beta * efforts)


class DataValue(ABC):
    """What effective samples are worth, g: rising, strictly concave, g(0) = 0 and g'(0) = 1. Final classes are frozen dataclasses."""

    @abstractmethod
    def value(self, total: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
        """Return g of a total of at least 0 effective samples."""

    @abstractmethod
    def slope(self, total: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
        """Return g' of a total of at least 0 effective samples."""

    @abstractmethod
    def total_at(self, slope: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
        """Return the total at which g' has this value, above 0; 0 where g' is nowhere that steep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """The task publisher, who is worth ``factor * data_value.value(total) - reward``.

    Attributes:
        factor: lambda, what training is worth to it, finite and above 0.
        data_value: g.
    """

    factor: float
    data_value: DataValue

    def __post_init__(self) -> None:
        """Check the factor.

        Raises:
            BadRecruitment: when it is out of range.
        """
        if not 0 < self.factor < float("inf"):
            raise BadRecruitment(f"the publisher's factor lambda must be finite and above 0, got {self.factor}")

    def utility(self, total: Float[ndarray, "..."], reward: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
        """Return what the publisher has of a total of effective samples for a reward."""
        return np.asarray(self.factor * self.data_value.value(total) - reward)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recruitment:
    """A game: the three tiers.

    Attributes:
        publisher: announces the reward.
        owners: train.
        workers: gather; there may be none.
    """

    publisher: Publisher
    owners: Owners
    workers: Workers

    def __post_init__(self) -> None:
        """Check that workers gather for owners that are there.

        Raises:
            BadRecruitment: when one does not.
        """
        known = self.workers.owner < len(self.owners)
        wanted = f"below {len(self.owners)}, the number of owners"
        check_numbers("worker", self.workers.ids, "owner", self.workers.owner, known, wanted)

    def sellers(self) -> Int[ndarray, " owner"]:
        """Return from whose workers each owner buys: its own index, or ``POOL``."""
        own = np.zeros(len(self.owners), dtype=bool)
        own[self.workers.owner[self.workers.owner != POOL]] = True
        return np.where(own, np.arange(len(self.owners)), POOL)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Orders:
    """What the upper layer wants of workers, and the contest that it is wanted for.

    Attributes:
        targets: samples that each owner wants to buy at its present price, S_n, at least 0; 0 where it takes no part.
        samples: that each owner wants to train on in all, x_n; above its stock by the target.
        reward: R, of the publisher, at least 0.
        efficiency: eta, effective samples per unit of reward of all owners together; 0 where no task is published.
        costs: k_n, what each owner believes one more effective sample to cost.
    """

    targets: Float[ndarray, " owner"]
    samples: Float[ndarray, " owner"]
    reward: float
    efficiency: float
    costs: Float[ndarray, " owner"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WorkerResponse:
    """What came of orders.

    Attributes:
        prices: paid per sample by each owner, p_n; that of the first sample where nothing is ordered; infinite where nobody sells.
        collected: samples that each owner got, at least 0 and at most its target, up to a learner's error.
        efforts: samples that each worker gathered, s_m.
        wages: paid to each worker; None where that is its effort times the price of whom it gathers for.
        exhausted: owners to whom nobody sells more for a somewhat higher price, so that the price is too low to say what a sample is worth;
            None for none.
        limits: the most that an exhausted owner can get; None where that is what it got.
        policy_change: how far the workers' policies moved since the last response, relative; 0 where nothing is learned.
    """

    prices: Float[ndarray, " owner"]
    collected: Float[ndarray, " owner"]
    efforts: Float[ndarray, " worker"]
    wages: Float[ndarray, " worker"] | None = None
    exhausted: Bool[ndarray, " owner"] | None = None
    limits: Float[ndarray, " owner"] | None = None
    policy_change: float = 0.0


class WorkerLayer(ABC):
    """The lower layer: workers who answer orders with a price and samples. May learn from one response to the next.

    ASOSA calls ``opening_prices`` once, then ``respond`` with new orders until prices settle.
    """

    @property
    @abstractmethod
    def tolerance(self) -> float:
        """How exactly prices can settle: the largest relative change of a cost k_n that counts as none."""

    @abstractmethod
    def opening_prices(self) -> Float[ndarray, " owner"]:
        """Return a first guess of prices per owner; infinite where nobody sells to it."""

    @abstractmethod
    def respond(self, orders: Orders) -> WorkerResponse:
        """Answer orders; a layer that learns goes on from where it was."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Settlement:
    """Who trains how much, on whose samples, for what pay.

    Attributes:
        recruitment: the game.
        reward: R, paid by the publisher, at least 0.
        shares: of the reward per owner; they sum to 1, or to 0 where nobody trains.
        samples: trained on by each owner, x_n.
        prices: per sample that each owner buys, p_n; that of the first sample where it buys none, infinite where nobody sells.
        spent: what each owner pays workers in all; ``prices * bought`` where pay is by the sample.
        efforts: samples that each worker gathered, s_m.
        wages: paid to each worker.
        method: how it came about.
        why_empty: why no task is published; empty where one is.
    """

    recruitment: Recruitment
    reward: float
    shares: Float[ndarray, " owner"]
    samples: Float[ndarray, " owner"]
    prices: Float[ndarray, " owner"]
    spent: Float[ndarray, " owner"]
    efforts: Float[ndarray, " worker"]
    wages: Float[ndarray, " worker"]
    method: str
    why_empty: str = ""

    @property
    def bought(self) -> Float[ndarray, " owner"]:
        """Samples that each owner buys, S_n."""
        return np.asarray(np.maximum(self.samples - self.recruitment.owners.stock, 0.0))

    @property
    def total(self) -> float:
        """Effective samples of all owners."""
        return float((self.recruitment.owners.quality * self.samples).sum())

    @property
    def payments(self) -> Float[ndarray, " owner"]:
        """What the publisher pays each owner."""
        return np.asarray(self.reward * self.shares)

    @property
    def trains(self) -> Bool[ndarray, " owner"]:
        """Who takes part."""
        return np.asarray(self.samples > 0)

    @property
    def publisher_utility(self) -> float:
        """U_TP."""
        return float(self.recruitment.publisher.utility(np.asarray(self.total), np.asarray(self.reward)))

    @property
    def owner_utilities(self) -> Float[ndarray, " owner"]:
        """U_n: payment less training less what workers are paid."""
        return np.asarray(self.payments - self.recruitment.owners.unit_cost * self.samples - self.spent)

    @property
    def worker_utilities(self) -> Float[ndarray, " worker"]:
        """U_m: wage less effort."""
        return np.asarray(self.wages - self.recruitment.workers.cost(self.efforts))


def check_columns(kind: str, ids: Sequence[str], columns: dict[str, ndarray]) -> None:
    """Check that every column has one number per id, and that ids are unique and not empty.

    Raises:
        BadRecruitment: when they do not.
    """
    for name, column in columns.items():
        if column.shape != (len(ids),):
            raise BadRecruitment(f"{name} must have one number per {kind}, {len(ids)}, got shape {column.shape}")
    if len(set(ids)) != len(ids):
        raise BadRecruitment(f"{kind} {Counter(ids).most_common(1)[0][0]!r} is there twice")
    if "" in ids:
        raise BadRecruitment(f"{kind} in row {list(ids).index('') + 1} has an empty id")


def check_numbers(kind: str, ids: Sequence[str], name: str, column: ndarray, good: Bool[ndarray, " row"], wanted: str) -> None:
    """Check a column.

    Raises:
        BadRecruitment: when a number of it is not good; the message names the first.
    """
    if not good.all():
        row = int(np.argmin(good))
        raise BadRecruitment(f"{name} of {kind} {ids[row]!r} (row {row + 1}) must be {wanted}, got {column[row]}")
