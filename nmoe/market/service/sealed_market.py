"""Sealed market: epochs one after the other; takes bids for the open one, and clears those that are over.

All of it runs in one event loop. An epoch's end is written to the ledger behind its last bid and before the first of the next one, so that
after a crash each bid is where its receipt says. A new epoch is shown, and its bids are acknowledged, once its commitment is on the disk.
"""

import asyncio
from collections.abc import Callable

import msgspec

from nmoe.core.errors import BadFile
from nmoe.http import Rejected, quoted
from nmoe.market.service.commitment import NonceChain, same_secret
from nmoe.market.service.ledger import BidRow, Ledger, LedgerError
from nmoe.market.service.open_epoch import OpenEpoch, answer_again
from nmoe.market.service.record import clear_epoch
from nmoe.market.service.sealed_bid import SealedBid, SentBid
from nmoe.market.service.summary import EpochSummary, LastPrice, summary_of
from nmoe.market.service.terms import MarketSettings

MAX_CLEARING = 4  # epochs that are over and not cleared; beyond it no bids are taken
RESULTS_AT_ONCE = 2000  # written in one go, between which bids go on
LOOK_BACK = 100  # epochs in which a last price is looked for


class SealedMarket:
    """The market of one ledger.

    Args:
        ledger: open, not started.
        settings: of epochs that open from now on; one that is open keeps the terms it was opened with.
        now: seconds since 1970.
    """

    def __init__(self, ledger: Ledger, settings: MarketSettings, *, now: Callable[[], float]) -> None:
        self.settings, self.ledger = settings, ledger
        self.names = frozenset(settings.workloads)
        self.last_price: LastPrice | None = None
        self.num_accepted, self.num_cleared = 0, 0
        self._now = now
        self._nonces = NonceChain(ledger.secret)
        self._latest: tuple[int, bytes] = (0, b"")  # the record that everybody asks for now
        self._closing: dict[int, OpenEpoch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._clearing = asyncio.Lock()
        self.failure: str | None = None

    async def start(self, failed: Callable[[], None]) -> None:
        """Go on where the ledger ends: clear what is over, reopen what is open, or open the first epoch.

        Args:
            failed: called when the ledger fails, or an epoch cannot be cleared.

        Raises:
            BadFile: when a stored epoch or bid is damaged.
            ValueError: when an epoch that is not cleared was opened with other workloads, or could be ended by nobody.
        """
        self._failed = failed
        loop = asyncio.get_running_loop()
        self.ledger.start(loop, failed)
        rows = self.ledger.uncleared()
        latest = self.ledger.epochs(1 << 62, LOOK_BACK)
        restored = [OpenEpoch.restored(row, self.ledger, self.settings.workloads) for row in rows]
        for epoch in restored:
            self._check(epoch)
            if epoch.closed_s is not None:
                self._begin_clearing(epoch, epoch.opened)
        still_open = [epoch for epoch in restored if epoch.closed_s is None]
        self._epoch = still_open[-1] if still_open else self._opened(latest[0].number + 1 if latest else 1)
        for row in reversed(latest):
            if row.summary is not None:
                self._note(msgspec.json.decode(row.summary, type=EpochSummary))
        self.tick()
        await asyncio.shield(self._epoch.opened)

    async def stop(self) -> None:
        """Let clearing that is under way end. What is not cleared will be at the next start."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    @property
    def num_open_bids(self) -> int:
        """Bids of the open epoch."""
        return len(self._epoch.bids)

    @property
    def num_clearing(self) -> int:
        """Epochs that are over and not cleared."""
        return len(self._closing)

    async def current(self) -> OpenEpoch:
        """Return the open epoch, once its commitment is on the disk."""
        self.tick()
        epoch = self._epoch
        await asyncio.shield(epoch.opened)
        return epoch

    def remaining_s(self) -> float | None:
        """Return for how long the open epoch goes on; None where it does not end by time."""
        closes_s = self._epoch.terms.closes_s
        return None if closes_s is None else max(0.0, closes_s - self._now())

    def tick(self) -> None:
        """End the open epoch if its time is over."""
        if self.remaining_s() == 0.0:
            self._roll()

    async def accept(self, sent: SentBid, key: str | None) -> bytes:
        """Take a bid, or recognise one that was taken, and return its answer when the bid is on the disk.

        Args:
            sent: checked.
            key: the request's idempotency key; a replay must come with the same one.

        Raises:
            Rejected: 404 for an epoch to come, 409 for one that is over and for a user who has bid something else, 503 when busy.
        """
        self.tick()
        body = sent.sealed().written()
        number = self._epoch.number if sent.epoch is None else sent.epoch
        if number > self._epoch.number:
            raise Rejected(404, f"epoch {number} has not opened; epoch {self._epoch.number} is open")
        if number < self._epoch.number and number not in self._closing:
            return await self._replayed(number, sent.id, body, key)
        epoch = self._epoch if number == self._epoch.number else self._closing[number]
        bid = epoch.bids.get(sent.id) or self._take(epoch, sent.id, body, key)
        answer = answer_again(bid, number, body, key)
        await epoch.settled(sent.id)
        return answer

    async def close(self, number: int) -> None:
        """End an epoch now if it is open, and return when it is cleared.

        Raises:
            Rejected: 404 when it has not opened.
        """
        self.tick()
        if number > self._epoch.number:
            raise Rejected(404, f"epoch {number} has not opened; epoch {self._epoch.number} is open")
        if number == self._epoch.number:
            await asyncio.shield(self._epoch.opened)
            if number == self._epoch.number:
                self._roll()
        if number in self._closing:
            await asyncio.shield(self._closing[number].cleared)

    async def shown(self, number: int) -> bytes:
        """Return what may be known of an epoch: its terms and commitment, or its record when it is cleared.

        Raises:
            Rejected: 404 when it has not opened.
        """
        current = await self.current()
        epoch = current if number == current.number else self._closing.get(number)
        if epoch is not None:
            return epoch.shown()
        record = self._latest[1] if number == self._latest[0] else await asyncio.to_thread(self.ledger.record, number)
        if record is None:
            raise Rejected(404, f"epoch {number} has not opened; epoch {current.number} is open")
        return record

    async def listed(self, before: int, limit: int) -> bytes:
        """Return the latest epochs before one, the latest first, in short."""
        current = await self.current()
        live = {current.number: current, **self._closing}  # before the ledger is read: what it shows as not cleared is among them
        rows = await asyncio.to_thread(self.ledger.epochs, min(before, current.number + 1), limit)
        return msgspec.json.encode([live[row.number].summary() if row.summary is None else msgspec.Raw(row.summary) for row in rows])

    async def own_bid(self, number: int, user: str, receipt: str) -> bytes:
        """Return a bid to its bidder, and what became of it once its epoch is cleared.

        Raises:
            Rejected: 404 when there is no such bid with that receipt; which of the two is not said.
        """
        epoch = self._epoch if number == self._epoch.number else self._closing.get(number)
        if epoch is None:
            bid, state = await asyncio.to_thread(self.ledger.bid, number, user), "closed"
        else:
            bid, state = epoch.bids.get(user), epoch.state
            await epoch.settled(user)
        if bid is None or not same_secret(bid.receipt, receipt):
            raise Rejected(404, f"epoch {number} has no bid of {quoted(user)} with that receipt")
        result = None if bid.result is None else msgspec.Raw(bid.result)
        closes_in_s = self.remaining_s() if state == "open" else 0.0
        told = {"epoch": number, "id": user, "state": state, "closes_in_s": closes_in_s, "sent": msgspec.Raw(bid.body), "result": result}
        return msgspec.json.encode(told)

    def _take(self, epoch: OpenEpoch, user: str, body: bytes, key: str | None) -> BidRow:
        """Put a new bid into the open epoch, on its way to the disk."""
        if epoch.closed_s is not None:
            raise _late(epoch.number, self._epoch.number)
        if len(epoch.bids) >= self.settings.max_bids:
            wait = str(max(1, round(self.remaining_s() or 1)))
            raise Rejected(503, f"epoch {epoch.number} is full with {self.settings.max_bids} bids", {"retry-after": wait})
        if self.ledger.num_waiting >= self.settings.max_waiting or len(self._closing) > MAX_CLEARING:
            raise Rejected(503, "busy: as many bids wait for the disk, or epochs for their clearing, as may", {"retry-after": "1"})
        self.num_accepted += 1
        return epoch.take(user, body, key, self.ledger)

    async def _replayed(self, number: int, user: str, body: bytes, key: str | None) -> bytes:
        """Return the first answer to a bid of an epoch that is cleared."""
        bid = await asyncio.to_thread(self.ledger.bid, number, user)
        if bid is None:
            raise _late(number, self._epoch.number)
        return answer_again(bid, number, body, key)

    def _roll(self) -> None:
        """End the open epoch and open the next."""
        ended = self._epoch
        ended.closed_s = self._now()
        written = self.ledger.close_epoch(ended.number, ended.closed_s)
        self._epoch = self._opened(ended.number + 1)
        self._begin_clearing(ended, written)

    def _opened(self, number: int) -> OpenEpoch:
        link = self._nonces.link(number)
        return OpenEpoch.new(self.settings.terms(epoch=number, link=link, now_s=self._now()), link.nonce, self.ledger)

    def _check(self, epoch: OpenEpoch) -> None:
        """Check that a restored epoch has its place in the chain of nonces, and an end."""
        if self._nonces.link(epoch.number).nonce != epoch.nonce:
            raise BadFile(f"epoch {epoch.number} of the database is damaged: its nonce does not fit the market's secret")
        if epoch.closed_s is None and epoch.terms.closes_s is None and not self.settings.operator_token:
            raise ValueError(f"epoch {epoch.number} does not end by time: an operator's token is needed until it is over")

    def _begin_clearing(self, epoch: OpenEpoch, over: asyncio.Future[None]) -> None:
        self._closing[epoch.number] = epoch
        task = asyncio.create_task(self._clear(epoch, over))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _clear(self, epoch: OpenEpoch, over: asyncio.Future[None]) -> None:
        """Clear an epoch once its end is on the disk, in a thread, one epoch at a time."""
        await over
        assert epoch.closed_s is not None, "it is over"
        async with self._clearing:
            bids = [msgspec.json.decode(bid.body, type=SealedBid) for bid in epoch.bids.values()]
            workloads = self.settings.workloads
            record = await asyncio.to_thread(clear_epoch, epoch.terms, epoch.nonce, bids, workloads, closed_s=epoch.closed_s)
            users = () if record.outcome is None else record.outcome.users
            for first in range(0, len(users), RESULTS_AT_ONCE):
                some = users[first : first + RESULTS_AT_ONCE]
                await self.ledger.store_results(epoch.number, [(user.id, msgspec.json.encode(user)) for user in some])
            summary = summary_of(record)
            written = await asyncio.to_thread(record.written)
            await self.ledger.store_record(epoch.number, summary.written(), written)
        self._latest = (epoch.number, written)
        self._note(summary)
        self.num_cleared += 1
        del self._closing[epoch.number]
        epoch.cleared.set_result(None)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Take note of how clearing ended. Where it failed, it will again: the server ends rather than leave bidders without an answer."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        self.failure = str(error) if isinstance(error, LedgerError) else f"an epoch cannot be cleared: {type(error).__name__}: {error}"
        for epoch in self._closing.values():
            if not epoch.cleared.done():
                epoch.cleared.set_exception(LedgerError(self.failure))
                epoch.cleared.exception()  # seen: perhaps nobody waits
        self._failed()

    def _note(self, summary: EpochSummary) -> None:
        self.last_price = summary.price() or self.last_price


def _late(number: int, current: int) -> Rejected:
    return Rejected(409, f"epoch {number} is over; epoch {current} is open")
