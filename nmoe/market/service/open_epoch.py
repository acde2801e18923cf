"""Open epoch: an epoch that takes bids, or is over and not cleared."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import msgspec

from nmoe.core.errors import BadFile
from nmoe.http import Rejected, quoted
from nmoe.market.auction.workloads import Workload
from nmoe.market.service.commitment import commitment_of, receipt_of
from nmoe.market.service.ledger import BidRow, EpochRow, Ledger
from nmoe.market.service.receipt import Receipt
from nmoe.market.service.summary import EpochSummary
from nmoe.market.service.terms import Terms, workloads_digest


@dataclass(slots=True, kw_only=True)
class OpenEpoch:
    """What the server knows of it.

    Attributes:
        terms: of it.
        nonce: secret until it is cleared.
        commitment: to both.
        opened: done when it is on the disk.
        cleared: done when its record is on the disk.
        bids: by user.
        stored: per user, done when its bid is on the disk.
        closed_s: None while it is open.
    """

    terms: Terms
    nonce: bytes
    commitment: str
    opened: asyncio.Future[None]
    cleared: asyncio.Future[None]
    bids: dict[str, BidRow] = field(default_factory=dict)
    stored: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    closed_s: float | None = None

    @classmethod
    def new(cls, terms: Terms, nonce: bytes, ledger: Ledger) -> Self:
        """Open an epoch: commit to its nonce and terms, and begin to write it down."""
        commitment = commitment_of(nonce, terms.written())
        opened = ledger.open_epoch(terms.epoch, terms.written(), nonce, commitment)
        return cls(terms=terms, nonce=nonce, commitment=commitment, opened=opened, cleared=_future())

    @classmethod
    def restored(cls, row: EpochRow, ledger: Ledger, workloads: Mapping[str, Workload]) -> Self:
        """Return an epoch as the ledger has it, each of its bids checked against its receipt.

        Raises:
            BadFile: when something does not fit.
            ValueError: when it was opened with other workloads.
        """
        place = f"epoch {row.number} of the database"
        try:
            terms = msgspec.json.decode(row.terms, type=Terms)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadFile(f"{place} is damaged: {error}") from error
        if commitment_of(row.nonce, row.terms) != row.commitment or terms.written() != row.terms or terms.epoch != row.number:
            raise BadFile(f"{place} is damaged: its commitment does not fit")
        if terms.workloads != workloads_digest(workloads):
            raise ValueError(f"{place} is not cleared and was opened with other workloads; start with those until it is over")
        terms.rule()
        bids = {bid.user: bid for bid in ledger.bids(row.number)}
        for bid in bids.values():
            if receipt_of(row.nonce, row.number, bid.body) != bid.receipt:
                raise BadFile(f"{place} is damaged: the bid of {quoted(bid.user)} does not fit its receipt")
        opened = _future()
        opened.set_result(None)
        return cls(
            terms=terms, nonce=row.nonce, commitment=row.commitment, opened=opened, cleared=_future(), bids=bids, closed_s=row.closed_s
        )

    @property
    def number(self) -> int:
        """Which one it is, from 1."""
        return self.terms.epoch

    @property
    def state(self) -> str:
        """``open`` or ``closing``."""
        return "open" if self.closed_s is None else "closing"

    def take(self, user: str, body: bytes, key: str | None, ledger: Ledger) -> BidRow:
        """Put in a new bid, on its way to the disk."""
        bid = BidRow(user, body, key, receipt_of(self.nonce, self.number, body), None)
        self.stored[user] = ledger.add_bid(self.number, bid)
        self.bids[user] = bid
        return bid

    async def settled(self, user: str) -> None:
        """Return when a user's bid is on the disk.

        Raises:
            LedgerError: when it could not be written.
        """
        stored = self.stored.get(user)
        if stored is not None:
            await asyncio.shield(stored)
            self.stored.pop(user, None)

    def shown(self) -> bytes:
        """Return what anybody may know before it is cleared, as JSON."""
        closed = {} if self.closed_s is None else {"closed_s": self.closed_s}
        shown = {"epoch": self.number, "state": self.state, "terms": self.terms, "commitment": self.commitment, "num_bids": len(self.bids)}
        return msgspec.json.encode(shown | closed)

    def summary(self) -> EpochSummary:
        """Return it in short."""
        return EpochSummary(
            epoch=self.number,
            state=self.state,
            opened_s=self.terms.opened_s,
            closed_s=self.closed_s,
            commitment=self.commitment,
            num_bids=len(self.bids),
        )


def answer_again(bid: BidRow, epoch: int, body: bytes, key: str | None) -> bytes:
    """Return the answer to a bid that has been taken before, the first one, byte for byte.

    Raises:
        Rejected: 409 when this is another bid: its sender must not learn what was bid.
    """
    if bid.body != body or bid.key not in (None, key):
        raise Rejected(409, f"{quoted(bid.user)} has bid in epoch {epoch} already, with other content or another Idempotency-Key")
    return Receipt(epoch=epoch, id=bid.user, receipt=bid.receipt).written()


def _future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()
