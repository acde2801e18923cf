"""Figures of a run, one file each; every function returns a matplotlib ``Figure`` and touches no global state of pyplot.

Importing this package imports matplotlib; ``nmoe.report`` itself does not.
"""

from matplotlib.figure import Figure

from nmoe.report.figures.accuracy import accuracy_figure
from nmoe.report.figures.choice import choice_figure
from nmoe.report.figures.latency import latency_figure
from nmoe.report.figures.mesh import mesh_figure
from nmoe.report.figures.style import png_bytes, svg_text
from nmoe.report.figures.traffic import traffic_figure
from nmoe.report.run import Run

__all__ = [
    "accuracy_figure",
    "choice_figure",
    "figures_of",
    "latency_figure",
    "mesh_figure",
    "png_bytes",
    "svg_text",
    "traffic_figure",
]


def figures_of(run: Run) -> dict[str, Figure]:
    """Return the figures that this run has numbers for, by file name without its ending."""
    figures = {"accuracy": accuracy_figure(run.rounds), "traffic": traffic_figure(run.rounds)}
    if run.serving is not None:
        figures["latency"] = latency_figure(run.serving)
        figures["choice"] = choice_figure(run.serving)
        figures["mesh"] = mesh_figure(run.serving)
    return {name: figure for name, figure in figures.items() if figure is not None}
