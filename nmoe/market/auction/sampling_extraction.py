"""Random sampling profit extraction: each random half is asked for what the other could pay.

Source: A. Fiat, A. V. Goldberg, J. D. Hartline, A. R. Karlin, "Competitive generalized auctions" (STOC 2002): an expected profit of F2 / 4
or more for users of one unit each; the ratio as encyclopedias report it.

| symbol | here | unit |
|---|---|---|
| F of a half | estimates "F of half 1", "F of half 2" | net price |

Departures: weights, cost and floor are ours, and without a guarantee. A half that cannot pay is offered nothing: to offer it the floor pi
would reward those who bid so little that it cannot. One whose other half is empty is offered pi if that is above 0. Users outside of P are
told the lower of the two prices.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from nmoe.market.auction.base import Bids, Mechanism, Outcome, Supply
from nmoe.market.auction.benchmarks import single_price_value
from nmoe.market.auction.costshare import CostShare
from nmoe.market.auction.floor import Offers, Pool, clear_above_floor
from nmoe.market.auction.halves import heads


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingExtraction(Mechanism):
    """Profit extraction from each half, the other's F being the target."""

    name: ClassVar[str] = "sampling-extraction"
    truthful: ClassVar[bool] = True
    envy_free: ClassVar[bool] = False

    def clear(self, bids: Bids, supply: Supply, *, draw: float) -> Outcome:
        return clear_above_floor(self.name, bids, supply, draw, self._offers)

    def _offers(self, pool: Pool, draw: float) -> Offers:
        first = heads(pool, draw)
        halves = (first, ~first)
        totals = [pool.demand[half].cumsum() for half in halves]
        most = [single_price_value(pool.value[half], total) for half, total in zip(halves, totals, strict=True)]
        price = np.empty(len(pool.users))
        for half, total, target in zip(halves, totals, reversed(most), strict=True):
            price[half] = CostShare(value=pool.value[half], total=total).price(target) if target > 0 else pool.fallback
        estimates = {"F of half 1": most[0], "F of half 2": most[1]}
        return Offers(price=price, announced=float(price.min(initial=np.inf)), estimates=estimates)
