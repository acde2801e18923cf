"""Reasons: why a user is not served, in a line with numbers."""

import numpy as np

from nmoe.deliver.bandwidth import finish_s
from nmoe.deliver.baselines import WHOLE
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
        alone = finish[problem] <= user.deadline_s and energy[problem] <= user.energy_j  # could be served, but for rounding
        if alone or need[problem] <= WHOLE:
            needed, there = _apart(need[problem], left, digits=4)
            reason = f"not enough bandwidth: {model} needs a share of {needed}, there is {there} for it"
        elif np.isfinite(energy[problem]):
            taken, allowed = _apart(energy[problem], user.energy_j)
            reason = f"energy_j {allowed} is too small: with all of the bandwidth, {model} would take {taken} J to meet the deadline"
        else:
            end, deadline = _apart(finish[problem], user.deadline_s)
            reason = f"deadline_s {deadline} is too short: with all of the bandwidth and at full clock, {model} would end after {end} s"
        reasons.setdefault(place, reason)
    return reasons


def _apart(number: float, other: float, *, digits: int = 6) -> tuple[str, str]:
    """Return two numbers as text, with as many digits as it takes to tell them apart, but at least some."""
    texts = f"{number:.{digits}g}", f"{other:.{digits}g}"
    return texts if texts[0] != texts[1] or digits == 17 else _apart(number, other, digits=digits + 1)
