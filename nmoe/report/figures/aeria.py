"""AERIA against other ways to sell edge inference: profit by family of values, against what is varied, ablations, and manipulation."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nmoe.report.aeria import FAMILY_WORDS, MECHANISM_WORDS, SWEEP_WORDS
from nmoe.report.figures.style import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, SLATE, new_figure, styled

AMBER = "#e69f00"  # the palette's seventh
LOOKS = {
    "aeria-ic": (BLUE, "-", "o"),
    "aeria-ef": (ORANGE, "-", "s"),
    "aeria-mixture": (SKY, "--", "D"),
    "rsop": (GREEN, "-", "^"),
    "sampling-extraction": (GREEN, ":", "v"),
    "vickrey": (PURPLE, ":", "<"),
    "vcg": (PURPLE, "-", ">"),
    "fixed-price": (AMBER, "--", "P"),
    "optimal-price": (SLATE, "-.", "X"),
}
VARIED = ("users", "capacity_tflops", "cost_share", "base")
LOGARITHMIC = ("users", "capacity_tflops", "base")
BASE_TICKS = (1, 2, 4, 10)
MOST_RATIO = 1.4  # of profit over F2 that is shown: with a giant F is many times F2
CAPACITY_COLOURS = (SKY, BLUE)


@styled
def families_figure(results: Mapping[str, Any]) -> Figure:
    """Draw profit over F2 of every mechanism for every family of values, units on the left, needs on the right."""
    figure = new_figure(4.6, "Profit over the benchmark F2, by how values are drawn")
    panels = figure.subplots(1, 2, sharey=True)
    families = [family for family in FAMILY_WORDS if family in next(iter(_curves(results, "needs", "family").values()))]
    for panel, setting, title in zip(panels, ("unit", "needs"), ("one unit each, no limit", "needs of four workloads"), strict=True):
        curves = _curves(results, setting, "family")
        for place, (name, (colour, _, marker)) in enumerate(LOOKS.items()):
            points = [(curves[name][family], row) for row, family in enumerate(families) if family in curves.get(name, {})]
            if not points:
                continue
            ratios, rows = np.array(points).T
            heights = rows + (place - (len(LOOKS) - 1) / 2) * 0.085
            inside = ratios <= MOST_RATIO
            panel.plot(ratios[inside], heights[inside], marker, color=colour, markersize=4.2, label=MECHANISM_WORDS[name], linestyle="none")
            for ratio, height in zip(ratios[~inside], heights[~inside], strict=True):
                panel.annotate(f"{ratio:.2g} ▸", (MOST_RATIO, height), ha="right", va="center", fontsize=6, color=colour)
        panel.axvline(1, color=INK, linewidth=0.9)
        panel.set_title(title, fontsize=8.5, loc="left")
        panel.set_xlim(-0.05, MOST_RATIO)
        panel.set_xlabel("profit over F2")
        panel.grid(axis="x")
        for row in range(1, len(families)):
            panel.axhline(row - 0.5, color=SLATE, linewidth=0.4, alpha=0.5)
    panels[0].set_yticks(range(len(families)), [FAMILY_WORDS[family] for family in families])
    panels[0].set_ylim(len(families) - 0.5, -0.5)
    for panel in panels:
        panel.tick_params(axis="y", length=0)
    _legend(figure, panels[1])
    return figure


@styled
def sweeps_figure(results: Mapping[str, Any]) -> Figure:
    """Draw profit over F2 against users, capacity, cost and base, where needs are drawn."""
    figure = new_figure(5.4, "Profit over F2, users whose values follow their needs")
    panels = figure.subplots(2, 2, sharey=True)
    for panel, sweep in zip(panels.flat, VARIED, strict=True):
        curves = _curves(results, "needs", sweep)
        spreads = results["spreads"]["needs"][sweep]["over_f2"]
        for name, (colour, line, marker) in LOOKS.items():
            if name in curves:
                points = sorted((float(value), mean, spreads[name][value]) for value, mean in curves[name].items())
                values, means, deviations = np.array(points).T
                panel.plot(
                    values, means, linestyle=line, marker=marker, color=colour, linewidth=1.4, markersize=4, label=MECHANISM_WORDS[name]
                )
                if name in ("aeria-ic", "aeria-ef"):
                    panel.fill_between(values, means - deviations, means + deviations, color=colour, alpha=0.12, linewidth=0)
        if sweep in LOGARITHMIC:
            panel.set_xscale("log")
            shown = BASE_TICKS if sweep == "base" else values
            panel.set_xticks(shown, [f"{value:g}" for value in shown])
            panel.minorticks_off()
        panel.axhline(1, color=INK, linewidth=0.8)
        panel.set_xlabel(SWEEP_WORDS[sweep])
        panel.grid(axis="y")
        panel.set_ylim(0, 1.1)
    for row in panels:
        row[0].set_ylabel("profit over F2")
    panels.flat[0].fill_between([], [], [], color=SLATE, alpha=0.3, linewidth=0, label="± standard deviation")
    _legend(figure, panels.flat[0])
    return figure


@styled
def ablations_figure(results: Mapping[str, Any]) -> Figure:
    """Draw whom a less free first stage serves, what that is worth to them, and what it earns, at two capacities."""
    figure = new_figure(3.3, "Less freedom in the first stage (sold by AERIA-IC)")
    panels = figure.subplots(1, 3, sharey=True)
    curves, spreads = (results[tree]["needs"]["ablation"] for tree in ("curves", "spreads"))
    names = results["settings"]["ablations"]
    capacities = list(curves["served"]["full"])
    height = 0.8 / len(capacities)
    share = 100 / results["settings"]["operation"]["users"]
    for place, (capacity, colour) in enumerate(zip(capacities, CAPACITY_COLOURS, strict=False)):
        rows = np.arange(len(names)) + (place - (len(capacities) - 1) / 2) * height
        served, alone = (share * np.array([curves[metric][name][capacity] for name in names]) for metric in ("served", "alone"))
        spread = share * np.array([spreads["served"][name][capacity] for name in names])
        error = {"ecolor": INK, "elinewidth": 0.8}
        panels[0].barh(rows, served, height, color=colour, label=f"edge, {capacity} TFLOP/s", xerr=spread, error_kw=error)
        panels[0].barh(rows, alone, height, color=SLATE, label="device alone" if place == len(capacities) - 1 else None)
        for panel, metric in zip(panels[1:], ("worth", "profit"), strict=True):
            whole = curves[metric]["full"][capacity]
            parts = [100 * curves[metric][name][capacity] / whole if whole > 0 else 0.0 for name in names]
            panel.barh(rows, parts, height, color=colour)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    for axes, label in zip(panels, ("users served, %", "value of sessions, %", "profit, %"), strict=True):
        axes.set_xlabel(label)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
    for axes in panels[1:]:
        axes.axvline(100, color=INK, linewidth=0.8)
    figure.legend(loc="outside lower left", ncols=3, columnspacing=1.2, handlelength=1.2, fontsize=7.8)
    return figure


@styled
def manipulation_figure(results: Mapping[str, Any]) -> Figure:
    """Draw what a larger base costs and buys: how often AERIA-EF can be manipulated, and what both variants earn."""
    figure = new_figure(3.0, "The base c: truth against profit")
    left, right = figure.subplots(1, 2)
    rows = sorted(results["manipulation"], key=lambda row: row["base"])
    bases, measured, deviations, bounds = np.array([(row["base"], row["mean"], row["std"], row["bound"]) for row in rows]).T
    left.errorbar(bases, 100 * measured, 100 * deviations, color=ORANGE, marker="s", linewidth=1.4, capsize=2, label="AERIA-EF, measured")
    left.plot(bases, 100 * bounds, color=INK, linestyle="--", linewidth=1, marker="_", label="proved at most")
    left.set_ylabel("draws that can be manipulated, %")
    left.legend(fontsize=7.5)
    left.set_ylim(0, 112 * float(max(bounds.max(), (measured + deviations).max())))
    curves = _curves(results, "unit", "base")
    for name, (colour, line, marker) in LOOKS.items():
        if name in curves:
            points = np.array(sorted((float(value), mean) for value, mean in curves[name].items())).T
            right.plot(*points, color=colour, linestyle=line, marker=marker, linewidth=1.4, label=MECHANISM_WORDS[name])
    ratios = np.geomspace(min(points[0]), max(points[0]), 101)
    right.plot(ratios, (1 - 1 / ratios) / np.log(ratios), color=INK, linestyle="--", linewidth=1, label="proved for AERIA-EF, over F")
    right.set_ylabel("profit over F2")
    right.set_ylim(0, 1.05)
    right.legend(fontsize=7.5)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(BASE_TICKS, [f"{value:g}" for value in BASE_TICKS])
        axes.minorticks_off()
        axes.set_xlabel("base c")
        axes.grid(axis="y")
    return figure


def _curves(results: Mapping[str, Any], setting: str, sweep: str) -> Mapping[str, Mapping[str, float]]:
    found: Mapping[str, Mapping[str, float]] = results["curves"][setting][sweep]["over_f2"]
    return found


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=3, columnspacing=1.2, handlelength=2.0, fontsize=7.2)
