"""Reasons: why a user is not served, in a line with numbers."""

import numpy as np

from nmoe.deliver.bandwidth import finish_s
from nmoe.deliver.candidates import Candidates
from nmoe.deliver.clocks import Clocks, Vector
from nmoe.deliver.scenario import Scenario


def explain(scenario: Scenario, refused: Candidates, need: Vector, *, clocks: Clocks, left: float) -> dict[int, str]:
    """Explain refusals.

    Args:
        scenario: where the users are from.
        refused: all models that were considered for the users that are not served.
        need: share of the bandwidth that each needs, infinite where none is enough.
        clocks: how clocks are chosen.
        left: share that was there for one more.

    Returns:
        The reason by the user's place in the scenario, for the model that comes closest.
    """
    tasks = refused.tasks
    pace = refused.pace_of_share(np.ones_like(need))  # with all of the bandwidth
    finish = finish_s(tasks, pace, tasks.fixed_left + tasks.work_left)  # at full clock
    energy = np.full_like(need, np.inf)
    in_time = np.flatnonzero(finish <= tasks.deadline)
    energy[in_time] = clocks.energy(tasks.take(in_time), pace[in_time])[0]
    reasons: dict[int, str] = {}
    for problem in np.lexsort((finish, energy, need)):  # closest first: by need, else by energy, else by time
        place = int(refused.user[problem])
        user = scenario.users[place]
        model = user.models[refused.slot[problem]]
        if need[problem] <= 1:
            reason = f"not enough bandwidth: {model} needs a share of {need[problem]:.4g}, there is {left:.4g} for it"
        elif np.isfinite(energy[problem]):
            reason = (
                f"energy_j {user.energy_j:g} is too small: with all of the bandwidth, {model} would take {energy[problem]:.6g} J "
                "to meet the deadline"
            )
        else:
            reason = (
                f"deadline_s {user.deadline_s:g} is too short: with all of the bandwidth and at full clock, {model} would end after "
                f"{finish[problem]:.6g} s"
            )
        reasons.setdefault(place, reason)
    return reasons
