"""Accuracy per round, one panel for each stage of training."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nmoe.report import words
from nmoe.report.figures.style import BLUE, GREEN, ORANGE, PURPLE, SKY, new_figure, percent_axis, styled
from nmoe.report.run import Round

LOOKS = {
    "knn": (GREEN, "-"),
    "own_local": (PURPLE, "-"),
    "nmoe_global": (BLUE, "-"),
    "nmoe_local": (SKY, (0, (4, 1.5))),
    "naive_global": (BLUE, "-"),
    "naive_local": (SKY, (0, (4, 1.5))),
    "fedavg_global": (ORANGE, "-"),
}


@styled
def accuracy_figure(rounds: Sequence[Round]) -> Figure | None:
    """Draw accuracy against round; nothing if no round has one.

    Args:
        rounds: the rounds of all stages, in order.
    """
    stages = [stage for stage in dict.fromkeys(one.stage for one in rounds) if _series(rounds, stage)]
    if not stages:
        return None
    num_rows, num_columns = (len(stages) + 1) // 2, min(2, len(stages))
    figure = new_figure(0.7 + 2.05 * num_rows, _title(rounds))
    for number, stage in enumerate(stages):
        axes = figure.add_subplot(num_rows, num_columns, number + 1)
        _panel(axes, stage, _series(rounds, stage))
        if number % 2 == 1:
            axes.set_ylabel("")
    return figure


def _panel(axes: Axes, stage: str, series: dict[str, tuple[list[int], list[float]]]) -> None:
    """Draw one stage, its legend above the lines."""
    for metric, (numbers, values) in series.items():
        colour, line = LOOKS[metric]
        marker = "o" if len(numbers) <= 12 else None
        axes.plot(numbers, values, color=colour, linestyle=line, marker=marker, label=words.METRICS[metric], clip_on=False)
    percent_axis(axes, "accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    axes.set_xlabel("round")
    legend = axes.legend(
        title=words.stage(stage),
        alignment="left",
        ncols=2,
        loc="lower left",
        bbox_to_anchor=(-0.03, 1.0),
        borderaxespad=0.2,
        handlelength=1.6,
        columnspacing=1.2,
        fontsize=7.5,
    )
    legend.get_title().set_fontsize(9)


def _series(rounds: Sequence[Round], stage: str) -> dict[str, tuple[list[int], list[float]]]:
    """Return, per accuracy of a stage, its rounds and percentages."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for metric in LOOKS:
        points = [(one.round, value) for one in rounds if one.stage == stage and (value := one.metrics.get(metric)) is not None]
        if points:
            series[metric] = ([number for number, _ in points], [100 * value for _, value in points])
    return series


def _title(rounds: Sequence[Round]) -> str:
    ends = _series(rounds, "gates").get("nmoe_global")
    if ends is None:
        return "Accuracy per round of training"
    return f"NMoE ends at {ends[1][-1]:.1f} % on all classes after {ends[0][-1]} gate round{'s' if ends[0][-1] != 1 else ''}"
