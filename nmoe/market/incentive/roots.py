"""Roots: of many functions at once, each falling through zero within its own bracket.

Source: T. R. Chandrupatla, "A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function without using
derivatives", Advances in Engineering Software 28(3), 1997.

Departures: all functions go on until the last has its root. (SciPy has the method for one array since 1.15; this project allows 1.13.)
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy import ndarray

MOST_STEPS = 200
EPSILON = 2.0**-52


def falling_roots(
    function: Callable[[Float[ndarray, " root"]], Float[ndarray, " root"]], low: Float[ndarray, " root"], high: Float[ndarray, " root"]
) -> Float[ndarray, " root"]:
    """Find where functions fall through zero.

    Args:
        function: of all points at once; finite.
        low: where each is above 0; returned where it is not.
        high: where each is at most 0; returned where it is not.

    Returns:
        The roots, to the last digits of a float.
    """
    newest, other = high, low
    at_newest, at_other = function(newest), function(other)
    outside = np.where(at_other <= 0, low, np.where(at_newest > 0, high, np.nan))
    part = np.full_like(low, 0.5)
    for _ in range(MOST_STEPS):
        point = newest + part * (other - newest)
        at_point = function(point)
        same = (at_point > 0) == (at_newest > 0)
        oldest, at_oldest = np.where(same, newest, other), np.where(same, at_newest, at_other)
        other, at_other = np.where(same, other, newest), np.where(same, at_other, at_newest)
        newest, at_newest = point, at_point
        width = np.abs(other - newest)
        with np.errstate(divide="ignore", invalid="ignore"):
            least = EPSILON * np.abs(newest) / width
            done = (at_newest == 0) | ~(least < 0.5) | ~np.isnan(outside)
            if done.all():
                break
            place, height = (newest - other) / (oldest - other), (at_newest - at_other) / (at_oldest - at_other)
            inverse = at_newest / (at_other - at_newest) * at_oldest / (at_other - at_oldest)
            inverse += (oldest - newest) / (other - newest) * at_newest / (at_oldest - at_newest) * at_other / (at_oldest - at_other)
        trusted = (height**2 < place) & ((1 - height) ** 2 < 1 - place) & np.isfinite(inverse)
        part = np.clip(np.where(trusted, inverse, 0.5), np.minimum(least, 0.5), np.maximum(1 - least, 0.5))
        part = np.where(done, 0.0, part)  # stays where it is
    nearest = np.where(np.abs(at_newest) <= np.abs(at_other), newest, other)
    return np.where(np.isnan(outside), nearest, outside)
