"""Summary: an epoch in a few numbers, and the price to be had from it."""

import msgspec

from nmoe.market.service.record import EpochRecord


class LastPrice(msgspec.Struct, kw_only=True, frozen=True):
    """What was paid in the last epoch that sold anything.

    Attributes:
        epoch: number.
        lowest_unit_price: that a winner paid.
        highest_unit_price: likewise.
    """

    epoch: int
    lowest_unit_price: float
    highest_unit_price: float


class EpochSummary(msgspec.Struct, kw_only=True, frozen=True):
    """An epoch in short; what is not known before it is cleared is None.

    Attributes:
        epoch: number.
        state: ``open``, ``closing`` or ``closed``.
        opened_s: seconds since 1970.
        closed_s: likewise.
        commitment: as told when it opened.
        num_bids: taken.
        num_served: users.
        revenue: all payments.
        lowest_unit_price: that a winner paid; None where nothing was sold.
        highest_unit_price: likewise.
        digest: of its record.
    """

    epoch: int
    state: str
    opened_s: float
    closed_s: float | None
    commitment: str
    num_bids: int
    num_served: int | None = None
    revenue: float | None = None
    lowest_unit_price: float | None = None
    highest_unit_price: float | None = None
    digest: str | None = None

    def written(self) -> bytes:
        """Return canonical JSON."""
        return msgspec.json.encode(self)

    def price(self) -> LastPrice | None:
        """Return what was paid; None where nothing was sold."""
        if self.lowest_unit_price is None or self.highest_unit_price is None:
            return None
        return LastPrice(epoch=self.epoch, lowest_unit_price=self.lowest_unit_price, highest_unit_price=self.highest_unit_price)


def summary_of(record: EpochRecord) -> EpochSummary:
    """Return a cleared epoch in short."""
    users = () if record.outcome is None else record.outcome.users
    prices = [user.unit_price for user in users if user.served and user.demand and user.unit_price is not None]
    return EpochSummary(
        epoch=record.epoch,
        state=record.state,
        opened_s=record.terms.opened_s,
        closed_s=record.closed_s,
        commitment=record.commitment,
        num_bids=len(record.bids),
        num_served=sum(user.served for user in users),
        revenue=0.0 if record.outcome is None else record.outcome.revenue,
        lowest_unit_price=min(prices, default=None),
        highest_unit_price=max(prices, default=None),
        digest=record.digest,
    )
