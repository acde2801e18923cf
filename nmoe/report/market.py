"""Reports of a market: its JSON, and tables of who is served at which price, and why."""

import math
from collections import Counter
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from nmoe.market.auction import Bids, Mechanism, Outcome, Reason, Supply, explain, winning_bid
from nmoe.market.auction.needs import NONE, EdgeDemand

MOST_EXPLAINED = 500  # users: to explain one takes a clearing of its own
MOST_NAMED = 6  # of users of whom the same is said
MOST_ROWS = 60  # of a terminal's table; --json has all
REASON_WORDS = {
    "served": "served",
    "local": "alone",
    "unservable": "cannot be served",
    "below_cost": "bid less than cost",
    "no_room": "found no room",
    "outbid": "bid less than the price",
    "no_price": "got no price",
    "rejected": "lost the lottery",
}


def market_record(rule: Mechanism, bids: Bids, supply: Supply, outcome: Outcome, *, edge: EdgeDemand | None) -> dict[str, Any]:
    """Return an outcome as ``nmoe market auction --json`` prints it; numbers that are infinite become None.

    With more than ``MOST_EXPLAINED`` users ``explanation`` and ``winning_bid`` are None, too.

    Args:
        rule: that cleared the market.
        bids: of the users.
        supply: what was sold.
        outcome: of these bids.
        edge: exits and partitions; None where demands were given.
    """
    explained = len(bids) <= MOST_EXPLAINED
    reasons = explain(rule, bids, supply, outcome) if explained else (None,) * len(bids)
    users = []
    for row, user in enumerate(bids.ids):
        demand = float(bids.demand[row])
        users.append(
            {
                "id": user,
                "served": bool(outcome.reason[row] == Reason.SERVED),
                "bid": float(bids.amount[row]),
                "unit_price": finite(outcome.unit_price[row]),
                "payment": float(outcome.payment[row]),
                "demand": finite(demand),
                "edge_share": finite(demand / supply.capacity) if 0 < supply.capacity < math.inf else None,
                "reason": Reason(outcome.reason[row]).name.lower(),
                "explanation": reasons[row],
                "winning_bid": finite(winning_bid(rule, bids, supply, outcome, row)) if explained else None,
                "partition": None if edge is None or edge.partition[row] == NONE else int(edge.partition[row]),
                "exit": None if edge is None or edge.exit[row] == NONE else int(edge.exit[row]),
            }
        )
    floor = outcome.estimates.get("floor", 0.0)
    return {
        "mechanism": outcome.mechanism,
        "draw": outcome.draw,
        "revenue": outcome.revenue,
        "profit": outcome.profit,
        "floor": floor + supply.unit_cost if floor > 0 else None,
        "capacity": finite(supply.capacity),
        "unit_cost": supply.unit_cost,
        "of_needs": edge is not None,
        "users": users,
    }


def finite(value: float) -> float | None:
    """Return a number as JSON has it: None where it is infinite."""
    return float(value) if math.isfinite(value) else None


def market_tables(record: dict[str, Any], *, about: str) -> Group:
    """Return who is served and why, for a terminal of 80 columns.

    Args:
        record: what ``market_record`` returns.
        about: the mechanism, in a few words.
    """
    users = record["users"]
    shown = users[:MOST_ROWS]
    parts: list[Text | Table] = [Text(about, style="bold"), Text(_summary(record)), _users(shown, of_needs=record["of_needs"])]
    if len(users) <= MOST_EXPLAINED:
        parts += [Text("In what follows a unit is a FLOP/s; above, a GFLOP/s.")] if record["of_needs"] else []
        parts.append(_why(shown))
    if len(shown) < len(users):
        parts.append(Text(f"The first {len(shown)} of {len(users)} users are shown; --json has all."))
    return Group(*parts)


def _summary(record: dict[str, Any]) -> str:
    counts = Counter(user["reason"] for user in record["users"])
    served = f"{counts.pop('served', 0)} of {len(record['users'])} users served"
    others = [f"{count} {REASON_WORDS[reason]}" for reason, count in counts.most_common()]
    sold = sum(user["demand"] for user in record["users"] if user["served"])
    limit = "" if record["capacity"] is None else f" of {record['capacity']:.4g}"
    unit = "FLOP/s" if record["of_needs"] else "units"
    money = f"{record['revenue']:.4g}, profit {record['profit']:.4g}"
    sums = f"{sold:.4g}{limit} {unit} sold for {money}; draw {record['draw']!r}"
    return "\n".join([", ".join([served, *others]), sums])


def _users(users: list[dict[str, Any]], *, of_needs: bool) -> Table:
    scale, demand_in = (1e9, "GFLOP/s") if of_needs else (1.0, "demand")
    names = ("user", "bid", demand_in, "per unit", "price", "pays", *(("cut", "exit") if of_needs else ()), "edge")
    table = _table(*names, left=1)
    for user in users:
        demand, price, share = user["demand"], user["unit_price"], user["edge_share"]
        cells = [
            f"{user['bid']:.4g}",
            "-" if demand is None else f"{demand / scale:.4g}",
            f"{user['bid'] / demand * scale:.4g}" if demand else "-",
            f"{price * scale:.4g}" if price is not None and demand else "-",
            f"{user['payment']:.4g}" if user["served"] else "",
        ]
        if of_needs:
            cells += ["-" if user[name] is None else str(user[name]) for name in ("partition", "exit")]
        cells.append("" if share is None or not user["served"] else f"{100 * share:.1f} %")
        table.add_row(Text(user["id"]), *cells, style="bold" if user["served"] else None)
    return table


def _why(users: list[dict[str, Any]]) -> Table:
    """Return a table of sentences; users of whom the same is to be said share one."""
    of_sentence: dict[str, list[str]] = {}
    for user in users:
        of_sentence.setdefault(user["explanation"], []).append(user["id"])
    table = _table("user", "why", left=2)
    for sentence, ids in of_sentence.items():
        more = f" and {len(ids) - MOST_NAMED} more" if len(ids) > MOST_NAMED else ""
        table.add_row(Text(", ".join(ids[:MOST_NAMED]) + more), Text(sentence))
    return table


def _table(*columns: str, left: int) -> Table:
    """Return an empty table whose first columns are words and whose others are numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        words = number < left
        table.add_column(column, justify="left" if words else "right", overflow="fold", no_wrap=not words)
    return table
