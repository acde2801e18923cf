"""Benchmarks: what the best single price earns, knowing every bid.

Source: A. V. Goldberg, J. D. Hartline, "Competitiveness via consensus" (SODA 2003), for the idea; the weighted form is derived by us.

| symbol | here | unit |
|---|---|---|
| w_(m) | value | net price per unit, the m-th largest |
| D_m | total | units demanded by the m largest |
| F | single_price_value | net price |
| F2 | two_winner_value | net price |
| alpha | largest_share | 1 |

F2 wants at least two winners: no mechanism without prior knowledge can compete with a single dominant bidder.

Departures: demands other than one unit are ours.
"""

from jaxtyping import Float
from numpy import ndarray

Values = Float[ndarray, " member"]


def single_price_value(value: Values, total: Values) -> float:
    """Return F = max over m of w_(m) D_m.

    Args:
        value: net unit bids, at least 0, not increasing.
        total: units demanded by each user and those before it.
    """
    return float((value * total).max(initial=0.0))


def two_winner_value(value: Values, total: Values) -> float:
    """Return F2 = max over m >= 2 of w_(m) D_m; 0 with fewer than two users. Arguments as for ``single_price_value``."""
    return float((value[1:] * total[1:]).max(initial=0.0))


def best_count(value: Values, total: Values, *, at_least: int = 1) -> int:
    """Return how many users the best single price serves.

    Args:
        value: net unit bids, at least 0, not increasing.
        total: units demanded by each user and those before it.
        at_least: so many; 1 for F, 2 for F2.

    Returns:
        m*, the largest of equals; 0 when there are fewer than ``at_least`` users.
    """
    worth = (value * total)[at_least - 1 :]
    return len(value) - int(worth[::-1].argmax()) if worth.size else 0


def largest_share(value: Values, demand: Values, *, at_least: int = 2) -> float:
    """Return alpha, the largest share of one winner in what the best single price sells; 1 when it sells nothing.

    Args:
        value: net unit bids, at least 0, not increasing.
        demand: units, above 0.
        at_least: the fewest winners; 1 for F, 2 for F2.
    """
    winners = best_count(value, demand.cumsum(), at_least=at_least)
    return float(demand[:winners].max() / demand[:winners].sum()) if winners else 1.0
