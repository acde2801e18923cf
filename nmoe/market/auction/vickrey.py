"""Vickrey: the best unit bid wins, at the second best.

Source: W. Vickrey, "Counterspeculation, auctions, and competitive sealed tenders" (J. Finance 1961), for a single item.

| symbol | here | unit |
|---|---|---|
| w_(2) | price of the first | net price per unit |

Departures: the best bidder gets all the units that it demands, at the second best net unit bid of its provider's users or the floor pi if
that is higher; the first in the market of equal ones. A single bidder has no second price: it is offered pi if that is above 0, else
nothing.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from nmoe.market.auction.base import Bids, Mechanism, Outcome, Supply
from nmoe.market.auction.floor import Offers, Pool, clear_above_floor


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Vickrey(Mechanism):
    """One winner per provider, at the second price."""

    name: ClassVar[str] = "vickrey"
    truthful: ClassVar[bool] = True
    envy_free: ClassVar[bool] = True

    def clear(self, bids: Bids, supply: Supply, *, draw: float) -> Outcome:
        return clear_above_floor(self.name, bids, supply, draw, self._offers)

    def _offers(self, pool: Pool, draw: float) -> Offers:
        best = np.nextafter(pool.value.max(initial=0.0), np.inf)  # the others had to bid more than the first
        price = np.full(len(pool.users), best)
        price[:1] = pool.value[1] if len(pool.users) > 1 else pool.fallback
        return Offers(price=price, announced=float(best) if len(pool.users) else pool.fallback, estimates={})
