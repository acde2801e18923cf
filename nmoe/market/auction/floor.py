"""Floor: who fits into the capacity, and the price that keeps the others out. All of the family's mechanisms stand on it.

Source: section 2.3 of our specification of AERIA (arXiv 2503.04521, read in its abstract), which derives it.

| symbol | here | unit |
|---|---|---|
| w_i = b_i / d_i - q | value | net price per unit |
| P | Admitted.members | users |
| pi | Admitted.floor | net price per unit |
| Cap | supply.capacity | units |

Users by falling unit bid; P is the longest prefix with a total demand of at most Cap, pi the unit bid of the first user after it, 0 if
there is none. Whoever bids more than pi is in P whatever exactly it bids, so a price of max(p_i, pi), with a p_i that does not depend on
the bid of i, keeps truth a best reply; and any one price for everybody keeps the market free of envy, for w <= pi <= price outside of P.

Equal unit bids go by the order of the market. Of users who bid pi some may be in P and some not; all of them would pay what it is worth to
them, so none of them minds. Which sets fit must not depend on the order in which demands are added, or a bid could decide it by a rounding
error: demands are rounded to whole parts, 2^52 of which are the capacity. Their sums are exact as far as they matter.

Departures:
- A user who demands more than all of the capacity is set aside first; by the letter, it would keep everybody out that bids less. It may
  bid more than the price, but no outcome can serve it, so that is not counted as envy.
- A set fits when its demand is at most the capacity times 1 + 1e-10.
- Where the others leave a mechanism no price for a user of P, it may offer pi if that is above 0, else nothing, as the specification has it
  for AERIA-IC. Not where the user's own bid is why there is none: to underbid would pay.
- Unit bids and demands above 1e150, which could overflow, count as 1e150 and as unservable.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from nmoe.market.auction.base import Bids, Outcome, Reason, Supply

Rows = Int[ndarray, " row"]

FITS = 1 + 1e-10  # of the capacity; a tenth of what the checker allows
PARTS = 2.0**52
LARGEST = 1e150


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Admitted:
    """Who may be served at all.

    Attributes:
        value: net unit bid of every user, below 0 where it does not pay its cost; minus infinity where no unit can be sold to it.
        members: rows of P, best unit bid first.
        floor: pi, at least 0.
        reason: why the others are not in P; ``SERVED`` for those in P, for now.
    """

    value: Float[ndarray, " user"]
    members: Int[ndarray, " member"]
    floor: float
    reason: Int[ndarray, " user"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """The users of P who want one provider's model, best unit bid first.

    Attributes:
        users: their rows in the bids.
        value: their net unit bids, at least 0, not increasing.
        demand: their units, above 0.
        total: units demanded by each and those before it.
        fallback: pi, or infinite if that is 0: what may be offered when the others leave no price.
        market: how many users bid in all, so that a lottery can draw for each whatever it bids.
    """

    users: Int[ndarray, " member"]
    value: Float[ndarray, " member"]
    demand: Float[ndarray, " member"]
    total: Float[ndarray, " member"]
    fallback: float
    market: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Offers:
    """What a mechanism offers the users of a pool, above cost and before the floor.

    Attributes:
        price: per unit, for each; infinite for none. That of a user must not depend on its bid if the mechanism is to be truthful.
        announced: per unit, what users outside of the pool are told.
        estimates: what was computed on the way.
    """

    price: Float[ndarray, " member"]
    announced: float
    estimates: dict[str, float]


def admit(bids: Bids, supply: Supply) -> Admitted:
    """Find P and pi.

    Args:
        bids: of all providers' users together.
        supply: what is sold.
    """
    wanted = (bids.demand > 0) & (bids.demand <= LARGEST)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        value = np.where(wanted, np.minimum(bids.amount / bids.demand, LARGEST) - supply.unit_cost, -np.inf)
        parts = np.rint(bids.demand / supply.capacity * PARTS)
    pays, alone = value >= 0, parts <= PARTS * FITS
    entrants = np.flatnonzero(pays & alone)
    order = entrants[np.argsort(-value[entrants], kind="stable")]
    fitting = int(np.searchsorted(parts[order].cumsum(), PARTS * FITS, side="right"))
    reason = np.full(len(bids), Reason.NO_ROOM, dtype=np.int64)
    reason[~pays] = Reason.BELOW_COST
    reason[~wanted] = Reason.UNSERVABLE
    reason[bids.demand == 0] = Reason.LOCAL
    reason[order[:fitting]] = Reason.SERVED
    floor = float(value[order[fitting]]) if fitting < len(order) else 0.0
    return Admitted(value=value, members=order[:fitting], floor=floor, reason=reason)


def clear_above_floor(name: str, bids: Bids, supply: Supply, draw: float, offers: Callable[[Pool, float], Offers]) -> Outcome:
    """Clear a market in which every provider's users are offered prices of their own, none below the common floor.

    Args:
        name: of the mechanism.
        bids: at least none.
        supply: what is sold.
        draw: in [0, 1).
        offers: the mechanism: from the users of one provider and the draw to their prices.

    Returns:
        The outcome. Each estimate is there by its name, with ``provider 0: `` and so on before it where the bids name providers.

    Raises:
        ValueError: when the draw is not in [0, 1).
    """
    if not 0 <= draw < 1:
        raise ValueError(f"draw must be in [0, 1), got {draw}")
    admitted = admit(bids, supply)
    net, reason = np.full(len(bids), np.inf), admitted.reason.copy()
    estimates = {"floor": admitted.floor}
    for title, wanting, users in _by_provider(bids, admitted.members):
        demand = bids.demand[users]
        pool = Pool(
            users=users,
            value=admitted.value[users],
            demand=demand,
            total=demand.cumsum(),
            fallback=admitted.floor if admitted.floor > 0 else np.inf,
            market=len(bids),
        )
        offer = offers(pool, draw)
        net[wanting] = max(offer.announced, admitted.floor)
        net[users] = np.maximum(offer.price, admitted.floor)
        reason[users] = np.where(np.isinf(net[users]), Reason.NO_PRICE, np.where(pool.value >= net[users], Reason.SERVED, Reason.OUTBID))
        estimates |= {title + word: number for word, number in offer.estimates.items()}
    sellable = np.isfinite(admitted.value) & (bids.demand <= supply.capacity * FITS)
    unit_price = np.where(sellable, net + supply.unit_cost, np.where(bids.demand == 0, 0.0, np.inf))
    payment, served = np.zeros(len(bids)), reason == Reason.SERVED
    payment[served] = np.minimum(unit_price[served] * bids.demand[served], bids.amount[served])  # the bid is less by rounding at most
    return Outcome(
        mechanism=name,
        draw=draw,
        reason=reason,
        unit_price=unit_price,
        payment=payment,
        demand=bids.demand,
        unit_cost=supply.unit_cost,
        estimates=estimates,
    )


def _by_provider(bids: Bids, members: Rows) -> list[tuple[str, Rows, Rows]]:
    """Return, for each provider, what its estimates' names begin with, who wants its model, and which of the members, in their order."""
    if bids.provider is None or not len(bids):
        return [("", np.arange(len(bids)), members)]
    labels, which = np.unique(bids.provider, return_inverse=True)
    cuts = np.arange(1, len(labels))
    wanting = np.argsort(which, kind="stable")
    inside = members[np.argsort(which[members], kind="stable")]
    pools = [np.split(rows, np.searchsorted(which[rows], cuts)) for rows in (wanting, inside)]
    return [(f"provider {label}: ", rows, users) for label, rows, users in zip(labels, *pools, strict=True)]
