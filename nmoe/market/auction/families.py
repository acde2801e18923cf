"""Bid families: markets to try mechanisms on, from the tame to the adversarial.

Source: the families that the literature on digital goods auctions uses.

Departures: their parameters are ours. Values are per unit.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

Family = Callable[[int, Generator], Float[ndarray, " user"]]


def uniform(users: int, generator: Generator) -> Float[ndarray, " user"]:
    """Return values uniform in [0, 1)."""
    return generator.random(users)


def lognormal(users: int, generator: Generator) -> Float[ndarray, " user"]:
    """Return lognormal values."""
    return generator.lognormal(0, 1, users)


def pareto(users: int, generator: Generator) -> Float[ndarray, " user"]:
    """Return values with a heavy tail, of index 1.2: few users have most of the worth."""
    return 1 + generator.pareto(1.2, users)


def equal_revenue(users: int, generator: Generator) -> Float[ndarray, " user"]:
    """Return H/1 .. H/n, shuffled: every price earns the same from users of one unit each."""
    return users / generator.permutation(np.arange(1.0, users + 1))


def one_giant(users: int, generator: Generator) -> Float[ndarray, " user"]:
    """Return uniform values, one of them raised to ten times their number."""
    return _with_giants(users, generator, 1)


def two_giants(users: int, generator: Generator) -> Float[ndarray, " user"]:
    """Return uniform values, two of them raised to ten times their number: without one of these F2 is nearly nothing."""
    return _with_giants(users, generator, 2)


def all_equal(users: int, generator: Generator) -> Float[ndarray, " user"]:
    """Return one value for all."""
    return np.full(users, 1 + generator.random())


def _with_giants(users: int, generator: Generator, giants: int) -> Float[ndarray, " user"]:
    value = generator.random(users)
    value[generator.permutation(users)[:giants]] = 10.0 * users
    return value


FAMILIES: dict[str, Family] = {
    "uniform": uniform,
    "lognormal": lognormal,
    "pareto": pareto,
    "equal-revenue": equal_revenue,
    "one-giant": one_giant,
    "two-giants": two_giants,
    "all-equal": all_equal,
}
