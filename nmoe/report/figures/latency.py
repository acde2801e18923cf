"""How long answers took, with the median and the slowest percent marked."""

import numpy as np
from matplotlib.figure import Figure

from nmoe.report import words
from nmoe.report.figures.style import BLUE, INK, ORANGE, new_figure, styled
from nmoe.report.run import Serving

NUM_BINS = 40


@styled
def latency_figure(serving: Serving) -> Figure | None:
    """Draw a histogram of latencies, on a log axis when the slowest answer took over eight medians; nothing without answers."""
    latency_ms = np.asarray(serving.latency_ms, dtype=np.float64)
    if latency_ms.size == 0:
        return None
    p50, p99 = np.percentile(latency_ms, [50, 99])
    low, high = float(latency_ms.min()), float(latency_ms.max())
    log = low > 0 and high > 8 * p50
    if low == high:
        low, high = 0.9 * low, 1.1 * high or 1.0
    edges = np.geomspace(low, high, NUM_BINS + 1) if log else np.linspace(low, high, NUM_BINS + 1)
    figure = new_figure(3.1, f"Half of the answers within {words.milliseconds(p50)}, 99 % within {words.milliseconds(p99)}")
    axes = figure.add_subplot()
    axes.hist(latency_ms, bins=edges.tolist(), color=BLUE, alpha=0.75)
    for name, value, colour in (("p50", p50, INK), ("p99", p99, ORANGE)):
        axes.axvline(float(value), color=colour, linestyle="--", linewidth=1.3, label=f"{name} {words.milliseconds(value)}")
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    axes.set_xlabel(f"time from request to answer, ms{' (log scale)' if log else ''}")
    axes.set_ylabel("answers")
    axes.grid(axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, borderaxespad=0.2, handlelength=1.8)
    return figure
