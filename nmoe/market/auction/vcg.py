"""VCG: whoever fits is served, at the best unit bid that does not fit.

Source: the (k+1)-price auction: W. Vickrey (1961), E. H. Clarke (1971), T. Groves (1973), for k equal items and users of one each.

| symbol | here | unit |
|---|---|---|
| k | users in P | users |
| w_(k+1) = pi | floor | net price per unit |

Departures: for other demands this is the uniform-price form, everybody in P at pi, which is truthful and free of envy; VCG proper would
solve a knapsack problem. Without a shortage it earns nothing: then everything is sold at cost.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from nmoe.market.auction.base import Bids, Mechanism, Outcome, Supply
from nmoe.market.auction.floor import Offers, Pool, clear_above_floor


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class VCG(Mechanism):
    """The (k+1)-price auction of the capacity."""

    name: ClassVar[str] = "vcg"
    truthful: ClassVar[bool] = True
    envy_free: ClassVar[bool] = True

    def clear(self, bids: Bids, supply: Supply, *, draw: float) -> Outcome:
        return clear_above_floor(self.name, bids, supply, draw, self._offers)

    def _offers(self, pool: Pool, draw: float) -> Offers:
        return Offers(price=np.zeros(len(pool.users)), announced=0.0, estimates={})
