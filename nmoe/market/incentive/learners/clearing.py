"""Clearing: the price that fetches what is ordered, and the penalty that makes an owner want all of it.

Source: specification of this project, section 3.6: an owner that seeks its reward alone buys less than its target, for each further sample
makes all others dearer by p'(S). A penalty mu > p(S) + S p'(S) per sample short restores the target as its best choice.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from nmoe.market.incentive.base import POOL, Orders, Recruitment
from nmoe.market.incentive.exact_workers import exact_workers

STEP = 1e-6  # relative, of the difference that stands for p'(S)


class Clearing(NamedTuple):
    """Where supply meets targets.

    Attributes:
        prices: p(S_n); where more is ordered than workers can gather, the price of all they can; infinite where nobody sells.
        rises: S_n p'(S_n).
    """

    prices: Float[ndarray, " owner"]
    rises: Float[ndarray, " owner"]


def clear(recruitment: Recruitment, targets: Float[ndarray, " owner"]) -> Clearing:
    """Return the prices at which workers who take prices as they are gather the targets; one price for all who buy from the pool."""
    prices, beyond = _prices(recruitment, targets), _prices(recruitment, targets * (1 + STEP))
    pooled = recruitment.sellers() == POOL
    demand = float(targets[pooled].sum())
    parts = np.where(pooled, targets / (demand if demand > 0 else 1.0), 1.0)
    with np.errstate(invalid="ignore"):  # infinite prices
        rises = np.where(np.isfinite(prices), parts * (beyond - prices) / STEP, 0.0)
    return Clearing(prices, rises)


def penalty_for(recruitment: Recruitment, targets: Float[ndarray, " owner"], *, factor: float) -> Float[ndarray, " owner"]:
    """Return a penalty per sample short, mu_n; 0 where nobody sells.

    Args:
        recruitment: owners and workers.
        targets: S_n.
        factor: how often mu_n is p(S_n) + S_n p'(S_n), above 1.

    Raises:
        ValueError: when the factor is not above 1.
    """
    if not 1 < factor < float("inf"):
        raise ValueError(f"the penalty's factor must be finite and above 1, got {factor}")
    cleared = clear(recruitment, targets)
    return np.where(np.isfinite(cleared.prices), factor * (cleared.prices + cleared.rises), 0.0)


def _prices(recruitment: Recruitment, targets: Float[ndarray, " owner"]) -> Float[ndarray, " owner"]:
    """Return the exact layer's prices."""
    orders = Orders(targets=targets, samples=targets, reward=1.0, efficiency=1.0, costs=np.ones_like(targets))
    return exact_workers(recruitment).respond(orders).prices
