"""Leave one out: the consensus estimate of everybody else's market, for every user at once.

Source: derived for this project; the naive way is to compute R_i = r(F2(P minus i)) for one i after the other, in O(n^2).

| symbol | here | unit |
|---|---|---|
| w_(m) | value | net price per unit, the m-th largest |
| D_m | total | units demanded by the m largest |
| d_i | demand | units |
| R_i | target | net price |

Without i, the price w_(m) sells D_m units for m < i and D_m - d_i for m > i. Only r() of the best is wanted, and r() takes the values
t = c^(j + u): R_i >= t exactly when

    w_(m) D_m >= t for some m < i, m >= 2,    or    D_m - t / w_(m) >= d_i for some m > i, m >= 3.

Each is a comparison with a running maximum, for demands of any size, so one t costs O(n). The largest t is at most F2(P); users whom it
does not settle are tried with t / c, and so on. Below F2(P) / 2 at most two are left: without i there is F2 (1 - d_i / D_m*) or more when
F2 has m* >= 3 winners, of whom one at most has more than half of D_m*, and when m* = 2 only these two matter. Those few are computed
directly. So O(n log n) to sort and O(n (1 + log_c 2)), at most O(n^2), for all R_i, which take few different values: each is asked of
``CostShare`` once.

Departures: the specification asks for O(n log n) with unit demands only. An F2(P minus i) that misses t by less than 1e-12 of it reaches t:
else, where round numbers make the two equal, i's own bid would decide by the order in which others' demands are added.
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from nmoe.market.auction.benchmarks import two_winner_value
from nmoe.market.auction.consensus import consensus_estimate, exponents
from nmoe.market.auction.costshare import SLACK

Values = Float[ndarray, " member"]

FEW = 2  # users left to be computed directly


def leave_one_out_targets(value: Values, demand: Values, *, base: float, draw: float) -> Values:
    """Return R_i = r(F2(P minus i)) of every user.

    Args:
        value: net unit bids, at least 0, not increasing.
        demand: units, above 0.
        base: c, above 1.
        draw: u, in [0, 1).
    """
    users = len(value)
    targets: Values = np.zeros(users)
    total = demand.cumsum()
    worth = value * total
    before = np.zeros(users)  # the best of m < i, m >= 2
    before[2:] = np.maximum.accumulate(worth[1:-1])
    best, left = two_winner_value(value, total) / SLACK, np.arange(users)
    highest = int(exponents(np.array([best]), base=base, draw=draw)[0]) if best > 0 else 0
    step = 0
    while left.size > FEW and best > 0 and step < users:  # with c near 1 the naive way takes fewer steps
        target = float(np.power(base, highest - step + draw))
        reached = target * SLACK
        settled = (before[left] >= reached) | (_room_after(value, total, reached)[left] >= demand[left])
        targets[left[settled]] = target
        left, step = left[~settled], step + 1
    for user in left:
        rest = np.delete(demand, user).cumsum()
        alone = np.array([two_winner_value(np.delete(value, user), rest) / SLACK])
        targets[user] = consensus_estimate(alone, base=base, draw=draw)[0]
    return targets


def _room_after(value: Values, total: Values, target: float) -> Values:
    """Return, for every user, how much the demand of one before it may be so that prices after it still extract the target."""
    with np.errstate(divide="ignore", over="ignore"):
        room = total - target / value
    room[:2] = -np.inf  # m >= 3: two others are to win
    after = np.full(len(value), -np.inf)
    after[:-1] = np.maximum.accumulate(room[:0:-1])[::-1]
    return after
