"""One look for all figures: a palette safe for colour-blind readers (Okabe and Ito, 2008), and how figures become PNG and SVG.

In SVG the colours become CSS variables of the page around it, so that one drawing serves light and dark screens; PNG keeps them, on white.
"""

import io
import re
import textwrap
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

INK, SLATE, GRID, PAPER = "#16202a", "#85909b", "#d9dee4", "#fdfefe"
BLUE, SKY, ORANGE, GREEN, PURPLE = "#0072b2", "#56b4e9", "#d55e00", "#009e73", "#b0568a"
VARIABLES = {
    INK: "currentColor",
    SLATE: "var(--slate)",
    GRID: "var(--grid)",
    PAPER: "var(--card)",
    BLUE: "var(--blue)",
    SKY: "var(--sky)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    PURPLE: "var(--purple)",
}
SHADES = LinearSegmentedColormap.from_list("shades", [to_rgba(BLUE, 0.0), to_rgba(BLUE, 1.0)])
WIDTH_IN = 5.4

_LOOK: Any = {  # mpl types its keys one by one
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # a class or node may be named with a dollar sign
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "nmoe",
}


def styled(draw: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Wrap ``draw`` so that it runs under this look and leaves matplotlib's settings as they were."""

    @wraps(draw)
    def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with mpl.rc_context(_LOOK):
            return draw(*args, **kwargs)

    return wrapper


def new_figure(height_in: float, title: str) -> Figure:
    """Return an empty figure of the common width with its title at the top left."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    lines = "\n".join(textwrap.fill(line, 60) for line in title.splitlines())
    figure.suptitle(lines, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    return figure


def percent_axis(axes: Axes, label: str) -> None:
    """Make the y axis of ``axes`` run over all percentages, with quiet grid lines."""
    axes.set_ylim(0, 102)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel(label)
    axes.grid(axis="y")


def short_names(names: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return the prefix that all names share up to a last dash, and the names without it."""
    prefix = names[0].rpartition("-")[0] + "-"
    if all(name.startswith(prefix) and len(name) > len(prefix) for name in names):
        return prefix, tuple(name.removeprefix(prefix) for name in names)
    return "", names


@styled
def png_bytes(figure: Figure) -> bytes:
    """Return the figure as PNG on white, 200 dots per inch."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


@styled
def svg_text(figure: Figure, name: str) -> str:
    """Return the figure as an SVG element for inlining in HTML.

    Args:
        figure: what to draw.
        name: prefix of every id in it, unlike that of other figures on the page.
    """
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", facecolor="none", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)  # HTML knows the namespaces, and the page then holds no outside address
    text = re.sub(r'\s(width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r'(\sid=")', rf"\1{name}-", text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{name}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return text
