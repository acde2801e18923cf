"""Terms: what an epoch sells and how, fixed and committed to before its first bid."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import msgspec

from nmoe.market.auction import Mechanism, Supply, mechanism_named
from nmoe.market.auction.workloads import Workload, builtin_workloads
from nmoe.market.service.commitment import Link


class Terms(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The terms of one epoch; with its nonce they are what the commitment commits to.

    Attributes:
        epoch: its number, from 1.
        chain: stands for the nonces of this epoch and its neighbours; see ``nmoe.market.service.commitment``.
        link: the nonce's place in it.
        mechanism: its name.
        base: of the mechanism's rounding, where it has one; its default is written down too, which another version may change.
        price: of the mechanism with a fixed one.
        capacity: units for sale; None for no limit.
        unit_cost: of the provider.
        workloads: SHA-256 of what demands are computed from.
        opened_s: seconds since 1970.
        closes_s: when it ends by itself; None where only the operator ends it.
    """

    epoch: int
    chain: str
    link: int
    mechanism: str
    base: float | None
    price: float | None
    capacity: float | None
    unit_cost: float
    workloads: str
    opened_s: float
    closes_s: float | None

    def written(self) -> bytes:
        """Return canonical JSON."""
        return msgspec.json.encode(self)

    def rule(self) -> Mechanism:
        """Return the mechanism.

        Raises:
            ValueError: when there is none of its name, or a parameter is out of range.
        """
        return mechanism_named(self.mechanism, base=self.base, price=self.price)

    def supply(self) -> Supply:
        """Return what is sold.

        Raises:
            ValueError: when a number is out of range.
        """
        return Supply(capacity=math.inf if self.capacity is None else self.capacity, unit_cost=self.unit_cost)


def workloads_digest(workloads: Mapping[str, Workload]) -> str:
    """Return 64 hexadecimal digits that stand for everything in the workloads that demands depend on."""
    return hashlib.sha256(msgspec.json.encode([workloads[name] for name in sorted(workloads)])).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketSettings:
    """What the operator chose; the terms of every epoch that opens from now on.

    Attributes:
        mechanism: its name.
        base: see ``Terms``, as the next three.
        price: of the mechanism with a fixed one.
        capacity: at least 0, infinite for no limit.
        unit_cost: at least 0.
        epoch_s: length of an epoch, at least 0.1; 0 for epochs that the operator ends.
        max_bids: of an epoch.
        max_waiting: bids on their way to the disk; what comes beyond is told to come again.
        operator_token: opens ``POST /epochs/{id}/close``; empty where nobody may.
        workloads: by name.
    """

    mechanism: str = "aeria-ic"
    base: float | None = None
    price: float | None = None
    capacity: float = math.inf
    unit_cost: float = 0.0
    epoch_s: float = 60.0
    max_bids: int = 100_000
    max_waiting: int = 4096
    operator_token: str = field(default="", repr=False)
    workloads: Mapping[str, Workload] = field(default_factory=builtin_workloads)

    def __post_init__(self) -> None:
        """Check everything.

        Raises:
            ValueError: when there is no such mechanism, a number is out of range, or nobody could ever end an epoch.
        """
        if self.epoch_s != 0 and not 0.1 <= self.epoch_s <= 1e9:
            raise ValueError(f"an epoch of 0.1 to 1e9 s wanted, or 0 to end epochs by hand, got {self.epoch_s:g}")
        if self.epoch_s == 0 and not self.operator_token:
            raise ValueError("epochs that do not end by time need an operator's token to end them with")
        if self.max_bids < 1 or self.max_waiting < 1:
            raise ValueError(f"at least 1 bid per epoch and 1 waiting wanted, got {self.max_bids} and {self.max_waiting}")
        if self.operator_token and not (self.operator_token.isascii() and self.operator_token.isprintable()):
            raise ValueError("the operator's token must be printable ASCII")
        terms = self.terms(epoch=1, link=Link("", 1, b""), now_s=0.0)
        terms.rule()
        terms.supply()

    def terms(self, *, epoch: int, link: Link, now_s: float) -> Terms:
        """Return the terms of an epoch that opens now.

        Args:
            epoch: number.
            link: its nonce and where that belongs.
            now_s: seconds since 1970.
        """
        chosen = asdict(mechanism_named(self.mechanism, base=self.base, price=self.price))  # type: ignore[call-overload]  # all are dataclasses
        return Terms(
            epoch=epoch,
            chain=link.chain,
            link=link.link,
            mechanism=self.mechanism,
            base=chosen.get("base"),
            price=chosen.get("price"),
            capacity=None if self.capacity == math.inf else self.capacity,
            unit_cost=self.unit_cost,
            workloads=workloads_digest(self.workloads),
            opened_s=now_s,
            closes_s=now_s + self.epoch_s if self.epoch_s else None,
        )
