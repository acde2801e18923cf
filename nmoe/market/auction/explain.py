"""Explain: for every user one sentence that says why it is served or not, and which bid would have won.

Source: of a truthful mechanism the winner's price does not depend on its bid, so a user's threshold is what it would pay if it bid far more
than anybody else; the other bids and the draw stay as they are.

Departures: none; of a mechanism that is not truthful the price announced is told instead, which the user's own bid might have moved.
"""

import numpy as np

from nmoe.market.auction.base import Bids, Mechanism, Outcome, Reason, Supply

FAR = 1e3  # times any price in the market


def winning_bid(mechanism: Mechanism, bids: Bids, supply: Supply, outcome: Outcome, user: int) -> float:
    """Return the least total bid with which a user would have won, or the infimum of such bids; infinite when none is known to.

    Args:
        mechanism: that cleared the market. If it is truthful the answer is exact: for a winner what it pays, for others it takes one more
            clearing. Else it is the cost of the demand at the price announced.
        bids: as cleared.
        supply: as cleared.
        outcome: of these.
        user: its row.
    """
    demand = float(bids.demand[user])
    if not 0 < demand < np.inf:
        return 0.0 if demand == 0 else np.inf
    if mechanism.truthful and outcome.served[user]:
        return float(outcome.payment[user])
    if not mechanism.truthful:
        return float(outcome.unit_price[user]) * demand
    demanding = (bids.demand > 0) & np.isfinite(bids.demand)
    with np.errstate(over="ignore"):
        unit_bids = bids.amount[demanding] / bids.demand[demanding]
    known = np.concatenate([unit_bids, outcome.unit_price[np.isfinite(outcome.unit_price)]])
    amount = bids.amount.copy()
    amount[user] = FAR * max(float(known.max(initial=0.0)), 1.0) * demand
    if not np.isfinite(amount[user]):
        return np.inf
    raised = Bids(ids=bids.ids, amount=amount, demand=bids.demand, provider=bids.provider)
    then = mechanism.clear(raised, supply, draw=outcome.draw)
    return float(then.payment[user]) if then.served[user] else np.inf


def explain(mechanism: Mechanism, bids: Bids, supply: Supply, outcome: Outcome) -> tuple[str, ...]:
    """Return a sentence for each user. One clearing per loser where the mechanism is truthful; for some users only, see ``explain_user``.

    Args:
        mechanism: that cleared the market.
        bids: as cleared.
        supply: as cleared.
        outcome: of these.
    """
    return tuple(explain_user(mechanism, bids, supply, outcome, user) for user in range(len(bids)))


def explain_user(mechanism: Mechanism, bids: Bids, supply: Supply, outcome: Outcome, user: int) -> str:
    """Return the sentence for one user, by its row; the rest as for ``explain``."""
    reason, demand = Reason(int(outcome.reason[user])), float(bids.demand[user])
    if reason is Reason.LOCAL:
        return "Not in the market: the device meets the need alone."
    if reason is Reason.UNSERVABLE:
        return "Not served: no amount of edge compute meets the need."
    if demand > supply.capacity and reason is Reason.NO_ROOM:
        return f"Not served: it needs {_units(demand)} and the edge has {supply.capacity:.6g} in all."
    threshold = winning_bid(mechanism, bids, supply, outcome, user)
    if reason is Reason.SERVED:
        paid = f"Served: {_units(demand)} at {outcome.unit_price[user]:.6g} each, {outcome.payment[user]:.6g} in all"
        if mechanism.truthful:
            return f"{paid}; it bid {bids.amount[user]:.6g}, and any bid above {threshold:.6g} would have won at the same price."
        return f"{paid}; it bid {bids.amount[user]:.6g}."
    return f"Not served: {_why(reason, bids, supply, outcome, user)}; {_what_would(mechanism, threshold)}"


def _units(demand: float) -> str:
    return f"{demand:.6g} unit{'' if demand == 1 else 's'}"


def _why(reason: Reason, bids: Bids, supply: Supply, outcome: Outcome, user: int) -> str:
    unit_bid = f"it bid {float(bids.amount[user]) / float(bids.demand[user]):.6g} per unit"
    return {
        Reason.BELOW_COST: f"{unit_bid}, less than the {supply.unit_cost:.6g} that a unit costs the provider",
        Reason.NO_ROOM: f"{unit_bid}, and users who bid as much or more fill the capacity of {_units(supply.capacity)}",
        Reason.OUTBID: f"{unit_bid}, below its price of {outcome.unit_price[user]:.6g} per unit",
        Reason.NO_PRICE: f"{unit_bid}, and the others' bids set no price",
        Reason.REJECTED: "the lottery took it out, whatever it bid",
    }[reason]


def _what_would(mechanism: Mechanism, threshold: float) -> str:
    if not np.isfinite(threshold):
        return "no bid would have won." if mechanism.truthful else "no price was announced."
    if mechanism.truthful:
        return f"a total bid above {threshold:.6g} would have won, and paid that."
    return f"at the price announced its units cost {threshold:.6g} in all."
