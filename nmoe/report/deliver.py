"""Reports of a delivery plan: its JSON, and tables of who is served, of slack and energy, and of what other methods would have done."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from nmoe.deliver.allocate import METHODS, Plan
from nmoe.deliver.forward import simulate
from nmoe.deliver.scenario import Receiver, Scenario
from nmoe.report.slide import METHOD_WORDS


class ScheduledUser(NamedTuple):
    """A user who is served, and the moments of every layer.

    Attributes:
        id: of the user.
        model: name of the model that is delivered.
        bandwidth_share: in (0, 1].
        deadline_s: when inference must have ended.
        energy_j: what it may take.
        energy_used_j: what it takes.
        clocks: of each layer, in (0, 1].
        downloaded_s, started_s, finished_s: when each layer has arrived, begins to compute, and ends.
    """

    id: str
    model: str
    bandwidth_share: float
    deadline_s: float
    energy_j: float
    energy_used_j: float
    clocks: tuple[float, ...]
    downloaded_s: tuple[float, ...]
    started_s: tuple[float, ...]
    finished_s: tuple[float, ...]


def scheduled_users(scenario: Scenario, found: Plan) -> list[ScheduledUser]:
    """Return the users that a plan serves, in the scenario's order, each simulated layer by layer."""
    users = {user.id: user for user in scenario.users}
    scheduled = []
    for allocation in found.allocations:
        if allocation.model is None or allocation.energy_j is None:
            continue
        user, timeline = users[allocation.id], simulate(scenario, allocation, whole=METHODS[found.method].whole)
        scheduled.append(
            ScheduledUser(
                id=user.id,
                model=allocation.model,
                bandwidth_share=allocation.bandwidth_share,
                deadline_s=user.deadline_s,
                energy_j=user.energy_j,
                energy_used_j=allocation.energy_j,
                clocks=allocation.clocks,
                downloaded_s=timeline.downloaded_s,
                started_s=timeline.started_s,
                finished_s=timeline.finished_s,
            )
        )
    return scheduled


def plan_record(found: Plan) -> dict[str, Any]:
    """Return a plan as ``nmoe deliver plan --json`` prints it."""
    return {
        "served": found.served,
        "users": [
            {
                "id": one.id,
                "served": one.served,
                "model": one.model,
                "bandwidth_share": one.bandwidth_share,
                "clocks": list(one.clocks),
                "finish_s": one.finish_s,
                "energy_j": one.energy_j,
                "reason": one.reason,
            }
            for one in found.allocations
        ],
    }


def plan_tables(scenario: Scenario, found: Plan) -> Group:
    """Return who is served, with slack and energy, and who is not and why, for a terminal of 80 columns."""
    used = sum(one.bandwidth_share for one in found.allocations)
    about = f"{found.served} of {len(scenario.users)} users served, {100 * used:.1f} % of {scenario.bandwidth_hz / 1e6:g} MHz used"
    parts: list[Text | Table] = [
        Text(f"{METHODS[found.method].about[:1].upper()}{METHODS[found.method].about[1:]}", style="bold"),
        Text(about),
    ]
    if found.served:
        parts.append(_served(scenario, found))
    if found.served < len(scenario.users):
        parts.append(_unserved(found))
    return Group(*parts)


def _served(scenario: Scenario, found: Plan) -> Table:
    table = _table("user", "model", "share", "finish", "slack", "energy", "budget", "clocks", left=2)
    users: dict[str, Receiver] = {user.id: user for user in scenario.users}
    for one in found.allocations:
        if one.finish_s is None or one.slack_s is None or one.energy_j is None:
            continue
        low, high = min(one.clocks), max(one.clocks)
        table.add_row(
            Text(one.id),
            Text(one.model or ""),
            f"{100 * one.bandwidth_share:.2f} %",
            f"{one.finish_s:.3f} s",
            f"{one.slack_s:.3f} s",
            f"{one.energy_j:.2f} J",
            f"{100 * one.energy_j / users[one.id].energy_j:.0f} %",
            f"{low:.2f}" if high - low < 0.005 else f"{low:.2f}-{high:.2f}",
        )
    return table


def _unserved(found: Plan) -> Table:
    table = _table("user", "why it is not served", left=2)
    for one in found.allocations:
        if not one.served:
            table.add_row(Text(one.id), Text(one.reason))
    return table


def comparison_table(plans: Sequence[Plan]) -> Group:
    """Return what each method would serve, how fast, and with how much of the bandwidth."""
    table = _table("method", "served", "finish", "energy", "bandwidth", left=1)
    for found in plans:
        finish_s = [one.finish_s for one in found.allocations if one.finish_s is not None]
        energy_j = [one.energy_j for one in found.allocations if one.energy_j is not None]
        table.add_row(
            METHOD_WORDS[found.method],
            str(found.served),
            f"{sum(finish_s) / len(finish_s):.3f} s" if finish_s else "-",
            f"{sum(energy_j) / len(energy_j):.2f} J" if energy_j else "-",
            f"{100 * sum(one.bandwidth_share for one in found.allocations):.1f} %",
        )
    return Group(Text("Other ways to deliver, in the same scenario (means of those served)", style="bold"), table)


def _table(*columns: str, left: int) -> Table:
    """Return an empty table whose first columns are words and whose others are numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        words = number < left
        table.add_column(column, justify="left" if words else "right", overflow="fold", no_wrap=not words)
    return table
