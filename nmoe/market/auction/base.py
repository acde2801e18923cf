"""Base: what every auction reads and returns.

A market sells one divisible good, edge compute, in units of which each user demands a fixed number or none. All prices are per unit.
"""

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from nmoe.core.errors import NmoeError


class BadBids(ValueError):
    """Bids that are no market; the message names the row and what is wrong with it."""


class NoMarket(NmoeError):
    """A market that a mechanism has no outcome for, such as a lottery without a draw."""


class Reason(IntEnum):
    """Why a user is served or not."""

    SERVED = 0
    LOCAL = 1  # the device alone meets the need: no unit is demanded
    UNSERVABLE = 2  # no exit and partition meet the need, whatever edge compute is given
    BELOW_COST = 3  # bids less per unit than a unit costs the provider
    NO_ROOM = 4  # others bid more and fill the capacity
    OUTBID = 5  # bids less per unit than its price
    NO_PRICE = 6  # no price recovers the revenue that was aimed for, or nobody is left to set one
    REJECTED = 7  # the lottery took it out, whatever it bid


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bids:
    """Sealed bids, a column each; validated when made.

    Attributes:
        ids: one per user, no two alike, none empty.
        amount: what a user offers in all, finite and at least 0.
        demand: units wanted, at least 0; 0 where the device does it alone, infinite where no amount of edge compute is enough.
        provider: whose model a user wants, from 0; None where there is one provider.
    """

    ids: tuple[str, ...]
    amount: Float[ndarray, " user"]
    demand: Float[ndarray, " user"]
    provider: Int[ndarray, " user"] | None = None

    def __post_init__(self) -> None:
        """Check the columns.

        Raises:
            BadBids: when a column has another length, an id is empty or there twice, or a number is not in its range.
        """
        columns = {"amount": self.amount, "demand": self.demand} | ({} if self.provider is None else {"provider": self.provider})
        for name, column in columns.items():
            if column.shape != (len(self.ids),):
                raise BadBids(f"{name} must have one number per user, {len(self.ids)}, got shape {column.shape}")
        if len(set(self.ids)) != len(self.ids):
            twice = Counter(self.ids).most_common(1)[0][0]
            first = self.ids.index(twice)
            raise BadBids(f"user {twice!r} is there twice, in rows {first + 1} and {self.ids.index(twice, first + 1) + 1}")
        if "" in self.ids:
            raise BadBids(f"row {self.ids.index('') + 1} has an empty id")
        self._check("bid", self.amount, np.isfinite(self.amount) & (self.amount >= 0), "finite and at least 0")
        self._check("demand", self.demand, self.demand >= 0, "at least 0")
        if self.provider is not None:
            self._check("provider", self.provider, self.provider >= 0, "at least 0")

    def _check(self, name: str, column: ndarray, good: Bool[ndarray, " user"], wanted: str) -> None:
        if not good.all():
            row = int(np.argmin(good))
            raise BadBids(f"{name} of user {self.ids[row]!r} (row {row + 1}) must be {wanted}, got {column[row]}")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """What the edge has.

    Attributes:
        capacity: units in all, at least 0; infinite for no limit.
        unit_cost: what a unit costs the provider, finite and at least 0.
    """

    capacity: float = float("inf")
    unit_cost: float = 0.0

    def __post_init__(self) -> None:
        """Check both.

        Raises:
            ValueError: when one is out of range.
        """
        if not self.capacity >= 0:
            raise ValueError(f"capacity must be at least 0, got {self.capacity}")
        if not 0 <= self.unit_cost < float("inf"):
            raise ValueError(f"unit cost must be finite and at least 0, got {self.unit_cost}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """Who is served, at which price.

    Attributes:
        mechanism: its name.
        draw: the draw that it was cleared with.
        reason: per user, a ``Reason``; ``SERVED`` is 0.
        unit_price: what each user is asked per unit, the provider's cost included: winners pay it, losers bid less; infinite where no
            price is offered, 0 where nothing is demanded.
        payment: what each user pays in all; 0 where it is not served.
        demand: as in the bids.
        unit_cost: what a unit costs the provider.
        estimates: what the mechanism computed on its way, by name, such as the revenue aimed for.
    """

    mechanism: str
    draw: float
    reason: Int[ndarray, " user"]
    unit_price: Float[ndarray, " user"]
    payment: Float[ndarray, " user"]
    demand: Float[ndarray, " user"]
    unit_cost: float
    estimates: dict[str, float]

    @property
    def served(self) -> Bool[ndarray, " user"]:
        """Who gets its demand."""
        return np.asarray(self.reason == Reason.SERVED, dtype=bool)

    @property
    def revenue(self) -> float:
        """All payments."""
        return float(self.payment.sum())

    @property
    def profit(self) -> float:
        """Payments less the cost of what is sold: the papers' objective."""
        return self.revenue - self.unit_cost * float(self.demand[self.served].sum())


class Mechanism(ABC):
    """A rule that turns sealed bids and one public draw into an outcome. Final classes are frozen dataclasses of their parameters.

    Attributes:
        name: on the command line.
        truthful: bidding one's value is a best reply for every draw.
        envy_free: for every draw no user would rather have another's price.
    """

    name: ClassVar[str]
    truthful: ClassVar[bool]
    envy_free: ClassVar[bool]

    @abstractmethod
    def clear(self, bids: Bids, supply: Supply, *, draw: float) -> Outcome:
        """Clear the market; the same bids and draw give the same outcome.

        Args:
            bids: at least none.
            supply: what is sold.
            draw: uniform in [0, 1), the only chance in it.

        Raises:
            ValueError: when the draw is not in [0, 1).
        """
