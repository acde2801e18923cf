"""AERIA-EF: one price for everybody; never any envy, truthful with high probability.

Source: S. Li, J. Hu, G. Min, H. Huang, J. Huang, arXiv 2503.04521 (2025), for the ingredients, a consensus estimate and cost sharing, read
in the abstract; A. V. Goldberg, J. D. Hartline, "Competitiveness via consensus" (SODA 2003), for both.

| symbol | here | unit |
|---|---|---|
| c | base | 1, above 1 |
| u | draw | 1, uniform in [0, 1) |
| R = r(F(P)) | estimate "target" | net price |
| alpha | estimate "largest share" | 1 |

The estimate is taken from all bids, R = r(F(P)) or r(F2(P)); then CostShare_R, and no price below the floor pi.

Envy: there is one price, whoever bids more is served, and nobody else. Revenue of truthful bids: exactly max(R, what pi earns from all of
P), so F (1 - 1/c) / ln c or more in expectation with the benchmark F: 0.721 F for c = 2. Truth: to bid more only raises R, to bid less
moves F by a factor of 1 / (1 - alpha) at most, and with all but a probability log_c(1 / (1 - alpha)) no such F rounds to another R. See
``AeriaIC`` for why one cannot have it all.

Time: O(n log n) to sort, O(n) else.

Departures: the whole variant is derived for this project; the paper's was not found. R = 0, when fewer users are in P than the benchmark
needs or all bid exactly the cost, is no price: pi is offered if it is above 0, else nobody is served. Several providers: an estimate each,
above a common floor; users may envy another provider's.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, final

import numpy as np

from nmoe.market.auction.base import Bids, Mechanism, Outcome, Supply
from nmoe.market.auction.benchmarks import largest_share, single_price_value, two_winner_value
from nmoe.market.auction.consensus import DEFAULT_BASE, check_base, consensus_estimate
from nmoe.market.auction.costshare import CostShare
from nmoe.market.auction.floor import Offers, Pool, clear_above_floor


class Benchmark(StrEnum):
    """What the revenue that is aimed for is estimated from."""

    SINGLE_PRICE = "F"
    TWO_WINNERS = "F2"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AeriaEF(Mechanism):
    """AERIA, always free of envy.

    Attributes:
        base: c, above 1. A larger one is harder to manipulate and earns less.
        benchmark: F earns from a single user, too; F2 leaves no one user as much influence.
    """

    name: ClassVar[str] = "aeria-ef"
    truthful: ClassVar[bool] = False
    envy_free: ClassVar[bool] = True

    base: float = DEFAULT_BASE
    benchmark: Benchmark = Benchmark.SINGLE_PRICE

    def __post_init__(self) -> None:
        """Check the base.

        Raises:
            ValueError: when it is not above 1.
        """
        check_base(self.base)

    def clear(self, bids: Bids, supply: Supply, *, draw: float) -> Outcome:
        return clear_above_floor(self.name, bids, supply, draw, self._offers)

    def _offers(self, pool: Pool, draw: float) -> Offers:
        single, double = single_price_value(pool.value, pool.total), two_winner_value(pool.value, pool.total)
        aim = single if self.benchmark is Benchmark.SINGLE_PRICE else double
        target = float(consensus_estimate(np.array([aim]), base=self.base, draw=draw)[0])
        price = CostShare(value=pool.value, total=pool.total).price(target) if target > 0 else pool.fallback
        fewest = 1 if self.benchmark is Benchmark.SINGLE_PRICE else 2
        share = largest_share(pool.value, pool.demand, at_least=fewest)
        return Offers(
            price=np.full(len(pool.users), price),
            announced=price,
            estimates={"F": single, "F2": double, "target": target, "largest share": share},
        )
