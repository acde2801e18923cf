"""Deviation: what an owner would gain by training on another number of samples while everybody else stays.

Source: the definition of a Nash equilibrium; the check of this project's notes (section 3.3).

Departures: prices stay as well, for owners take them as given.
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from nmoe.market.incentive.base import Settlement

POINTS = 2000


def deviation_samples(settlement: Settlement, *, points: int = POINTS) -> Float[ndarray, "owner point"]:
    """Return evenly spaced numbers of samples per owner, from 0 to where the whole reward would not pay for them."""
    owners = settlement.recruitment.owners
    most = np.maximum(settlement.reward / owners.unit_cost, 2 * settlement.samples)
    return np.asarray(np.linspace(0, 1, points) * most[:, None])


def utilities_at(settlement: Settlement, samples: Float[ndarray, "owner point"]) -> Float[ndarray, "owner point"]:
    """Return U_n of every owner at other samples than its own, all others staying; minus infinity where nobody sells what it takes."""
    owners = settlement.recruitment.owners
    effective = owners.quality[:, None] * samples
    others = (settlement.total - owners.quality * settlement.samples)[:, None]
    whole = others + effective
    income = settlement.reward * np.divide(effective, whole, out=np.zeros_like(whole), where=whole > 0)
    bought = np.maximum(samples - owners.stock[:, None], 0.0)
    with np.errstate(invalid="ignore"):
        spent = np.where(bought > 0, settlement.prices[:, None] * bought, 0.0)
    return np.asarray(income - owners.unit_cost[:, None] * samples - spent)


def deviation_gains(settlement: Settlement, *, points: int = POINTS) -> Float[ndarray, " owner"]:
    """Return the most that each owner gains by another number of samples out of a grid; at most 0, up to rounding, at an equilibrium."""
    stayed = utilities_at(settlement, settlement.samples[:, None])[:, 0]
    moved = utilities_at(settlement, deviation_samples(settlement, points=points)).max(axis=1)
    return np.asarray(moved - stayed)
