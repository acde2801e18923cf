"""Stackelberg: the reward that a publisher announces who knows what owners will answer.

Source: this project's derivation (section 3.3 of its notes on J. Cao, Y. Gao, J. Huang, arXiv 2509.10512, whose formulas are not known).

| symbol | here | unit |
|---|---|---|
| lambda, g | Publisher.factor, data_value | money |
| R | reward | money |
| eta | efficiency | effective sample/money |
| T = eta R | total | effective sample |

    U_TP(R) = lambda g(eta R) - R is strictly concave:   lambda eta g'(T) = 1;   for g = ln(1 + T):   R* = max(0, lambda - 1/eta)

Where owners have stocks, or the publisher foresees that workers' prices rise, T(R) has kinks and U_TP more than one peak: a grid over R and
smaller grids around its best peaks.

Departures: how the grid is refined is ours.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from nmoe.market.incentive.base import Publisher

GRID = 192  # rewards in steps of one size
FINE = 64  # and of one ratio, for what happens near 0
SMALLEST = 1e-4  # of the largest reward
PEAKS = 3  # best peaks of the grid that are looked at again
ZOOM = 33  # points of a smaller grid
ROUNDS = 5

Follow = Callable[[Float[ndarray, " reward"]], Float[ndarray, " reward"]]


def best_total(publisher: Publisher, efficiency: float) -> float:
    """Return the total that a publisher wants at an efficiency; 0 where no task is worth publishing."""
    worth = publisher.factor * efficiency
    return float(publisher.data_value.total_at(np.asarray(1 / worth))) if worth > 0 else 0.0


def best_reward(publisher: Publisher, efficiency: float) -> float:
    """Return R* where owners train ``efficiency`` effective samples per unit of reward; 0 where no task is worth publishing."""
    total = best_total(publisher, efficiency)
    return total / efficiency if total > 0 else 0.0


def largest_reward(publisher: Publisher, efficiency: float) -> float:
    """Return a reward above which the publisher loses, if owners never train more than ``efficiency`` per unit of reward."""
    high = publisher.factor
    while float(publisher.utility(np.asarray(efficiency * high), np.asarray(high))) > 0:
        high *= 2
    return high


def search_reward(publisher: Publisher, follow: Follow, *, high: float) -> float:
    """Find the best reward where utility may have many peaks.

    Args:
        publisher: who announces it.
        follow: totals of effective samples that owners answer to rewards with.
        high: largest reward worth a look, above 0.

    Returns:
        The best reward of a grid, refined; 0 where none is worth more than no task.
    """

    def utility(rewards: ndarray) -> ndarray:
        return publisher.utility(follow(rewards), rewards)

    grid = np.unique(np.concatenate([np.linspace(0, high, GRID + 1)[1:], np.geomspace(SMALLEST * high, high, FINE)]))
    values = utility(grid)
    padded = np.concatenate([[-np.inf], values, [-np.inf]])
    peaks = np.flatnonzero((padded[1:-1] >= padded[:-2]) & (padded[1:-1] >= padded[2:]))
    peaks = peaks[np.argsort(-values[peaks], kind="stable")][:PEAKS]
    low, top = np.append(0.0, grid)[peaks], grid[np.minimum(peaks + 1, len(grid) - 1)]
    best, best_value, each = 0.0, 0.0, np.arange(len(peaks))
    for _ in range(ROUNDS):
        rewards = np.linspace(low, top, ZOOM, axis=1)  # [peak, point]
        found = utility(rewards.ravel()).reshape(rewards.shape)
        at = np.argmax(found, axis=1)
        highest = int(np.argmax(found[each, at]))
        if found[highest, at[highest]] > best_value:
            best, best_value = float(rewards[highest, at[highest]]), float(found[highest, at[highest]])
        low, top = rewards[each, np.maximum(at - 1, 0)], rewards[each, np.minimum(at + 1, ZOOM - 1)]
    return best
