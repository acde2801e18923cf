"""Sealed bid: what a bidder sends, its checks, and the one way in which it is written down."""

import re
from typing import Any, Self

import msgspec

from nmoe.http import Rejected, quoted

USER_ID = r"^[A-Za-z0-9_][A-Za-z0-9._:@+-]{0,63}$"
NEED = ("workload", "accuracy", "latency_s", "tasks", "device_flops", "uplink_bps")
BOUNDS: dict[str, tuple[float, float]] = {  # far beyond any bidder, far within what floats can be reckoned with
    "bid": (0.0, 1e15),
    "demand": (0.0, 1e18),
    "accuracy": (0.0, 1.0),
    "latency_s": (1e-6, 1e6),
    "tasks": (1e-6, 1e9),
    "device_flops": (0.0, 1e18),
    "uplink_bps": (1e-3, 1e15),
}
LEAST_DEMAND = 1e-9  # units; below it there is 0 only, so that a bid per unit is finite
MAX_EPOCH = 2**53
_user_id = re.compile(USER_ID, re.ASCII)


class NeedFields(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of what is sent: units of demand, or a task from which they are computed; see ``nmoe.market.auction.needs``.

    Attributes:
        demand: units.
        workload: name of a network.
        accuracy: in [0, 1].
        latency_s: for all tasks.
        tasks: how many in a session.
        device_flops: of the device.
        uplink_bps: of its link.
    """

    demand: float | None = None
    workload: str | None = None
    accuracy: float | None = None
    latency_s: float | None = None
    tasks: float | None = None
    device_flops: float | None = None
    uplink_bps: float | None = None


class Need(NeedFields, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What somebody wants of the edge."""

    @classmethod
    def read(cls, body: bytes, workloads: frozenset[str]) -> Self:
        """Read and check a request's body.

        Args:
            body: JSON.
            workloads: names that there are.

        Raises:
            Rejected: 400.
        """
        need: Self = _decoded(body, cls, '{"demand": 1}')
        check_need(need, workloads)
        return need


class SealedBid(NeedFields, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A bid as it is kept: a need, who has it, and what it is worth.

    Attributes:
        id: who bids.
        bid: what is offered in all.
    """

    id: str
    bid: float

    def written(self) -> bytes:
        """Return canonical JSON."""
        return msgspec.json.encode(self)


class SentBid(NeedFields, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A bid as it is sent.

    Attributes:
        id: who bids.
        bid: what is offered in all.
        epoch: where it is to count; the open one if not given.
    """

    id: str
    bid: float
    epoch: int | None = None

    def sealed(self) -> SealedBid:
        """Return the bid without its epoch."""
        return SealedBid(**{name: getattr(self, name) for name in SealedBid.__struct_fields__})

    @classmethod
    def read(cls, body: bytes, workloads: frozenset[str]) -> Self:
        """Read and check a request's body; see ``Need.read``."""
        sent: Self = _decoded(body, cls, '{"id": "a", "bid": 2.5, "demand": 1}')
        check_bid(sent, workloads)
        if sent.epoch is not None and not 1 <= sent.epoch <= MAX_EPOCH:
            raise Rejected(400, f"epoch: a whole number from 1 wanted, got {quoted(sent.epoch)}")
        return sent


def check_bid(bid: SealedBid | SentBid, workloads: frozenset[str]) -> None:
    """Check a bid.

    Args:
        bid: as decoded.
        workloads: names that there are.

    Raises:
        Rejected: 400.
    """
    check_user_id(bid.id)
    _check_number("bid", bid.bid)
    check_need(bid, workloads)


def check_user_id(text: str) -> None:
    """Check an id.

    Raises:
        Rejected: 400.
    """
    if not _user_id.fullmatch(text):
        wanted = "1 to 64 letters, digits and . _ : @ + - wanted, a letter, digit or _ first"
        raise Rejected(400, f"id: {wanted}; got {quoted(text)}, {len(text)} characters")


def check_need(need: NeedFields, workloads: frozenset[str]) -> None:
    """Check that a need is either units or a whole task, each number within its bounds.

    Raises:
        Rejected: 400.
    """
    given = [name for name in NEED if getattr(need, name) is not None]
    if need.demand is not None:
        if given:
            raise Rejected(400, f"demand alone or {', '.join(NEED)} wanted, got demand and {', '.join(given)}")
        _check_number("demand", need.demand)
        if 0 < need.demand < LEAST_DEMAND:
            raise Rejected(400, f"demand: 0 or at least {LEAST_DEMAND:g} wanted, got {need.demand:g}")
        return
    if len(given) < len(NEED):
        missing = [name for name in NEED if name not in given]
        raise Rejected(400, f"demand, or all of {', '.join(NEED)} wanted; {', '.join(missing)} did not come")
    if need.workload not in workloads:
        raise Rejected(400, f"workload: one of {', '.join(sorted(workloads))} wanted, got {quoted(need.workload)}")
    for name in NEED[1:]:
        _check_number(name, getattr(need, name))


def _check_number(name: str, value: float) -> None:
    low, high = BOUNDS[name]
    if not low <= value <= high:  # NaN is not
        raise Rejected(400, f"{name}: a number from {low:g} to {high:g} wanted, got {quoted(value)}")


def _decoded(body: bytes, kind: Any, example: str) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except RecursionError as error:
        raise Rejected(400, "a body without deep nesting wanted") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # a ValidationError is a DecodeError
        raise Rejected(400, f"a body such as {example} wanted: {error}") from error
