"""Nash: the contest of owners in closed form, with constant costs and no stock.

Source: this project's derivation (section 3.3 of its notes on J. Cao, Y. Gao, J. Huang, arXiv 2509.10512, whose formulas are not known).

| symbol | here | unit |
|---|---|---|
| k_n = (c_n^0 + p_n)/q_n | costs | money/effective sample |
| A, a, K | active, their number, the sum of their costs | |
| eta = (a-1)/K | efficiency | effective sample/money |
| X_n, s_n | amounts, shares | effective sample, 1 |

    U_n = R X_n/T - k_n X_n is strictly concave in X_n where others train, so
    s_n = 1 - k_n eta for n in A, else 0;    X_n = eta R s_n;    U_n = R s_n^2

A is the two cheapest and every next one that is cheaper than sum_A k / (|A| - 1), itself included in the sum and the count. An owner that
would count its AVERAGE cost (stock included) as k_n would settle elsewhere, where its utility is not the best it can have.

Departures: an infinite cost is an owner that cannot take part; with fewer than two others nobody trains.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NashShares:
    """The equilibrium for any reward.

    Attributes:
        efficiency: eta, effective samples per unit of reward; 0 where nobody trains.
        shares: of the reward and of the effective samples; they sum to 1, or to 0 where nobody trains.
    """

    efficiency: float
    shares: Float[ndarray, " owner"]

    @property
    def active(self) -> Bool[ndarray, " owner"]:
        """Who trains."""
        return np.asarray(self.shares > 0)

    def amounts(self, reward: float) -> Float[ndarray, " owner"]:
        """Return the effective samples of every owner for a reward, X_n."""
        return np.asarray(self.efficiency * reward * self.shares)

    def utilities(self, reward: float) -> Float[ndarray, " owner"]:
        """Return what every owner has of it, U_n."""
        return np.asarray(reward * self.shares**2)


def nash_shares(costs: Float[ndarray, " owner"]) -> NashShares:
    """Find the only Nash equilibrium of owners with constant costs, in O(n log n).

    Args:
        costs: of an effective sample, k_n, above 0; infinite for an owner that cannot train.

    Raises:
        ValueError: when a cost is not above 0, or there are fewer than two owners.
    """
    if len(costs) < 2:
        raise ValueError(f"at least 2 owners wanted, got {len(costs)}")
    if not (costs > 0).all():
        row = int(np.argmin(costs > 0))
        raise ValueError(f"costs must be above 0, got {costs[row]} in row {row + 1}")
    if np.isfinite(costs).sum() < 2:
        return NashShares(efficiency=0.0, shares=np.zeros(len(costs)))
    ascending = np.sort(costs)
    sums, counts = np.cumsum(ascending), np.arange(1, len(costs) + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        joins = ascending < sums / (counts - 1)  # false from the first on that does not
    joins[:2] = True
    joins &= np.isfinite(ascending)
    num_active = int(joins.sum()) if joins.all() else int(np.argmin(joins))
    efficiency = (num_active - 1) / float(sums[num_active - 1])  # eta = (a-1)/K
    with np.errstate(invalid="ignore"):
        shares = np.maximum(1 - costs * efficiency, 0.0)
    shares[~np.isfinite(costs)] = 0.0
    return NashShares(efficiency=efficiency, shares=shares / shares.sum())
