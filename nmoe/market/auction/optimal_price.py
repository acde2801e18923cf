"""Deterministic optimal price: each user is offered the best single price of the others.

Source: A. V. Goldberg, J. D. Hartline, A. Wright, "Competitive auctions and digital goods" (SODA 2001), who show that it, like any
symmetric deterministic auction, can earn next to nothing: of ten users with 10 and ninety with 1, those with 10 are offered 1 and those
with 1 are offered 10.

| symbol | here | unit |
|---|---|---|
| w_(m) | value | net price per unit, the m-th largest |
| D_m | total | units demanded by the m largest |

Time: O(n^2), in blocks; a baseline.

Departures: weights, cost and floor are ours. Of prices whose revenues differ by less than 1e-9 of them the lowest is taken, or the order
of a sum would decide. Users outside of P are told the best price of P.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from nmoe.market.auction.base import Bids, Mechanism, Outcome, Supply
from nmoe.market.auction.benchmarks import best_count
from nmoe.market.auction.floor import Offers, Pool, clear_above_floor

BLOCK = 2**22  # numbers at a time
EQUAL = 1 - 1e-9


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OptimalPrice(Mechanism):
    """The best price of the others."""

    name: ClassVar[str] = "optimal-price"
    truthful: ClassVar[bool] = True
    envy_free: ClassVar[bool] = False

    def clear(self, bids: Bids, supply: Supply, *, draw: float) -> Outcome:
        return clear_above_floor(self.name, bids, supply, draw, self._offers)

    def _offers(self, pool: Pool, draw: float) -> Offers:
        members = len(pool.users)
        rows = max(1, BLOCK // max(1, members))
        price = np.concatenate([np.empty(0), *(_best_of_others(pool, at, at + rows) for at in range(0, members, rows))])
        winners = best_count(pool.value, pool.total)
        return Offers(price=price, announced=float(pool.value[winners - 1]) if winners else pool.fallback, estimates={})


def _best_of_others(pool: Pool, start: int, stop: int) -> Float[ndarray, " block"]:
    """Return the best prices without each of the users ``start`` to ``stop``."""
    members = np.arange(len(pool.users))
    block = members[start:stop, None]
    sold = pool.total - np.where(members >= block, pool.demand[block], 0.0)  # [block, member]
    worth = np.where(members == block, -1.0, pool.value * sold)  # nobody's own bid is a price for it
    best = worth.max(1, keepdims=True)
    lowest = len(members) - 1 - (worth >= best * EQUAL)[:, ::-1].argmax(1)
    return np.where(best[:, 0] >= 0, pool.value[lowest], pool.fallback)
