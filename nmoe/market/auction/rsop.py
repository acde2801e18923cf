"""RSOP: the best price of one random half is offered to the other.

Source: A. V. Goldberg, J. D. Hartline, A. Wright, "Competitive auctions and digital goods" (SODA 2001): random sampling optimal price.

| symbol | here | unit |
|---|---|---|
| F of a half | benchmarks.best_count | users |

Departures: weights, cost and floor are ours. The lower of equally good prices. Users outside of P are told the lower of the two prices.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from nmoe.market.auction.base import Bids, Mechanism, Outcome, Supply
from nmoe.market.auction.benchmarks import best_count
from nmoe.market.auction.floor import Offers, Pool, clear_above_floor
from nmoe.market.auction.halves import heads


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RSOP(Mechanism):
    """Random sampling optimal price."""

    name: ClassVar[str] = "rsop"
    truthful: ClassVar[bool] = True
    envy_free: ClassVar[bool] = False

    def clear(self, bids: Bids, supply: Supply, *, draw: float) -> Outcome:
        return clear_above_floor(self.name, bids, supply, draw, self._offers)

    def _offers(self, pool: Pool, draw: float) -> Offers:
        first = heads(pool, draw)
        price = np.empty(len(pool.users))
        for half in (first, ~first):
            price[~half] = _best_price(pool, np.flatnonzero(half))
        return Offers(price=price, announced=float(price.min(initial=np.inf)), estimates={})


def _best_price(pool: Pool, half: np.ndarray) -> float:
    value = pool.value[half]
    winners = best_count(value, pool.demand[half].cumsum())
    return float(value[winners - 1]) if winners else pool.fallback
