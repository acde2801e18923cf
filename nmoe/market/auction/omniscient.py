"""Omniscient single price: the best one price, by somebody who knows every value. An upper bound, not a mechanism to be used.

Source: the benchmark F of A. V. Goldberg, J. D. Hartline, "Competitiveness via consensus" (SODA 2003).

| symbol | here | unit |
|---|---|---|
| F | estimate "F" | net price |

Departures: with several providers, one price for each.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from nmoe.market.auction.base import Bids, Mechanism, Outcome, Supply
from nmoe.market.auction.benchmarks import best_count, single_price_value
from nmoe.market.auction.floor import Offers, Pool, clear_above_floor


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Omniscient(Mechanism):
    """The price that earns F if bids are the values; whoever sets it by a bid would rather bid less."""

    name: ClassVar[str] = "omniscient"
    truthful: ClassVar[bool] = False
    envy_free: ClassVar[bool] = True

    def clear(self, bids: Bids, supply: Supply, *, draw: float) -> Outcome:
        return clear_above_floor(self.name, bids, supply, draw, self._offers)

    def _offers(self, pool: Pool, draw: float) -> Offers:
        winners = best_count(pool.value, pool.total)
        price = float(pool.value[winners - 1]) if winners else pool.fallback
        return Offers(price=np.full(len(pool.users), price), announced=price, estimates={"F": single_price_value(pool.value, pool.total)})
