"""Auction: who is served at which price (AERIA), and the auctions it is compared with.

``mechanism_named("aeria-ic", base=2).clear(bids, supply, draw=0.37)`` clears one market. ``check_mechanism`` searches any ``Mechanism``,
yours too, for what is wrong with it; ``explain`` says why each user is served or not.
"""

from dataclasses import fields

from nmoe.market.auction.aeria_ef import AeriaEF, Benchmark
from nmoe.market.auction.aeria_ic import AeriaIC
from nmoe.market.auction.aeria_mixture import AeriaMixture
from nmoe.market.auction.base import BadBids, Bids, Mechanism, NoMarket, Outcome, Reason, Supply
from nmoe.market.auction.benchmarks import largest_share, single_price_value, two_winner_value
from nmoe.market.auction.checker import MechanismReport, check_mechanism
from nmoe.market.auction.consensus import consensus_estimate
from nmoe.market.auction.costshare import CostShare
from nmoe.market.auction.expectation import expected_profit, midpoints
from nmoe.market.auction.explain import explain, explain_user, winning_bid
from nmoe.market.auction.families import FAMILIES
from nmoe.market.auction.fixed_price import FixedPrice
from nmoe.market.auction.guarantees import best_base
from nmoe.market.auction.omniscient import Omniscient
from nmoe.market.auction.optimal_price import OptimalPrice
from nmoe.market.auction.rsop import RSOP
from nmoe.market.auction.sampling_extraction import SamplingExtraction
from nmoe.market.auction.vcg import VCG
from nmoe.market.auction.vickrey import Vickrey

__all__ = [
    "FAMILIES",
    "MECHANISMS",
    "RSOP",
    "VCG",
    "AeriaEF",
    "AeriaIC",
    "AeriaMixture",
    "BadBids",
    "Benchmark",
    "Bids",
    "CostShare",
    "FixedPrice",
    "Mechanism",
    "MechanismReport",
    "NoMarket",
    "Omniscient",
    "OptimalPrice",
    "Outcome",
    "Reason",
    "SamplingExtraction",
    "Supply",
    "Vickrey",
    "best_base",
    "check_mechanism",
    "consensus_estimate",
    "expected_profit",
    "explain",
    "explain_user",
    "largest_share",
    "mechanism_named",
    "midpoints",
    "single_price_value",
    "two_winner_value",
    "winning_bid",
]

MECHANISMS: dict[str, type[Mechanism]] = {
    kind.name: kind
    for kind in (
        AeriaIC,
        AeriaEF,
        AeriaMixture,
        Vickrey,
        VCG,
        RSOP,
        SamplingExtraction,
        FixedPrice,
        Omniscient,
        OptimalPrice,
    )
}


def mechanism_named(name: str, *, base: float | None = None, price: float | None = None) -> Mechanism:
    """Return the mechanism of a name on the command line.

    Args:
        name: one of ``MECHANISMS``.
        base: c of the consensus estimate, above 1, for the mechanisms that have one; None is their default.
        price: per unit, the provider's cost included, at least 0; the fixed price needs one, no other mechanism takes one.

    Raises:
        ValueError: when there is no such mechanism, it has no such parameter or lacks one, or a parameter is out of range.
    """
    if name not in MECHANISMS:
        raise ValueError(f"mechanism must be one of {', '.join(MECHANISMS)}, got {name!r}")
    kind = MECHANISMS[name]
    given = {word: value for word, value in (("base", base), ("price", price)) if value is not None}
    taken = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # every final mechanism is a dataclass
    for word, value in given.items():
        if word not in taken:
            raise ValueError(f"mechanism {name!r} takes no {word}, got {value}")
    if "price" in taken and price is None:
        raise ValueError(f"mechanism {name!r} needs a price per unit, got none")
    return kind(**given)
