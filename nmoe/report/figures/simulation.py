"""What became of the requests of a simulated mesh: how long answers took, and their kinds over time."""

import numpy as np
from matplotlib.figure import Figure

from nmoe.report.figures.style import BLUE, INK, ORANGE, SKY, SLATE, new_figure, percent_axis, styled

NUM_BINS, NUM_POINTS = 60, 400
KINDS = (
    ("answered by the gate's choice", BLUE, (1,)),
    ("answered by others", SKY, (2,)),
    ("refused", ORANGE, (3,)),
    ("no answer", SLATE, (0, 4)),
)


@styled
def simulation_figure(times_s: np.ndarray, latency_s: np.ndarray, outcome: np.ndarray, deadline_s: float) -> Figure:
    """Draw the share of answers that took longer, on log axes, and the share of each kind of outcome over time.

    Args:
        times_s: arrivals, [request].
        latency_s: of the answers, nan without one, [request].
        outcome: see ``nmoe.node.world.Outcome``, [request].
        deadline_s: what clients allowed.
    """
    figure = new_figure(5.2, f"{len(times_s):,} requests in {times_s[-1]:,.0f} s of virtual time")
    slow, kinds = figure.subplots(2, 1)
    taken_ms = np.sort(latency_s[np.isfinite(latency_s)]) * 1000
    if len(taken_ms):
        ranks = np.unique(len(taken_ms) - np.geomspace(1, len(taken_ms), NUM_POINTS).astype(np.int64))
        slow.plot(np.maximum(taken_ms[ranks], 1e-3), 100 * (1 - ranks / len(taken_ms)), color=BLUE)
        slow.set_xscale("log")
        slow.set_yscale("log")
    slow.axvline(1000 * deadline_s, color=INK, linestyle="--", linewidth=1.2, label=f"deadline {1000 * deadline_s:g} ms")
    slow.set_xlabel("time from request to answer, ms (log scale)")
    slow.set_ylabel("% that took longer")
    slow.xaxis.set_major_formatter("{x:g}")
    slow.xaxis.set_minor_formatter("")
    slow.yaxis.set_major_formatter("{x:g}")
    slow.grid()
    slow.legend(loc="lower left")
    edges = np.linspace(0, float(times_s[-1]) or 1.0, NUM_BINS + 1)
    totals = np.histogram(times_s, edges)[0]
    busy = totals > 0  # nothing can be said of a pause
    shares = [100 * np.histogram(times_s[np.isin(outcome, numbers)], edges)[0][busy] / totals[busy] for _, _, numbers in KINDS]
    kinds.stackplot(
        ((edges[1:] + edges[:-1]) / 2)[busy], shares, colors=[colour for _, colour, _ in KINDS], labels=[name for name, _, _ in KINDS]
    )
    percent_axis(kinds, "% of requests")
    kinds.set_xlabel("virtual time, s")
    kinds.set_xlim(0, float(edges[-1]))
    handles, labels = kinds.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=4, columnspacing=1.0, handlelength=1.2, fontsize=7.8)
    return figure
