"""Receipt: what a bidder is told when its bid is on the disk."""

import msgspec


class Receipt(msgspec.Struct, kw_only=True, frozen=True):
    """The answer to an accepted bid; the same each time the bid is sent.

    Attributes:
        epoch: number.
        id: of the bidder.
        receipt: 64 hexadecimal digits; see ``nmoe.market.service.commitment``.
    """

    epoch: int
    id: str
    receipt: str

    def written(self) -> bytes:
        """Return canonical JSON."""
        return msgspec.json.encode(self)
