"""Bandwidth: the least rate at which a model must arrive so that its user's deadline and energy budget hold.

Source, symbols and departures: ``nmoe.deliver.clocks``. A rate here is in bytes per second; ``nmoe.deliver.power`` turns it into a share.

Lemma 1: inference ends at t_L = max_m (D_m * pace + C_m), C_m the time of layers from m on. Lemma 2: with fixed clocks the least rate is
max_m D_m / (T - C_m). Algorithm A: at full clock that is a lower bound on the rate; if the least energy there is above the budget, the rate
rises until it is not.

Departures: the specification doubles and halves the rate; here Newton's method runs on the pace. The least energy is convex and rises with
the pace, and its derivative is known, so that steps from the side above the budget never cross the root and converge quadratically.
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from nmoe.deliver.clocks import Clocks, FullClock, Layers, Tasks, UniformClock, Vector

ROUNDING = 1e-12  # deadlines and budgets are tightened by this share, so that no rounding breaks them
STEPS = 64  # about 6 are taken; each also moves on by twice the last one's push, from 1e-15 of the pace, so that rounding cannot trap it


def finish_s(tasks: Tasks, pace: Vector, time_left: Layers) -> Vector:
    """Return when inference ends, in s (Lemma 1).

    Args:
        tasks: the problems.
        pace: of the download, in s per byte.
        time_left: C_m, the time of all layers from m on, in s.
    """
    return np.asarray((tasks.arrived * pace + time_left).max(0))


def least_rates_at_full_clock(tasks: Tasks) -> Vector:
    """Return the least rates in bytes/s that meet the deadline, whatever the energy (Lemma 2); infinite where none does."""
    room = tasks.deadline - tasks.fixed_left - tasks.work_left
    needs = np.divide(tasks.arrived, room, out=np.full_like(room, np.inf), where=room > 0)
    return np.asarray(needs.max(0))


def least_rates(tasks: Tasks, clocks: Clocks) -> Float[ndarray, " problem"]:
    """Return the least rates in bytes/s that meet deadline and budget with such clocks (Algorithm A); infinite where none does."""
    rates = least_rates_at_full_clock(tasks)
    tight = np.flatnonzero(np.isfinite(rates) & (FullClock().energy(tasks, 1 / rates)[0] > tasks.budget))
    left = tasks.take(tight)
    never = UniformClock().energy(left, np.zeros(len(tight)))[0] >= left.budget  # were all here at once, one clock would be best
    rates[tight[never]] = np.inf
    tight, left = tight[~never], left.take(np.flatnonzero(~never))
    pace = 1 / rates[tight]
    for step in range(STEPS):
        energy, slope = clocks.energy(left, pace)
        over = np.flatnonzero(energy > left.budget)
        if not over.size:
            return rates
        tight, left, pace, energy, slope = tight[over], left.take(over), pace[over], energy[over], slope[over]
        newton = np.divide(energy - left.budget, slope, out=np.full_like(pace, np.inf), where=slope > 0)
        pace = pace - newton - pace * min(1e-15 * 2**step, 0.5)
        rates[tight] = np.divide(1, pace, out=np.full_like(pace, np.inf), where=pace > 0)
        kept = np.flatnonzero(pace > 0)  # else the budget is that of an endless rate, but for rounding
        tight, left, pace = tight[kept], left.take(kept), pace[kept]
    raise AssertionError(f"no end of Newton's method for {len(tight)} problems")
