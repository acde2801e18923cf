"""SLIDE against the other ways to deliver models: users served, latency, what overlap saves, and how much bandwidth users need."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nmoe.report.figures.style import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, SLATE, new_figure, styled
from nmoe.report.slide import METHOD_WORDS, SWEEP_WORDS

LOOKS = {
    "slide": (BLUE, "-", "o"),
    "slide-uniform-clock": (SKY, "--", "D"),
    "slide-full-clock": (SKY, ":", "v"),
    "slide-equal": (GREEN, "--", "^"),
    "dai": (ORANGE, "-", "s"),
    "dai-overlapped": (GREEN, "-", "D"),
    "dai-equal": (ORANGE, ":", "^"),
    "slide-random-model": (PURPLE, "-", "P"),
    "slide-smallest": (PURPLE, "--", "<"),
    "slide-largest": (PURPLE, ":", ">"),
    "slide-random-order": (SLATE, "-.", "x"),
}
LATENCY_OF = ("slide", "dai", "dai-overlapped")
NOTES = {
    "served": "Bands: one standard deviation over the seeds, drawn for SLIDE and for download, then infer, only.",
    "latency_s": (
        "What overlap saves, SLIDE spends on more users first, then on time. The other two have the same users.\n"
        "Bands: one standard deviation over the seeds."
    ),
}
AMBER = "#e69f00"  # the palette's seventh: ink is the bound's
MODEL_COLOURS = (BLUE, SKY, GREEN, PURPLE, ORANGE, SLATE, AMBER)
MODEL_MARKERS = "osD^v<>P"  # one more than colours, so that no two of 56 models look alike


def _number(value: float) -> str:
    return f"{value:g}".replace("e+0", "e")


@styled
def sweeps_figure(results: Mapping[str, Any], setting: str, metric: str) -> Figure:
    """Draw one metric against everything that is varied, a panel each, for every method.

    Args:
        results: what results.json holds.
        setting: whose curves.
        metric: ``served`` or ``latency_s``.
    """
    title = {"served": "Users served", "latency_s": "Mean latency of those served"}[metric]
    figure = new_figure(5.6, f"{title}: {results['settings']['words'][setting]}")
    panels = figure.subplots(3, 2, sharey=metric == "served")
    curves, spreads = results["curves"][setting], results["spreads"][setting]
    for panel, (sweep, words) in zip(panels.flat, SWEEP_WORDS.items(), strict=False):
        for method in LOOKS if metric == "served" else LATENCY_OF:
            if method in curves[sweep][metric]:
                _curve(panel, method, curves[sweep][metric][method], spreads[sweep][metric][method])
        panel.set_xlabel(words)
        panel.grid(axis="y")
    for panel in panels.flat:  # once all are drawn: those that share an axis are scaled together
        panel.set_ylim(bottom=0)
    for row in panels:
        row[0].set_ylabel({"served": "users served", "latency_s": "mean latency, s"}[metric])
    last = panels.flat[len(SWEEP_WORDS)]
    last.set_axis_off()
    labelled = {label: line for panel in panels.flat for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    labels = [textwrap.fill(label, 37, break_on_hyphens=False) for label in labelled]
    last.legend(labelled.values(), labels, loc="center left", fontsize=7.2, handlelength=2.4)
    figure.supxlabel(NOTES[metric], x=0.01, ha="left", fontsize=6.8)
    return figure


def _curve(panel: Axes, method: str, curve: Mapping[str, float], spread: Mapping[str, float]) -> None:
    colour, line, marker = LOOKS[method]
    points = sorted((float(value), mean, spread[value]) for value, mean in curve.items())
    values, means, spreads = np.array(points).T
    (drawn,) = panel.plot(values, means, linestyle=line, color=colour, marker=marker, label=METHOD_WORDS[method])
    if method == "slide":  # over all others, whose larger markers show where they are equal
        drawn.set(linewidth=2.2, markersize=3, zorder=3)
    else:
        drawn.set(linewidth=1.3, markersize=5)
    if method in LATENCY_OF:
        panel.fill_between(values, means - spreads, means + spreads, color=colour, alpha=0.12, linewidth=0)


@styled
def needs_figure(results: Mapping[str, Any]) -> Figure:
    """Draw the share of users that a share of the bandwidth is enough for, a panel per setting, each as wide as its data."""
    settings = list(results["needs"])
    figure = new_figure(1.2 + 2.1 * math.ceil(len(settings) / 2), "Share of the bandwidth that a user needs")
    panels = figure.subplots(math.ceil(len(settings) / 2), min(2, len(settings)), squeeze=False, sharey=True)
    for panel in panels.flat[len(settings) :]:
        panel.set_axis_off()
    for panel, setting in zip(panels.flat, settings, strict=False):
        panel.set_title(results["settings"]["words"][setting], fontsize=8, loc="left")
        for method, needs in results["needs"][setting].items():
            known = [(share, 100 * rank / (len(needs) - 1)) for rank, share in enumerate(needs) if share is not None]
            shares, ranks = np.array(known).reshape(-1, 2).T
            colour, line, _ = LOOKS[method]
            panel.plot(100 * shares, ranks, color=colour, linestyle=line, label=METHOD_WORDS[method], linewidth=1.5)
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(lambda value, _: _number(value))
        panel.axvline(100, color=INK, linewidth=0.8)
        panel.grid()
        panel.set_ylim(0, 100)
    for row in panels:
        row[0].set_ylabel("users, %")
    for panel in panels.flat[max(0, len(settings) - 2) : len(settings)]:  # the last of each column
        panel.set_xlabel("need, % of the bandwidth (log scale)")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=2, columnspacing=1.2, handlelength=2.0, fontsize=7.8)
    return figure


@styled
def overlap_figure(results: Mapping[str, Any]) -> Figure:
    """Draw how much sooner inference ends than after a whole download, against the ratio of computing to downloading."""
    overlap: Sequence[Mapping[str, Any]] = results["overlap"]
    figure = new_figure(3.6, "What computing during the download saves, at one bandwidth and full clocks")
    axes = figure.subplots()
    names = list(dict.fromkeys(row["model"] for row in overlap))
    for number, name in enumerate(names):
        points = sorted((row["ratio"], 100 * row["cut"]) for row in overlap if row["model"] == name)
        ratios, cuts = np.array(points).T
        colour, marker = MODEL_COLOURS[number % len(MODEL_COLOURS)], MODEL_MARKERS[number % len(MODEL_MARKERS)]
        axes.plot(ratios, cuts, linestyle="none", marker=marker, markersize=5, fillstyle="none", color=colour, label=name)
    ratios = np.geomspace(min(row["ratio"] for row in overlap), max(row["ratio"] for row in overlap), 101)
    axes.plot(ratios, 100 * np.minimum(1, ratios) / (1 + ratios), color=INK, linestyle="--", linewidth=1, label="bound", zorder=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: _number(value))
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("time to compute over time to download (log scale)")
    axes.set_ylabel("latency saved, %")
    axes.set_ylim(0, 55)
    axes.grid()
    figure.legend(loc="outside lower left", ncols=4, columnspacing=1.2, handlelength=1.8, fontsize=7.8)
    return figure
