"""Channel-aware gating: accuracy against mean SNR for every gate and transmission, and whom gates choose."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nmoe.report.figures.style import BLUE, GREEN, ORANGE, SKY, SLATE, new_figure, styled

METHODS = (
    ("aware", "channel-aware", BLUE, "-", "o"),
    ("aware_joint", "channel-aware, joint", SKY, "-", "D"),
    ("naive", "naive", ORANGE, "--", "s"),
    ("snr_only", "SNR only", GREEN, ":", "^"),
    ("random", "random", SLATE, ":", "v"),
)
CODES = (
    ("digital", "no code", "-", "o"),
    ("digital_repetition", "repetition", "--", "s"),
    ("digital_convolutional", "convolutional", "-.", "^"),
    ("digital_ldpc", "LDPC", ":", "D"),
)


@styled
def curves_figure(results: Mapping[str, Any]) -> Figure:
    """Draw accuracy against mean SNR: analog over unequal and equal links, digital without a code, and what codes do to the cliff."""
    figure = new_figure(5.6, "Accuracy against the mean SNR of the links")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for place, transmission, title in (
        (axes[0][0], "analog", "analog, unequal links"),
        (axes[0][1], "analog_equal", "analog, equal links"),
        (axes[1][0], "digital", "digital, no code"),
    ):
        place.set_title(title, fontsize=9, loc="left")
        for method, label, colour, line, marker in METHODS:
            _line(place, results, method, transmission, label, colour, line, marker)
    codes = axes[1][1]
    codes.set_title("codes: aware blue, naive orange", fontsize=9, loc="left")
    for method, colour in (("aware", BLUE), ("naive", ORANGE)):
        for transmission, label, line, marker in CODES:
            _line(codes, results, method, transmission, label if method == "aware" else "", colour, line, marker)
    codes.legend(loc="lower right", fontsize=7.5)
    for row in axes:
        row[0].set_ylabel("accuracy, %")
        for place in row:
            place.grid(axis="y")
    for place in axes[1]:
        place.set_xlabel("mean SNR, dB")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=5, columnspacing=1.2, handlelength=2.0, fontsize=7.8)
    return figure


def _line(place: Axes, results: Mapping[str, Any], method: str, transmission: str, label: str, colour: str, line: str, marker: str) -> None:
    """Draw one curve with its spread, if it was measured."""
    curve = results["curves"].get(method, {}).get(transmission)
    if curve is None:
        return
    spread = results["spreads"][method][transmission]
    points = sorted((float(mean), 100 * value, 100 * spread[mean]) for mean, value in curve.items())
    means, values, spreads = np.array(points).T
    place.plot(means, values, line, color=colour, marker=marker, label=label or None)
    place.fill_between(means, values - spreads, values + spreads, color=colour, alpha=0.15, linewidth=0)


@styled
def selection_figure(results: Mapping[str, Any]) -> Figure:
    """Draw how often each gate chooses the link of each rank."""
    figure = new_figure(2.8, f"Choices by the rank of the link's SNR, at {results['settings']['ranks_at_db']:g} dB")
    place = figure.subplots()
    drawn = [entry for entry in METHODS if entry[0] in results["selection"]]
    width = 0.8 / len(drawn)
    for index, (method, label, colour, _, _) in enumerate(drawn):
        shares = 100 * np.array(results["selection"][method])
        places = np.arange(1, len(shares) + 1) + (index - (len(drawn) - 1) / 2) * width
        place.bar(places, shares, width=0.9 * width, color=colour, label=label)
    place.set_xlabel("rank, best link first")
    place.set_ylabel("share of choices, %")
    place.set_xticks(range(1, results["settings"]["experts"] + 1))
    place.grid(axis="y")
    figure.legend(loc="outside lower left", ncols=5, columnspacing=1.2, handlelength=1.2, fontsize=7.8)
    return figure
