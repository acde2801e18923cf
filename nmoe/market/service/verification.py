"""Verification: computes a closed epoch again from its bids, and says where the record differs from the rules."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from nmoe.core.errors import BadFile, NmoeError
from nmoe.http import Rejected
from nmoe.market.auction.workloads import Workload
from nmoe.market.service.commitment import LINKS, SECRET_BYTES, hashed_on, receipt_of
from nmoe.market.service.receipt import Receipt
from nmoe.market.service.record import FORMAT, EpochRecord, clear_epoch
from nmoe.market.service.sealed_bid import SealedBid, check_bid
from nmoe.market.service.terms import workloads_digest

TOLERANCE = 1e-9  # relative, of computed numbers: sums of floats need not be the same on every machine; the digest holds every digit
MAX_BYTES = 1 << 30
_COMPUTED = "outcome."
_ABSENT = object()


class WrongRecord(NmoeError):
    """A record that is not what the rules make of its bids; one line names the differences."""


class Difference(NamedTuple):
    """A place in a record that is not as it should be.

    Attributes:
        place: such as ``outcome.users[3].payment``; empty for the whole.
        wanted: by the rules.
        came: in the record.
    """

    place: str
    wanted: str
    came: str

    def __str__(self) -> str:
        return f"{self.place}: {self.wanted} by the rules, {self.came} in the file"


def read_record(path: Path) -> tuple[EpochRecord, bytes]:
    """Read the record of a closed epoch.

    Returns:
        The record, and the file's bytes.

    Raises:
        BadFile: when the file cannot be read, or is no such record.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadFile(f"{path}: a record of at most {MAX_BYTES >> 20} MiB wanted, it has {path.stat().st_size >> 20}")
        data = path.read_bytes()
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror}") from error
    try:
        record = msgspec.json.decode(data, type=EpochRecord)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFile(f"{path} is not the record of a closed epoch, as GET /epochs/ID returns it: {error}") from error
    if record.format != FORMAT:
        raise BadFile(f"{path}: format {FORMAT!r} wanted, got {record.format!r}")
    return record, data


def read_receipt(path: Path) -> Receipt:
    """Read the answer that a bidder got.

    Raises:
        BadFile: when the file cannot be read, or is no such answer.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Receipt)
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFile(f"{path} is not the answer to an accepted bid: {error}") from error


def differences(
    record: EpochRecord, data: bytes, workloads: Mapping[str, Workload], *, commitment: str | None = None, receipts: Sequence[Receipt] = ()
) -> list[Difference]:
    """Compute an epoch again and list what differs; an empty list means that the record is right.

    Args:
        record: as read.
        data: the bytes it was read from.
        workloads: that demands are computed from.
        commitment: as noted while the epoch was open.
        receipts: of bids that have to be there.

    Raises:
        WrongRecord: when it cannot be computed at all: a nonce, a bid, the terms or the workloads are not what they should be.
    """
    nonce = _nonce(record)
    if workloads_digest(workloads) != record.terms.workloads:
        raise WrongRecord(
            f"terms.workloads: this epoch was computed with other workloads ({record.terms.workloads[:12]}...) than those given "
            f"({workloads_digest(workloads)[:12]}...)"
        )
    if not 1 <= record.terms.link <= LINKS:
        raise WrongRecord(f"terms.link: 1 to {LINKS} wanted, got {record.terms.link}")
    _check_bids(record.bids, frozenset(workloads))
    expected = clear_epoch(record.terms, nonce, record.bids, workloads, closed_s=record.closed_s)
    wanted, came = (msgspec.to_builtins(msgspec.structs.replace(one, digest="")) for one in (expected, record))
    found = list(_compared("", wanted, came))
    if (anchor := hashed_on(nonce, record.terms.link).hex()) != record.terms.chain:
        found.insert(0, Difference("terms.chain", anchor, record.terms.chain))
    if commitment is not None and commitment != record.commitment:
        found.insert(0, Difference("commitment", f"{commitment} (as noted)", record.commitment))
    found += [missing for receipt in receipts for missing in _received(record, nonce, receipt)]
    if record.digest != record.own_digest():
        found.append(Difference("digest", record.own_digest(), record.digest))
    if not found and record.written() != data:
        place = next((at for at, (one, other) in enumerate(zip(record.written(), data, strict=False)) if one != other), len(data))
        found.append(Difference(f"byte {place}", "written as the market writes it", "written otherwise; save the answer as it comes"))
    return found


def _nonce(record: EpochRecord) -> bytes:
    try:
        nonce = bytes.fromhex(record.nonce)
    except ValueError:
        nonce = b""
    if len(nonce) != SECRET_BYTES:
        raise WrongRecord(f"nonce: {2 * SECRET_BYTES} hexadecimal digits wanted, got {record.nonce[:80]!r}")
    return nonce


def _check_bids(bids: Sequence[SealedBid], workloads: frozenset[str]) -> None:
    for place, bid in enumerate(bids):
        try:
            check_bid(bid, workloads)
        except Rejected as error:
            raise WrongRecord(f"bids[{place}]: {error}") from error
    if len({bid.id for bid in bids}) < len(bids):
        raise WrongRecord("bids: one per user wanted, some user is there twice")


def _received(record: EpochRecord, nonce: bytes, receipt: Receipt) -> Iterator[Difference]:
    """Yield what is wrong about the bid that a receipt was given for."""
    bid = next((bid for bid in record.bids if bid.id == receipt.id), None)
    place = f"receipt of {receipt.id}"
    if receipt.epoch != record.epoch:
        yield Difference(place, f"epoch {receipt.epoch}", f"epoch {record.epoch}")
    elif bid is None:
        yield Difference(place, "its bid", "no bid of that id")
    elif receipt_of(nonce, record.epoch, bid.written()) != receipt.receipt:
        yield Difference(place, "the bid that it was given for", "another bid")


def _compared(place: str, wanted: Any, came: Any) -> Iterator[Difference]:
    """Yield the leaves in which two documents differ."""
    if isinstance(wanted, dict) and isinstance(came, dict):
        for name in [*wanted, *(name for name in came if name not in wanted)]:
            yield from _compared(f"{place}.{name}" if place else name, wanted.get(name, _ABSENT), came.get(name, _ABSENT))
    elif isinstance(wanted, list | tuple) and isinstance(came, list | tuple):
        if len(wanted) != len(came):
            yield Difference(place, f"{len(wanted)} entries", f"{len(came)}")
        for number, (one, other) in enumerate(zip(wanted, came, strict=False)):
            yield from _compared(f"{place}[{number}]", one, other)
    elif not _same(place, wanted, came):
        yield Difference(place, _told(wanted), _told(came))


def _same(place: str, wanted: Any, came: Any) -> bool:
    if place.startswith(_COMPUTED) and type(wanted) is float and type(came) is float:
        return math.isclose(wanted, came, rel_tol=TOLERANCE, abs_tol=0.0)
    return type(wanted) is type(came) and bool(wanted == came)


def _told(value: Any) -> str:
    return "nothing" if value is _ABSENT else str(value)
