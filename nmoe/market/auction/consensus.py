"""Consensus estimate: a number rounded down so coarsely that slightly different markets agree on it.

Source: A. V. Goldberg, J. D. Hartline, "Competitiveness via consensus" (SODA 2003); as far as it is written here, derived for this project.

| symbol | here | unit |
|---|---|---|
| V | value | any |
| c | base | 1, above 1 |
| u | draw | 1, uniform in [0, 1) |
| r(V) | consensus_estimate | as V |

r(V) is the largest c^(i + u), i an integer, that is not above V: V c^-Y with Y uniform. Values in [V / rho, V] all round to r(V) with
probability 1 - log_c rho, and E[r(V), they do] = V (1 / rho - 1 / c) / ln c.

Departures: r(0) = 0.
"""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

Numbers = Float[ndarray, " number"]

DEFAULT_BASE = 2.0  # the 3.39 theorem's; guarantees.best_base has the best for a market without large users


def check_base(base: float) -> None:
    """Check a base.

    Raises:
        ValueError: when it is not a finite number above 1.
    """
    if not 1 < base < float("inf"):
        raise ValueError(f"base must be finite and above 1, got {base}")


def exponents(value: Numbers, *, base: float, draw: float) -> Int[ndarray, " number"]:
    """Return the largest integers i with c^(i + u) <= V.

    Args:
        value: above 0.
        base: c, above 1.
        draw: u, in [0, 1).
    """
    found = np.floor(np.log(value) / np.log(base) - draw).astype(np.int64)
    found -= np.power(base, found + draw) > value  # the logarithm is rounded
    found += np.power(base, found + 1 + draw) <= value
    return np.asarray(found)


def consensus_estimate(value: Numbers, *, base: float, draw: float) -> Numbers:
    """Return r(V) of each value.

    Args:
        value: at least 0; 0 stays 0.
        base: c, above 1.
        draw: u, in [0, 1).
    """
    rounded: Numbers = np.zeros_like(value)
    positive = value > 0
    rounded[positive] = np.power(base, exponents(value[positive], base=base, draw=draw) + draw)
    return rounded
