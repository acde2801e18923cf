"""Recruitment: how ASOSA's loop settles, what each owner's reward goes to, why no owner deviates, and ASOSA beside other rules."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from nmoe.market.incentive import Loop, Settlement, deviation_samples, utilities_at
from nmoe.report.figures.style import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, SLATE, new_figure, styled
from nmoe.report.incentive import METHOD_WORDS, METRIC_WORDS, SWEEP_WORDS, ordered

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, SLATE)
LINES = ("-", "--", ":")
NAMED = 6  # owners that get a line of their own in a legend; more are drawn alike
MOST_BARS = 24
LOOKS = {
    "asosa": (BLUE, "-", "o"),
    "learned": (SKY, "-", "D"),
    "oracle": (INK, ":", "None"),
    "anticipating": (INK, "--", "None"),
    "contract": (GREEN, "-", "s"),
    "single-agent": (SKY, "--", "v"),
    "equal-split": (GREEN, "--", "^"),
    "greedy": (ORANGE, "-", "P"),
    "fixed-price": (PURPLE, "-", "<"),
    "random-price": (PURPLE, "--", ">"),
    "undamped": (ORANGE, "--", "x"),
    "no-worker": (SLATE, "-.", "None"),
}


@styled
def convergence_figure(loop: Loop, owners: Sequence[str], *, title: str | None = None) -> Figure:
    """Draw reward, samples, prices and costs turn by turn, and how far they are from settling.

    Args:
        loop: at least one turn.
        owners: their ids.
        title: of the figure; None to say whether the loop settled.
    """
    figure = new_figure(5.0, title or ("How ASOSA's loop settles" if loop.converged else "ASOSA's loop did not settle"))
    panels = figure.subplots(3, 2, sharex=True)
    turns = np.arange(1, len(loop.steps) + 1)
    marker = "o" if len(turns) < NAMED else ""
    panels[0, 0].plot(turns, [step.reward for step in loop.steps], color=INK, marker=marker)
    _owner_lines(panels[0, 1], turns, np.array([step.samples for step in loop.steps]), marker)
    _owner_lines(panels[1, 0], turns, np.array([step.prices for step in loop.steps]), marker)
    _owner_lines(panels[1, 1], turns, np.array([step.costs for step in loop.steps]), marker)
    residuals = np.array([step.residual for step in loop.steps])
    panels[2, 0].plot(turns, np.where(residuals > 0, residuals, np.nan), color=INK, marker=marker)
    if (residuals > 0).any():
        panels[2, 0].set_yscale("log")
        panels[2, 0].yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
    panels[2, 1].plot(turns, [step.damping for step in loop.steps], color=INK, marker=marker)
    panels[2, 1].set_ylim(bottom=0)
    names = ("reward R", "samples x", "price p paid to workers", "cost k of an effective sample", "residual", "damping")
    for panel, name in zip(panels.flat, names, strict=True):
        panel.set_title(name, fontsize=8, loc="left")
        panel.grid(axis="y")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in panels[2]:
        panel.set_xlabel("turn")
    if len(owners) <= NAMED:
        figure.legend(panels[0, 1].lines, owners, loc="outside lower left", ncols=min(6, len(owners)), fontsize=7.5, handlelength=1.6)
    return figure


def _owner_lines(panel: Axes, turns: Float[ndarray, " turn"], values: Float[ndarray, "turn owner"], marker: str) -> None:
    few = values.shape[1] <= NAMED
    for owner in range(values.shape[1]):
        numbers = np.where(np.isfinite(values[:, owner]), values[:, owner], np.nan)
        colour = COLOURS[owner % len(COLOURS)] if few else BLUE
        panel.plot(turns, numbers, color=colour, linewidth=1.4 if few else 0.8, alpha=1 if few else 0.5, marker=marker)


@styled
def utilities_figure(settlement: Settlement) -> Figure:
    """Draw what every owner's payment goes to: training, workers, and what it is left with."""
    owners = settlement.recruitment.owners
    order = np.argsort(-settlement.payments, kind="stable")[:MOST_BARS]
    rest = f" (the {len(order)} who are paid most)" if len(order) < len(owners) else ""
    figure = new_figure(1.5 + 0.24 * len(order), f"What owners are paid, and what it goes to{rest}")
    axes = figure.subplots()
    parts = {
        "training": (owners.unit_cost * settlement.samples, SLATE),
        "workers": (settlement.spent, ORANGE),
        "left to the owner": (np.maximum(settlement.owner_utilities, 0), BLUE),
    }
    left = np.zeros(len(order))
    for name, (amounts, colour) in parts.items():
        axes.barh(np.arange(len(order)), amounts[order], left=left, color=colour, label=name, height=0.7)
        left = left + amounts[order]
    axes.set_yticks(range(len(order)), [textwrap.shorten(owners.ids[row], 18, placeholder="…") for row in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("money")
    axes.set_xlim(left=0)
    axes.grid(axis="x")
    figure.legend(loc="outside lower left", ncols=3, fontsize=7.8, handlelength=1.2)
    return figure


@styled
def deviation_figure(settlement: Settlement) -> Figure:
    """Draw every owner's utility against its own number of samples while all others stay; a dot where it is, at the top of its curve.

    Args:
        settlement: of which the first owners who train are drawn.
    """
    owners = settlement.recruitment.owners
    shown = np.flatnonzero(settlement.trains)[:NAMED]
    figure = new_figure(3.4, "No owner gains by training on more or less")
    axes = figure.subplots()
    samples = deviation_samples(settlement, points=600)
    utilities = utilities_at(settlement, samples)
    stayed = settlement.owner_utilities
    for number, owner in enumerate(shown):
        near = samples[owner] <= 3 * settlement.samples[shown].max()
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(samples[owner][near], utilities[owner][near], color=colour, label=owners.ids[owner], linewidth=1.4)
        axes.plot(settlement.samples[owner], stayed[owner], "o", color=colour, markersize=5.5)
    top = float(stayed[shown].max(initial=0.0))
    axes.set_ylim(-0.6 * top, 1.2 * top)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlim(left=0)
    axes.set_xlabel("samples that the owner trains on")
    axes.set_ylabel("its utility, all others staying")
    axes.grid()
    figure.legend(loc="outside lower left", ncols=min(6, max(1, len(shown))), fontsize=7.5, handlelength=1.6)
    return figure


@styled
def sweeps_figure(results: Mapping[str, Any], metric: str) -> Figure:
    """Draw one metric against everything that is varied, a panel each, for every method.

    Args:
        results: what results.json holds.
        metric: one of ``METRIC_WORDS``.
    """
    words = METRIC_WORDS[metric]
    figure = new_figure(5.4, f"{words[0].upper()}{words[1:]} (band: ASOSA's standard deviation)")
    panels = figure.subplots(2, 2)
    curves, spreads = results["curves"], results["spreads"]
    for panel, (sweep, said) in zip(panels.flat, SWEEP_WORDS.items(), strict=True):
        for method in ordered(curves[sweep][metric]):
            points = sorted((float(value), mean) for value, mean in curves[sweep][metric][method].items())
            values, means = np.array(points).T
            colour, line, marker = LOOKS[method]
            first = method == "asosa"
            panel.plot(
                values,
                means,
                color=colour,
                linestyle=line,
                marker=marker,
                label=METHOD_WORDS[method],
                linewidth=2.2 if first else 1.2,
                markersize=3 if first else 4.5,
                zorder=3 if first or method in ("oracle", "anticipating") else 2,
            )
            if first:
                deviations = np.array([spreads[sweep][metric][method][f"{value:g}"] for value in values])
                panel.fill_between(values, means - deviations, means + deviations, color=colour, alpha=0.12, linewidth=0)
        panel.set_xlabel(said)
        panel.grid(axis="y")
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=sweep in ("owners", "workers")))
    for row in panels:
        row[0].set_ylabel(words)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=3, fontsize=7.2, handlelength=2.4, columnspacing=1.0)
    return figure


@styled
def turns_figure(convergence: Mapping[str, Any]) -> Figure:
    """Draw how many games have settled after so many turns, for every rule of damping."""
    figure = new_figure(3.2, "Games that settled, by turns and damping")
    axes = figure.subplots()
    games, last = convergence["games"], convergence["max_turns"]
    colours = (BLUE, ORANGE, PURPLE, GREEN, SLATE)
    for row, colour in zip(convergence["rows"], colours, strict=False):
        turns = np.sort(np.array(row["turns"], dtype=float))
        steps = np.concatenate([[0.0], turns, [last]])
        settled = 100 * np.concatenate([[0], np.arange(1, len(turns) + 1), [len(turns)]]) / games
        axes.step(steps, settled, where="post", color=colour, label=row["damping"])
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlim(1, last)
    ticks = [tick for tick in (2, 5, 10, 20, 50, 100, 200, 500, 1000) if tick <= last]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("turns (log scale)")
    axes.set_ylabel("games settled, %")
    axes.set_ylim(0, 102)
    axes.grid()
    figure.legend(loc="outside lower left", ncols=5, fontsize=7.8, handlelength=1.6)
    return figure
