"""Deliveries: when each layer of each user's model arrives and is computed, and how much of their limits users take."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nmoe.report.deliver import ScheduledUser
from nmoe.report.figures.style import BLUE, INK, ORANGE, SKY, SLATE, new_figure, styled

HEAT = LinearSegmentedColormap.from_list("heat", ["#f6d8c3", ORANGE, "#6e2f00"])  # of clocks, from low to full
FEW, MANY = 4, 16  # users; so few get tall rows with numbered layers, so many get thin ones
TALL_IN, MIDDLE_IN, THIN_IN = 0.72, 0.42, 0.2
NUMBERED_SHARE = 0.03  # of the time axis: a layer at least so long has room for its number
EDGED_SHARE = 0.01  # of the time axis: a shorter layer would vanish behind its own edge
MOST_SHOWN = 80


def _row_in(count: int) -> float:
    """Return the height of a user's row in inches."""
    return TALL_IN if count <= FEW else MIDDLE_IN if count <= MANY else THIN_IN


@styled
def schedule_figure(users: Sequence[ScheduledUser], *, planned: int, title: str | None = None, late: Collection[str] = ()) -> Figure:
    """Draw a Gantt chart: a row per served user, its layers' downloads above and their computing below, its deadline as a mark.

    Args:
        users: those who are served, in the order in which rows are drawn; the first ``MOST_SHOWN`` are.
        planned: how many users the plan knows, served or not.
        title: None says that all of ``users`` are served.
        late: ids of those whose answer came after the deadline; their rows say so.
    """
    shown = users[:MOST_SHOWN]
    title = f"{len(users)} of {planned} users served" if title is None else title
    rest = f" (the first {len(shown)} are shown)" if len(shown) < len(users) else ""
    figure = new_figure(1.35 + _row_in(len(shown)) * max(1, len(shown)), f"{title}{rest}")
    axes = figure.subplots()
    if not shown:
        _say_nobody(axes)
        return figure
    end_s = max(max(user.deadline_s, user.finished_s[-1]) for user in shown)
    for row, user in enumerate(shown):
        _lanes(axes, row, user, end_s=end_s, few=len(shown) <= FEW, thin=len(shown) > MANY)
    axes.set_xlim(0, 1.01 * end_s)
    axes.set_xlabel("time from the request, s")
    axes.grid(axis="x")
    _name_rows(axes, shown, late=late)
    clocks = [clock for user in shown for clock in user.clocks]
    if min(clocks) < 0.999:
        shrink = min(1.0, 1.6 / figure.get_figheight())
        bar = figure.colorbar(ScalarMappable(Normalize(0, 1), HEAT), ax=axes, location="right", shrink=shrink, anchor=(0.0, 1.0))
        bar.set_label("clock")
        bar.outline.set_visible(False)
    handles: list[Artist] = [
        Patch(color=BLUE, label="download, layer by layer"),
        Patch(color=ORANGE, label="compute, darker at a higher clock"),
    ]
    handles.append(axes.plot([], [], color=INK, linewidth=1.6, label="deadline")[0])
    figure.legend(handles=handles, loc="outside lower left", ncols=3, columnspacing=1.2, handlelength=1.2, fontsize=7.8)
    return figure


def _say_nobody(axes: Axes) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, "nobody can be served within these limits", ha="center", va="center", color=SLATE, transform=axes.transAxes)


