"""A market as supply and demand: users by falling bid per unit, each as wide as its demand, what they are asked, and what is for sale."""

from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nmoe.report.figures.style import BLUE, GREEN, GRID, INK, ORANGE, SLATE, new_figure, styled

EDGED = 120  # users: with more, edges would hide what is between
WIDE_RANGE = 12.0  # of the highest unit bid over the median: beyond it the axis is logarithmic
NAMED = 12  # users: so few have their names on their bars
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1.0, ""))


@styled
def market_figure(record: dict[str, Any]) -> Figure:
    """Draw a cleared market.

    Args:
        record: what ``nmoe.report.market.market_record`` returns.
    """
    users = [user for user in record["users"] if user["demand"]]
    users.sort(key=lambda user: -user["bid"] / user["demand"])
    served = sum(user["served"] for user in record["users"])
    figure = new_figure(3.5, f"{record['mechanism']}: {served} of {len(record['users'])} users served, revenue {record['revenue']:.3g}")
    axes = figure.subplots()
    if not users:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nobody wants a unit that can be sold", ha="center", va="center", color=SLATE, transform=axes.transAxes)
        return figure
    scale, unit = _unit(record, max(user["demand"] for user in users))
    ends = np.cumsum([user["demand"] for user in users]) / scale
    starts = np.concatenate([[0.0], ends[:-1]])
    heights = np.array([user["bid"] / user["demand"] for user in users]) * scale
    prices = np.array([np.nan if user["unit_price"] is None else user["unit_price"] for user in users]) * scale
    cost = record["unit_cost"] * scale
    lowest = _scale_axes(axes, heights, np.append(prices, cost))
    _bars(axes, users, starts, ends, heights, lowest)
    _lines(axes, record, starts, ends, prices, cost=cost, scale=scale)
    axes.set_xlim(0, 1.02 * ends[-1])
    axes.set_xlabel(f"demand, {unit}, by falling bid")
    axes.set_ylabel(f"per {unit}" if unit != "units" else "per unit")
    axes.grid(axis="y")
    handles: list[Artist] = [Patch(color=BLUE), Patch(facecolor=GRID, edgecolor=SLATE)]
    lines, labels = axes.get_legend_handles_labels()
    figure.legend(
        [*handles, *lines], ["bid, served", "bid, not served", *labels], loc="outside lower left", ncols=3, columnspacing=1.6, fontsize=7.6
    )
    return figure


def _unit(record: dict[str, Any], largest: float) -> tuple[float, str]:
    """Return what a unit of the axis is worth, and its name."""
    if not record["of_needs"]:
        return 1.0, "units"
    scale, prefix = next(((value, prefix) for value, prefix in PREFIXES if largest >= value), PREFIXES[-1])
    return scale, f"{prefix}FLOP/s"


def _scale_axes(axes: Axes, heights: np.ndarray, levels: np.ndarray) -> float:
    """Make the axis of prices logarithmic where a few bids would hide all others; return the height at which bars begin."""
    positive = heights[heights > 0]
    shown = np.concatenate([positive, levels[np.isfinite(levels) & (levels > 0)]])
    top = float(max(heights.max(), np.nanmax(levels, initial=0.0)))
    if len(positive) and heights.max() > WIDE_RANGE * np.median(positive):
        lowest = float(shown.min()) / 2
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # its own needs mathematical text, which is off
        axes.yaxis.set_minor_formatter("")
        axes.set_ylim(lowest, 1.3 * top)
        return lowest
    axes.set_ylim(0, 1.08 * top if top > 0 else 1.0)
    return 0.0


def _bars(axes: Axes, users: list[dict[str, Any]], starts: np.ndarray, ends: np.ndarray, heights: np.ndarray, lowest: float) -> None:
    """Draw all bars as one collection: thousands of single patches would take seconds."""
    corners = [
        [(start, lowest), (end, lowest), (end, max(height, lowest)), (start, max(height, lowest))]
        for start, end, height in zip(starts, ends, heights, strict=True)
    ]
    colours = [BLUE if user["served"] else GRID for user in users]
    few = len(users) <= EDGED
    axes.add_collection(PolyCollection(corners, facecolors=colours, edgecolors="white" if few else colours, linewidths=0.6 if few else 0.2))
    if len(users) <= NAMED:
        for user, start, end in zip(users, starts, ends, strict=True):
            if (end - start) * 100 >= len(user["id"]) * 2.2 * ends[-1]:  # there is room for the name
                colour = "white" if user["served"] else INK
                axes.annotate(
                    user["id"], ((start + end) / 2, lowest), (0, 3), textcoords="offset points", ha="center", fontsize=7, color=colour
                )


def _lines(
    axes: Axes, record: dict[str, Any], starts: np.ndarray, ends: np.ndarray, prices: np.ndarray, *, cost: float, scale: float
) -> None:
    """Draw the price that each user is asked, the provider's cost, and what is for sale."""
    known = prices[np.isfinite(prices)]
    if known.size and np.ptp(known) == 0:  # one price for all is one line
        axes.plot([0.0, ends[-1]], [known[0], known[0]], color=ORANGE, linewidth=2, label="price asked")
    elif known.size:
        edges = np.column_stack([starts, ends, ends]).ravel()
        steps = np.column_stack([prices, prices, np.full(len(prices), np.nan)]).ravel()
        axes.plot(edges, steps, color=ORANGE, linewidth=2, label="price asked")
    if record["floor"] is not None:
        axes.axhline(record["floor"] * scale, color=GREEN, linewidth=1, linestyle="-.", label="floor: the first bid without room")
    if cost > 0:
        axes.axhline(cost, color=INK, linewidth=1, linestyle=":", label="cost of a unit")
    if record["capacity"] is not None and record["capacity"] / scale <= 1.02 * ends[-1]:
        axes.axvline(record["capacity"] / scale, color=INK, linewidth=1.2, linestyle="--", label="capacity")
