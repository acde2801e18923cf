"""Report of the delivery demo: who was served, and when, planned against measured."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nmoe.report.deliver import ScheduledUser

BUSIER = 1.1  # times as long as calibrated that computing may take without a word
OTHERS = {"slide-equal": "with equal shares", "dai": "download first, then infer", "dai-equal": "download first, equal shares"}


def demo_table(results: Mapping[str, Any]) -> Group:
    """Return the table of a demo's ``results.json``, for a terminal of 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, left in (("user", True), ("model", True), ("share", False), ("deadline", False), ("planned", False), ("measured", False)):
        table.add_column(name, justify="left" if left else "right")
    table.add_column("served")
    reasons = []
    for user in results["users"]:
        planned_s, measured_s = user["finish_s"]["planned"], user["finish_s"]["measured"]
        word = "yes" if user["served"]["measured"] else "late" if user["served"]["planned"] else "no"
        table.add_row(
            Text(user["id"]),
            Text(user["model"] or "-"),
            f"{100 * user['bandwidth_share']:.1f} %",
            f"{user['deadline_s']:.2f} s",
            "-" if planned_s is None else f"{planned_s:.2f} s",
            "-" if measured_s is None else f"{measured_s:.2f} s",
            word,
        )
        if user["reason"]:
            reasons.append(Text(f"{user['id']}: {user['reason']}"))
    served = results["served"]
    about = f"{served['planned']} of {len(results['users'])} users planned for, {served['measured']} served in time"
    others = ", ".join(f"{OTHERS.get(method, method)} {count}" for method, count in results["other_methods_serve"].items())
    return Group(Text(about, style="bold"), table, *_busier(results), *reasons, Text(f"The same scenario would serve, {others}."))


def _busier(results: Mapping[str, Any]) -> list[Text]:
    """Return a line if computing took longer than calibrated: then what was late says more about this machine than about the plan."""
    spans = [user["compute_s"] for user in results["users"] if user["compute_s"]["measured"] is not None]
    most = max((span["measured"] / span["calibrated"] for span in spans), default=0.0)
    return [Text(f"This machine was busier while serving than when timed (x{most:.1f}).")] if most > BUSIER else []


def measured_figure(results: Mapping[str, Any], users: "Sequence[ScheduledUser]") -> "Figure":
    """Draw when each layer came and computed, as measured; rows of users that missed their deadline say so.

    Args:
        results: the demo's ``results.json``.
        users: those that had a model, as they ran.
    """
    from nmoe.report.figures.deliver import schedule_figure

    told, served = results["users"], results["served"]
    title = f"{served['measured']} of {len(told)} served in time ({served['planned']} planned)"
    late = {user["id"] for user in told if user["served"]["planned"] and not user["served"]["measured"]}
    return schedule_figure(users, planned=len(told), title=title, late=late)