def _lanes(axes: Axes, row: int, user: ScheduledUser, *, end_s: float, few: bool, thin: bool) -> None:
    """Draw one user's downloads, computing and deadline."""
    ends = np.array(user.downloaded_s)
    began = np.concatenate([[0.0], ends[:-1]])
    edge_s = math.inf if thin else EDGED_SHARE * end_s
    shades = [BLUE if layer % 2 == 0 else SKY for layer in range(len(ends))]
    _bars(axes, began, ends, row - 0.38, row - 0.02, shades, edge_s=edge_s)
    started, finished = np.array(user.started_s), np.array(user.finished_s)
    _bars(axes, started, finished, row + 0.02, row + 0.38, [HEAT(clock) for clock in user.clocks], edge_s=edge_s)
    axes.plot([user.deadline_s, user.deadline_s], [row - 0.45, row + 0.45], color=INK, linewidth=1.6, solid_capstyle="butt")
    if few:
        for layer in range(len(ends)):
            dark = user.clocks[layer] > 0.6
            _number(axes, layer, began[layer], ends[layer], row - 0.2, end_s, "white" if layer % 2 == 0 else INK)
            _number(axes, layer, started[layer], finished[layer], row + 0.2, end_s, "white" if dark else INK)


def _bars(axes: Axes, began: np.ndarray, ended: np.ndarray, top: float, bottom: float, colours: Sequence[Any], *, edge_s: float) -> None:
    """Draw one lane as one collection: thousands of single patches would take seconds. Layers shorter than ``edge_s`` get no edge."""
    corners = [[(left, top), (right, top), (right, bottom), (left, bottom)] for left, right in zip(began, ended, strict=True)]
    edges = np.where(ended - began >= edge_s, 0.4, 0.0)
    axes.add_collection(PolyCollection(corners, facecolors=colours, edgecolors="white", linewidths=edges.tolist()))


def _number(axes: Axes, layer: int, began_s: float, ended_s: float, height: float, end_s: float, colour: str) -> None:
    if ended_s - began_s >= NUMBERED_SHARE * end_s:
        axes.text((began_s + ended_s) / 2, height, str(layer + 1), ha="center", va="center", fontsize=6, color=colour)


def _name_rows(axes: Axes, users: Sequence[ScheduledUser], *, late: Collection[str] = ()) -> None:
    """Name the rows of a chart after users and models, the first on top."""
    between = "  " if len(users) > FEW else "\n"
    names = [f"{_short(user.id)}{between}{_short(user.model)}{', late' if user.id in late else ''}" for user in users]
    axes.set_yticks(range(len(users)), names, fontsize=7.5 if len(users) <= MANY else 6)
    for label, user in zip(axes.get_yticklabels(), users, strict=True):
        if user.id in late:
            label.set(color=ORANGE, fontweight="bold")
    axes.set_ylim(len(users) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"


@styled
def limits_figure(users: Sequence[ScheduledUser]) -> Figure:
    """Draw how much of its deadline and of its energy budget every served user takes, and its share of the bandwidth."""
    shown = users[:MOST_SHOWN]
    figure = new_figure(1.2 + max(0.16, 0.55 * _row_in(len(shown))) * max(1, len(shown)), "What users take of their limits")
    if not shown:
        _say_nobody(figure.subplots())
        return figure
    limits, shares = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    rows = np.arange(len(shown))
    time = np.array([100 * user.finished_s[-1] / user.deadline_s for user in shown])
    energy = np.array([100 * user.energy_used_j / user.energy_j for user in shown])
    for row, one, other in zip(rows, time, energy, strict=True):
        limits.plot([one, other], [row, row], color=SLATE, linewidth=0.8, alpha=0.6)
    limits.plot(time, rows, "o", color=BLUE, markersize=4.5, clip_on=False, label="time, of the deadline")
    limits.plot(energy, rows, "s", color=ORANGE, markersize=4, clip_on=False, label="energy, of the budget")
    limits.axvline(100, color=INK, linewidth=1)
    limits.set_xlim(0, 104)
    limits.set_xlabel("used of the limit, %")
    shares.barh(rows, [100 * user.bandwidth_share for user in shown], height=0.6, color=SKY)
    shares.set_xlabel("bandwidth, %")
    for axes in (limits, shares):
        axes.grid(axis="x")
    _name_rows(limits, shown)
    shares.tick_params(axis="y", length=0, labelleft=False)
    figure.legend(loc="outside lower left", ncols=2, columnspacing=1.2, handlelength=1.2, fontsize=7.8)
    return figure
