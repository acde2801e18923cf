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

STEPS = 256  # about 6 are taken; some 6 more for every tenfold slower clock, the budget being so much smaller than the energy at first
CONVERGED = 1e-13  # a step that moves the pace by less than this share of it
PUSH = 1e-15  # each step moves on by so much more, and twice as much after each that has converged, so that rounding cannot trap it


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
    never = UniformClock().energy(left, np.zeros(len(tight)))[0] > left.budget  # were all here at once, one clock would be best
    rates[tight[never]] = np.inf
    tight, left = tight[~never], left.take(np.flatnonzero(~never))
    pace = 1 / rates[tight]
    push = np.full_like(pace, PUSH)
    for _ in range(STEPS):
        energy, slope = clocks.energy(left, pace)
        over = np.flatnonzero(energy > left.budget)
        if not over.size:
            return rates
        tight, left, pace, push, energy, slope = tight[over], left.take(over), pace[over], push[over], energy[over], slope[over]
        newton = np.divide(energy - left.budget, slope, out=np.full_like(pace, np.inf), where=slope > 0)
        push = np.where(newton < CONVERGED * pace, np.minimum(2 * push, 0.5), push)
        pace = pace - newton - pace * push
        rates[tight] = np.divide(1, pace, out=np.full_like(pace, np.inf), where=pace > 0)
        kept = np.flatnonzero(pace > 0)  # else the budget is that of an endless rate, but for rounding
        tight, left, pace, push = tight[kept], left.take(kept), pace[kept], push[kept]
    raise AssertionError(f"no end of Newton's method for {len(tight)} problems")
