"""Who asks whom: the nodes on a circle, an arrow from the node that asks to the node that answers."""

import math

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch

from nmoe.report.figures.style import INK, PAPER, SHADES, SLATE, new_figure, short_names, styled
from nmoe.report.run import Serving

NUM_LARGEST, NUM_LARGEST_OF_MANY = 3, 1
MANY = 24
MIN_SHARE = 0.02
MAX_LINE_PT, MAX_LINE_PT_OF_MANY = 4.5, 2.0
MAX_LABELS = 40


@styled
def mesh_figure(serving: Serving) -> Figure:
    """Draw the mesh: arrow width is the share asked of a neighbour, node fill the share a node keeps, labels the classes it trained on."""
    arrows = drawn_arrows(serving.asked)
    figure = new_figure(5.3, _title(serving))
    axes = figure.add_subplot()
    axes.set_aspect("equal")
    axes.set_axis_off()
    num_nodes = len(serving.experts)
    radius = min(0.13, 0.8 * math.sin(math.pi / max(num_nodes, 2)))
    circles = [_node(axes, serving, number, radius) for number in range(num_nodes)]
    for origin, expert, share in sorted(arrows, key=lambda arrow: arrow[2]):
        _arrow(axes, circles[origin], circles[expert], share * _pt_per_share(arrows, num_nodes))
    axes.set_xlim(-1.45, 1.45)
    axes.set_ylim(-1.28, 1.28)
    _keys(figure, axes, serving, arrows)
    return figure


def drawn_arrows(asked: tuple[tuple[float, ...], ...]) -> list[tuple[int, int, float]]:
    """Return (origin, expert, share) of the arrows drawn: each node's largest neighbours, none under ``MIN_SHARE``."""
    num_largest = _num_largest(len(asked))
    arrows = []
    for origin, row in enumerate(asked):
        others = sorted(((share, expert) for expert, share in enumerate(row) if expert != origin), key=lambda pair: (-pair[0], pair[1]))
        arrows += [(origin, expert, share) for share, expert in others[:num_largest] if share >= MIN_SHARE]
    return arrows


def _num_largest(num_nodes: int) -> int:
    return NUM_LARGEST if num_nodes <= MANY else NUM_LARGEST_OF_MANY


def _pt_per_share(arrows: list[tuple[int, int, float]], num_nodes: int) -> float:
    """Return the line width of a share of 1, such that the largest share gets the widest line."""
    widest_pt = MAX_LINE_PT if num_nodes <= MANY else MAX_LINE_PT_OF_MANY
    return widest_pt / max((share for _, _, share in arrows), default=1.0)


def _node(axes: Axes, serving: Serving, number: int, radius: float) -> Circle:
    """Draw one node, its number inside and its classes outside."""
    angle = math.pi / 2 - 2 * math.pi * number / len(serving.experts)
    x, y = math.cos(angle), math.sin(angle)
    own = serving.asked[number][number]
    axes.add_patch(Circle((x, y), radius, facecolor=PAPER, edgecolor="none", zorder=3))
    circle = Circle((x, y), radius, facecolor=SHADES(own), edgecolor=INK, linewidth=1.2, zorder=4)
    axes.add_patch(circle)
    if len(serving.experts) > MAX_LABELS:
        return circle
    name = short_names(serving.experts)[1][number]
    axes.text(x, y, name, ha="center", va="center", fontsize=8, zorder=5, color="#ffffff" if own > 0.55 else INK)
    side = "center" if abs(x) < 0.2 else "left" if x > 0 else "right"
    above = "center" if abs(y) < 0.9 else "bottom" if y > 0 else "top"
    reach = 1 + radius + 0.06
    axes.text(reach * x, reach * y, _classes(serving, number), ha=side, va=above, fontsize=7.5, zorder=5)
    return circle


def _arrow(axes: Axes, origin: Circle, expert: Circle, width_pt: float) -> None:
    """Draw one arrow, bent so that its opposite stays apart."""
    arrow = FancyArrowPatch(
        origin.center,
        expert.center,
        patchA=origin,
        patchB=expert,
        connectionstyle="arc3,rad=0.14",
        arrowstyle="-|>",
        mutation_scale=6 + 1.6 * width_pt,
        linewidth=max(width_pt, 0.5),
        color=SLATE,
        zorder=2,
    )
    arrow.set_in_layout(False)  # its ends are within the circles', and clipping it is the slowest part of the drawing
    axes.add_patch(arrow)


def _classes(serving: Serving, number: int) -> str:
    """Write the classes a node trained on; long lists are cut."""
    names = [serving.classes[index] for index in sorted(serving.classes_seen[number])]
    if len(names) == len(serving.classes):
        return "all classes"
    if len(names) > 4:
        return f"{', '.join(names[:3])}\n+ {len(names) - 3} more"
    return ", ".join(names) if len("".join(names)) <= 10 else "\n".join(names)


def _keys(figure: Figure, axes: Axes, serving: Serving, arrows: list[tuple[int, int, float]]) -> None:
    """Explain fill and width below the drawing."""
    fill = ScalarMappable(Normalize(0, 100), SHADES)
    label = "fill: share of the weight a node keeps, %"
    bar = figure.colorbar(fill, ax=axes, orientation="horizontal", shrink=0.5, aspect=30, pad=0.01, label=label)
    bar.outline.set_linewidth(0.6)
    if not arrows:
        return
    num_nodes = len(serving.experts)
    asked = sum(share for origin, row in enumerate(serving.asked) for expert, share in enumerate(row) if expert != origin)
    shown = sum(share for _, _, share in arrows) / asked
    largest = max(share for _, _, share in arrows)
    keys = [
        Line2D([], [], color=SLATE, linewidth=share * _pt_per_share(arrows, num_nodes), label=f"{100 * share:.0f} %")
        for share in (largest, largest / 2, largest / 4)
    ]
    count = "largest" if _num_largest(num_nodes) == 1 else f"{_num_largest(num_nodes)} largest"
    title = f"width: share asked of a neighbour; the {count} of each node, {100 * shown:.0f} % of all asked"
    figure.legend(handles=keys, loc="outside lower center", ncols=3, title=title, fontsize=8, title_fontsize=8)


def _title(serving: Serving) -> str:
    own = sum(row[number] for number, row in enumerate(serving.asked)) / max(sum(map(sum, serving.asked)), 1e-12)
    return f"Nodes answer {100 * own:.0f} % themselves and ask others for {100 * (1 - own):.0f} %"
