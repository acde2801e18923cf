"""Fixed price: a price per unit set beforehand, as cloud providers do.

Source: the usual practice; a baseline.

Departures: the price is never below the provider's cost, nor below what keeps the demand within the capacity (cost and floor pi).
"""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from nmoe.market.auction.base import Bids, Mechanism, Outcome, Supply
from nmoe.market.auction.floor import Offers, Pool, clear_above_floor


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FixedPrice(Mechanism):
    """One price, whatever is bid.

    Attributes:
        price: per unit, the provider's cost included, finite and at least 0.
    """

    name: ClassVar[str] = "fixed-price"
    truthful: ClassVar[bool] = True
    envy_free: ClassVar[bool] = True

    price: float

    def __post_init__(self) -> None:
        """Check the price.

        Raises:
            ValueError: when it is out of range.
        """
        if not 0 <= self.price < float("inf"):
            raise ValueError(f"price must be finite and at least 0, got {self.price}")

    def clear(self, bids: Bids, supply: Supply, *, draw: float) -> Outcome:
        net = max(self.price - supply.unit_cost, 0.0)

        def offers(pool: Pool, _draw: float) -> Offers:
            return Offers(price=np.full(len(pool.users), net), announced=net, estimates={})

        return clear_above_floor(self.name, bids, supply, draw, offers)
