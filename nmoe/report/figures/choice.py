"""Who answers for which class: the gate's weight by class and expert."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nmoe.report.figures.style import INK, SHADES, new_figure, short_names, styled
from nmoe.report.run import Serving

MAX_WRITTEN = 12
MAX_TICKS = 25
MAX_VECTOR_CELLS = 2500


@styled
def choice_figure(serving: Serving) -> Figure:
    """Draw the mean gate weight [class, expert] as shaded cells; a frame marks the classes in an expert's training data."""
    weights = np.asarray(serving.choice_by_class, dtype=np.float64)  # [class, expert]
    num_classes, num_experts = weights.shape
    figure = new_figure(min(7.0, max(2.6, 1.4 + 0.28 * num_classes)), _title(serving, weights))
    axes = figure.add_subplot()
    mesh = axes.pcolormesh(weights, cmap=SHADES, vmin=0, vmax=1, rasterized=weights.size > MAX_VECTOR_CELLS)
    axes.add_collection(
        PatchCollection(_frames(serving), facecolor="none", edgecolor=INK, linewidth=1.0 if num_experts <= MAX_TICKS else 0.5)
    )
    if max(weights.shape) <= MAX_WRITTEN:
        _write(axes, weights)
    prefix, experts = short_names(serving.experts)
    every = -(-num_experts // MAX_TICKS)
    axes.set_xticks(np.arange(0, num_experts, every) + 0.5, experts[::every], rotation=90 if max(map(len, experts)) > 4 else 0)
    every = -(-num_classes // MAX_TICKS)
    axes.set_yticks(np.arange(0, num_classes, every) + 0.5, serving.classes[::every])
    axes.set_xlabel(f"expert of {prefix}…" if prefix else "expert")
    axes.set_ylabel("class of the sample")
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(mesh, ax=axes, shrink=0.8, aspect=30, pad=0.02, label="mean gate weight")
    bar.outline.set_linewidth(0.6)
    return figure


def _frames(serving: Serving) -> list[Rectangle]:
    """Return a rectangle just inside each cell whose expert trained on the class."""
    x, y = min(0.06, 0.006 * len(serving.experts)), min(0.06, 0.006 * len(serving.classes))
    return [Rectangle((node + x, number + y), 1 - 2 * x, 1 - 2 * y) for node, seen in enumerate(serving.classes_seen) for number in seen]


def _write(axes: Axes, weights: np.ndarray) -> None:
    """Write the weight into each cell that rounds to at least one percent, as a percentage."""
    for (number, node), weight in np.ndenumerate(weights):
        if weight >= 0.005:
            colour = "#ffffff" if weight > 0.55 else INK
            axes.text(node + 0.5, number + 0.5, f"{100 * weight:.0f}", ha="center", va="center", fontsize=7, color=colour)


def _title(serving: Serving, weights: np.ndarray) -> str:
    """Compare the weight of experts that saw a class with their part of all experts."""
    seen = np.zeros(weights.shape, dtype=bool)
    for node, numbers in enumerate(serving.classes_seen):
        seen[list(numbers), node] = True
    weight = (weights * seen).sum() / max(weights.sum(), 1e-12)
    return f"{100 * weight:.0f} % of gate weight goes to experts trained on the class\n(they are {100 * seen.mean():.0f} % of the experts)"
