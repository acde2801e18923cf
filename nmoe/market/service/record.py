"""Record: all there is to say about an epoch once it is over, as one JSON document that anybody can compute again from its bids.

The bids stand in the order of their ids, so the order in which they came changes nothing.
``digest`` is the SHA-256 of the record without it.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from nmoe.core.errors import NmoeError
from nmoe.market.auction import Bids, Reason
from nmoe.market.auction.needs import NONE, EdgeDemand, Needs, edge_demand
from nmoe.market.auction.workloads import Workload
from nmoe.market.service.commitment import commitment_of, draw_of
from nmoe.market.service.sealed_bid import NeedFields, SealedBid
from nmoe.market.service.terms import Terms

FORMAT = "nmoe market epoch 1"


class UserOutcome(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What became of one bid.

    Attributes:
        id: who bid.
        served: whether it gets its demand.
        unit_price: asked per unit; None where none is offered.
        payment: in all, 0 where it is not served.
        demand: units; None where no amount is enough.
        reason: why, a ``Reason`` in small letters.
        partition: layers on the device; None where units were asked for, or nothing helps.
        exit: index of the exit, as ``partition``.
    """

    id: str
    served: bool
    unit_price: float | None
    payment: float
    demand: float | None
    reason: str
    partition: int | None
    exit: int | None


class EpochOutcome(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What became of all bids, in their order; see ``nmoe.market.auction.Outcome``."""

    mechanism: str
    draw: float
    revenue: float
    users: tuple[UserOutcome, ...]


class EpochRecord(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A closed epoch.

    Attributes:
        format: ``FORMAT``.
        epoch: its number.
        state: that it is closed.
        terms: as committed to.
        commitment: as told when it opened.
        closed_s: seconds since 1970.
        nonce: 64 hexadecimal digits.
        draw: that it was cleared with.
        bids: by id.
        bids_digest: SHA-256 of the bids.
        outcome: None where the mechanism has none.
        error: why, in that case.
        digest: SHA-256 of the record without this.
    """

    format: str
    epoch: int
    state: str
    terms: Terms
    commitment: str
    closed_s: float
    nonce: str
    draw: float
    bids: tuple[SealedBid, ...]
    bids_digest: str
    outcome: EpochOutcome | None
    error: str | None
    digest: str = ""

    def written(self) -> bytes:
        """Return canonical JSON."""
        return msgspec.json.encode(self)

    def own_digest(self) -> str:
        """Return the digest that it should have."""
        return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(self, digest=""))).hexdigest()


def clear_epoch(
    terms: Terms, nonce: bytes, bids: Sequence[SealedBid], workloads: Mapping[str, Workload], *, closed_s: float
) -> EpochRecord:
    """Clear an epoch; the same arguments give the same record.

    Args:
        terms: as committed to.
        nonce: 32 bytes.
        bids: checked, no two of one id, in any order.
        workloads: that the terms name.
        closed_s: seconds since 1970.
    """
    bids = sorted(bids, key=lambda bid: bid.id)
    draw = draw_of(nonce)
    outcome, error = None, None
    try:
        outcome = _outcome(terms, draw, bids, workloads)
    except (NmoeError, ValueError, ArithmeticError) as failure:  # told to the bidders: nobody is served, and the next epoch goes on
        error = f"{type(failure).__name__}: {failure}"
    record = EpochRecord(
        format=FORMAT,
        epoch=terms.epoch,
        state="closed",
        terms=terms,
        commitment=commitment_of(nonce, terms.written()),
        closed_s=closed_s,
        nonce=nonce.hex(),
        draw=draw,
        bids=tuple(bids),
        bids_digest=hashlib.sha256(msgspec.json.encode(bids)).hexdigest(),
        outcome=outcome,
        error=error,
    )
    return msgspec.structs.replace(record, digest=record.own_digest())


def demands_of(needs: Sequence[NeedFields], workloads: Mapping[str, Workload]) -> EdgeDemand:
    """Return the units that checked needs come to, with partition and exit, or ``NONE`` where units were asked for."""
    given = [need.demand for need in needs]
    demand: Float[ndarray, " user"] = np.array([math.inf if units is None else units for units in given], dtype=np.float64)
    chosen: Int[ndarray, " user"] = np.full(len(given), NONE)
    partition: Int[ndarray, " user"] = np.full(len(given), NONE)
    rows = [row for row, units in enumerate(given) if units is None]
    if rows:
        columns = {
            name: np.array([getattr(needs[row], name) for row in rows], dtype=np.float64)
            for name in ("accuracy", "latency_s", "tasks", "device_flops", "uplink_bps")
        }
        found = edge_demand(Needs(workloads=tuple(str(needs[row].workload) for row in rows), **columns), workloads)
        demand[rows], chosen[rows], partition[rows] = found
    return EdgeDemand(demand, chosen, partition)


def _outcome(terms: Terms, draw: float, bids: Sequence[SealedBid], workloads: Mapping[str, Workload]) -> EpochOutcome:
    """Carry out both stages of the auction."""
    found = demands_of(bids, workloads)
    amounts = np.array([bid.bid for bid in bids], dtype=np.float64)
    book = Bids(ids=tuple(bid.id for bid in bids), amount=amounts, demand=found.demand)
    outcome = terms.rule().clear(book, terms.supply(), draw=draw)
    columns = zip(
        book.ids,
        outcome.reason.tolist(),
        outcome.unit_price.tolist(),
        outcome.payment.tolist(),
        found.demand.tolist(),
        found.partition.tolist(),
        found.exit.tolist(),
        strict=True,
    )
    users = tuple(
        UserOutcome(
            id=user,
            served=reason == Reason.SERVED,
            unit_price=_finite(price),
            payment=payment,
            demand=_finite(demand),
            reason=Reason(reason).name.lower(),
            partition=None if partition == NONE else partition,
            exit=None if chosen == NONE else chosen,
        )
        for user, reason, price, payment, demand, partition, chosen in columns
    )
    return EpochOutcome(mechanism=outcome.mechanism, draw=outcome.draw, revenue=outcome.revenue, users=users)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
