"""AERIA-IC: a price from everybody else's bids; truth is always a best reply, free of envy with high probability.

Source: S. Li, J. Hu, G. Min, H. Huang, J. Huang, arXiv 2503.04521 (2025), for the ingredients, a consensus estimate and cost sharing, read
in the abstract; A. V. Goldberg, J. D. Hartline, "Competitiveness via consensus" (SODA 2003), whose CORE auction this is for one unit each.

| symbol | here | unit |
|---|---|---|
| c | base | 1, above 1 |
| u | draw | 1, uniform in [0, 1) |
| R_i = r(F2(P minus i)) | target | net price |
| p_i | price | net price per unit |
| alpha | estimate "largest share" | 1 |

1. Demands, net unit bids, P and pi: ``floor``. 2. The draw. 3. For each i in P: R_i. 4. p_i is the price of CostShare with R_i among P, at
least pi. 5. i is served iff w_i >= p_i and pays (q + p_i) d_i.

The impossibility. An auction that earns a constant part of F2 in every market cannot be both always truthful and always free of envy. Free
of envy means one price for all, and truthful means that nobody's bid moves the price it is offered; so nobody's bid may move the one
price; then the price knows nothing about the market, and some market makes it earn next to nothing. (Goldberg and Hartline, "Envy-free
auctions for digital goods", prove it; known to us, not read.) The paper's abstract claims both. One of the two can hold with high
probability only: here all users see one price when all R_i agree, which fails with a probability of log_c(1 / (1 - alpha)) at most when F2
has three winners or more. ``AeriaEF`` is the other choice.

Revenue of truthful bids, F2 with three winners or more: F2 max(0, 1 - alpha - 1/c) / ln c or more in expectation. ``guarantees.best_base``
has the c that makes the most of a known alpha. With two winners there is no guarantee; ``AeriaMixture`` has one.

Truth holds for every draw, for any demands, capacity and cost, but for bids only: a user who could overstate its demand could pull others
in and pay less. Demands must be computed from audited tasks.

Time: O(n log n) to sort and O(n (1 + log_c 2)) else, for demands of any size: ``leave_one_out``.

Departures: the whole variant is derived for this project; the paper's was not found. R_i = 0, when others cannot make two winners or bid
exactly the cost, is no price: pi is offered if it is above 0, else nothing. Several providers: an estimate for each user from the others of
its provider, above a common floor. Users outside of P are told the price of CostShare with r(F2(P)).
"""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from nmoe.market.auction.base import Bids, Mechanism, Outcome, Supply
from nmoe.market.auction.benchmarks import largest_share, two_winner_value
from nmoe.market.auction.consensus import DEFAULT_BASE, check_base, consensus_estimate
from nmoe.market.auction.costshare import CostShare
from nmoe.market.auction.floor import Offers, Pool, clear_above_floor
from nmoe.market.auction.leave_one_out import leave_one_out_targets


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AeriaIC(Mechanism):
    """AERIA, always truthful.

    Attributes:
        base: c, above 1. The best one depends on how large the largest winner is: ``guarantees.best_base``.
    """

    name: ClassVar[str] = "aeria-ic"
    truthful: ClassVar[bool] = True
    envy_free: ClassVar[bool] = False

    base: float = DEFAULT_BASE

    def __post_init__(self) -> None:
        """Check the base.

        Raises:
            ValueError: when it is not above 1.
        """
        check_base(self.base)

    def clear(self, bids: Bids, supply: Supply, *, draw: float) -> Outcome:
        return clear_above_floor(self.name, bids, supply, draw, self._offers)

    def _offers(self, pool: Pool, draw: float) -> Offers:
        targets = leave_one_out_targets(pool.value, pool.demand, base=self.base, draw=draw)
        benchmark = two_winner_value(pool.value, pool.total)
        overall = float(consensus_estimate(np.array([benchmark]), base=self.base, draw=draw)[0])
        sharing = CostShare(value=pool.value, total=pool.total)
        different, which = np.unique(targets, return_inverse=True)
        prices = np.array([sharing.price(target) if target > 0 else pool.fallback for target in different])
        return Offers(
            price=prices[which] if len(targets) else targets,
            announced=sharing.price(overall) if overall > 0 else pool.fallback,
            estimates={
                "F2": benchmark,
                "target": overall,
                "lowest target": float(targets.min(initial=overall)),
                "largest share": largest_share(pool.value, pool.demand),
            },
        )
