"""What churn does to a mesh: accuracy and slowest answers against the share of nodes that fail, for each way to decide whom to ask."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nmoe.report.figures.style import BLUE, GREEN, ORANGE, SLATE, new_figure, styled

SYSTEMS = (
    ("both, 2 per expert", "gate and links, 2 nodes per expert", GREEN, "-", "D"),
    ("both", "gate and links", BLUE, "-", "o"),
    ("gate", "gate only", ORANGE, "--", "s"),
    ("link", "links only", SLATE, ":", "^"),
)
FAULTS = (("lost", "lost (killed)"), ("slow", "slow"), ("lossy", "lossy"))


@styled
def churn_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw benchmark rows of ``nmoe bench churn``: a column per fault, accuracy above and the 99th percentile below."""
    figure = new_figure(4.6, "Accuracy and slowest answers while nodes fail")
    axes = figure.subplots(2, len(FAULTS), sharex=True, sharey="row", squeeze=False)
    for column, (fault, title) in enumerate(FAULTS):
        axes[0][column].set_title(title, fontsize=9, loc="left")
        for system, label, colour, line, marker in SYSTEMS:
            for row, (metric, factor) in enumerate((("accuracy", 100.0), ("p99", 1.0))):
                shares, values, spreads = _series(rows, system, fault, metric)
                place = axes[row][column]
                place.plot(100 * shares, factor * values, line, color=colour, marker=marker, label=label)
                place.fill_between(
                    100 * shares, factor * (values - spreads), factor * (values + spreads), color=colour, alpha=0.15, linewidth=0
                )
                place.grid(axis="y")
        axes[1][column].set_xlabel("nodes that fail, %")
        axes[1][column].set_xticks(range(0, 61, 20))
    axes[0][0].set_ylabel("accuracy, %")
    axes[1][0].set_ylabel("p99, ms")
    axes[1][0].set_ylim(bottom=0)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=4, columnspacing=1.2, handlelength=2.0, fontsize=7.8)
    return figure


def _series(rows: Sequence[Mapping[str, Any]], system: str, fault: str, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return shares, values and standard deviations of one line, in rising order of the share."""
    found = [row for row in rows if row["system"] == system and row["metric"] == metric and row["case"].startswith(f"{fault} ")]
    points = sorted((float(row["case"].rpartition(" ")[2]), row["value"], row["std"]) for row in found)
    table = np.array(points, dtype=np.float64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]
