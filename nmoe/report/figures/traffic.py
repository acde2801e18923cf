"""Accuracy against the bytes spent on it: what a byte of training traffic buys."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from nmoe.report import words
from nmoe.report.figures.style import BLUE, GREEN, ORANGE, new_figure, percent_axis, styled
from nmoe.report.run import Round

Line = tuple[list[int], list[float]]


@styled
def traffic_figure(rounds: Sequence[Round]) -> Figure | None:
    """Draw accuracy against cumulative training bytes; nothing if no classifier's accuracy was measured after a first byte.

    Args:
        rounds: the rounds of all stages, in order.
    """
    nmoe = [one for one in rounds if one.stage not in words.CONTROLS]
    lines = {
        "features so far, kNN": (_line(nmoe, "knn"), GREEN, ":"),
        "NMoE, global": (_line(nmoe, "nmoe_global"), BLUE, "-"),
        "FedAvg, global": (_line([one for one in rounds if one.stage == "fedavg"], "fedavg_global"), ORANGE, "-"),
    }
    drawn = {name: line for name, line in lines.items() if line[0][0]}
    if not drawn.keys() & {"NMoE, global", "FedAvg, global"}:
        return None
    ends = [
        f"{name.partition(',')[0]}: {y[-1]:.1f} % for {words.size(x[-1])}" for name, ((x, y), _, style) in drawn.items() if style == "-"
    ]
    figure = new_figure(3.5, "; ".join(ends))
    axes = figure.add_subplot()
    for name, ((x, y), colour, style) in drawn.items():
        axes.plot(x, y, color=colour, linestyle=style, marker="o", markersize=2.5, label=name)
        if style == "-":
            axes.plot(x[-1:], y[-1:], color=colour, marker="o", markersize=6.5)
    percent_axis(axes, "accuracy, %")
    _bytes_axis(axes, [count for (x, _), _, _ in drawn.values() for count in x])
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, borderaxespad=0.2, handlelength=1.8, columnspacing=1.4)
    return figure


def _line(rounds: Sequence[Round], metric: str) -> Line:
    """Return cumulative bytes and percentages of a metric; points before the first byte have no place on a log axis."""
    total, x, y = 0, [], []
    for one in rounds:
        total += one.bytes
        value = one.metrics.get(metric)
        if value is not None and total > 0:
            x.append(total)
            y.append(100 * value)
    return x, y


def _bytes_axis(axes: Axes, counts: list[int]) -> None:
    """Make the x axis logarithmic, with ticks dense enough for its range, labelled in SI units."""
    low, high = min(counts) / 1.25, max(counts) * 1.25
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    subs = (1.0,) if high / low > 1000 else (1.0, 3.0) if high / low > 100 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.size(value).replace(".0", "")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("training bytes so far, all nodes, up and down (log scale)")
    axes.grid(axis="x")
