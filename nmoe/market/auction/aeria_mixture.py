"""AERIA-mixture: Vickrey or CORE, by lot; for users of one unit it earns F2 / 3.39 or more in expectation, in every market.

Source: A. V. Goldberg, J. D. Hartline, "Competitiveness via consensus" (SODA 2003), for the ratio; reconstructed for this project.

| symbol | here | unit |
|---|---|---|
| p | guarantees.VICKREY_PROBABILITY | 1 |
| c | BASE | 1 |
| m* | winners of F2 | users |

With probability p = 1 / (1 + ln 2) = 0.591 the best bidder gets its units at the second best price; else AERIA-IC with c = 2, which is
CORE for one unit each. F2 = m* w with w <= the second best bid, so Vickrey earns F2 / m* and CORE F2 (1/2 - 1/m*) / ln 2 or more: in all
F2 p / 2 or more whatever m* is, a ratio of 2 (1 + ln 2) = 3.386. Truthful for every draw, for a lottery between truthful auctions is
truthful.

Guarantee: for users of one unit each and no limit of capacity (or one that holds everybody). For other demands Vickrey earns d_1 w_(2),
which may be next to nothing beside F2 = w_(2) (d_1 + d_2), and CORE's bound needs alpha < 1/2: there is no guarantee as alpha tends to 1.
With a capacity the bound is for F2 on P, which is at least F2 of any single price whose demand fits.

Departures: the draw u decides both: Vickrey for u < p, else CORE with the draw (u - p) / (1 - p), uniform again.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from nmoe.market.auction.aeria_ic import AeriaIC
from nmoe.market.auction.base import Bids, Mechanism, Outcome, Supply
from nmoe.market.auction.guarantees import VICKREY_PROBABILITY
from nmoe.market.auction.vickrey import Vickrey

BASE = 2.0  # with p, the best choice: a grid search finds no better pair


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AeriaMixture(Mechanism):
    """A lottery between Vickrey's auction and AERIA-IC."""

    name: ClassVar[str] = "aeria-mixture"
    truthful: ClassVar[bool] = True
    envy_free: ClassVar[bool] = False

    def clear(self, bids: Bids, supply: Supply, *, draw: float) -> Outcome:
        if not 0 <= draw < 1:
            raise ValueError(f"draw must be in [0, 1), got {draw}")
        p = VICKREY_PROBABILITY
        of = Vickrey().clear(bids, supply, draw=draw) if draw < p else AeriaIC(base=BASE).clear(bids, supply, draw=(draw - p) / (1 - p))
        return Outcome(
            mechanism=self.name,
            draw=draw,
            reason=of.reason,
            unit_price=of.unit_price,
            payment=of.payment,
            demand=of.demand,
            unit_cost=of.unit_cost,
            estimates=of.estimates | {"vickrey": float(draw < p)},
        )
