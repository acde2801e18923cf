"""Figures hold what they should: panels, lines, cells, arrows, and titles computed from the data."""

import re

import msgspec
import numpy as np
import pytest
from matplotlib.collections import PatchCollection, QuadMesh
from matplotlib.patches import Circle, FancyArrowPatch

from nmoe.report import read_run
from nmoe.report.figures import accuracy_figure, choice_figure, figures_of, latency_figure, mesh_figure, png_bytes, svg_text, traffic_figure
from nmoe.report.figures.mesh import MIN_SHARE, NUM_LARGEST, drawn_arrows


@pytest.fixture
def run(write_run):
    return read_run(write_run())


def title(figure):
    return figure.get_suptitle()


def test_accuracy_has_a_panel_per_stage(run):
    figure = accuracy_figure(run.rounds)
    panels = {axes.get_legend().get_title().get_text(): axes for axes in figure.axes}
    assert list(panels) == ["Features", "Experts", "Gates", "FedAvg"]
    assert [len(axes.lines) for axes in panels.values()] == [1, 1, 2, 1]
    assert panels["Features"].lines[0].get_xdata().tolist() == list(range(1, 13))
    last = 100 * run.rounds[17].metrics["nmoe_global"]
    assert f"{last:.1f} %" in title(figure)
    assert "5 gate rounds" in title(figure)


def test_traffic_is_cumulative(run):
    axes = traffic_figure(run.rounds).axes[0]
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert lines["NMoE, global"].get_xdata().tolist() == [12 * 1_240_000 + i * 176_100 for i in range(1, 6)]
    assert lines["FedAvg, global"].get_xdata()[-1] == 24 * 1_220_000
    assert axes.get_xscale() == "log"


def test_no_accuracy_no_figure(run):
    silent = [msgspec.structs.replace(one, metrics={"loss": 1.0, "knn": None}) for one in run.rounds]
    assert accuracy_figure(silent) is None
    assert traffic_figure(silent) is None
    free = [msgspec.structs.replace(one, bytes=0) for one in run.rounds]
    assert traffic_figure(free) is None


def test_choice_cells_and_frames(run):
    figure = choice_figure(run.serving)
    axes = figure.axes[0]
    (mesh,) = (artist for artist in axes.collections if isinstance(artist, QuadMesh))
    np.testing.assert_allclose(mesh.get_array().reshape(10, 10), run.serving.choice_by_class)
    (frames,) = (artist for artist in axes.collections if isinstance(artist, PatchCollection))
    assert len(frames.get_paths()) == sum(map(len, run.serving.classes_seen)) == 20
    assert "20 % of the experts" in title(figure)
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(node) for node in range(10)]


def test_mesh_arrows(run):
    arrows = drawn_arrows(run.serving.asked)
    patches = mesh_figure(run.serving).axes[0].patches
    assert sum(isinstance(patch, FancyArrowPatch) for patch in patches) == len(arrows) > 10
    assert sum(isinstance(patch, Circle) for patch in patches) == 2 * 10
    for origin in range(10):
        shares = [share for start, _, share in arrows if start == origin]
        others = sorted((share for expert, share in enumerate(run.serving.asked[origin]) if expert != origin), reverse=True)
        assert shares == [share for share in others[:NUM_LARGEST] if share >= MIN_SHARE]
    assert all(origin != expert for origin, expert, _ in arrows)


def test_mesh_that_asks_nobody(run):
    alone = msgspec.structs.replace(run.serving, asked=tuple(tuple(map(float, row)) for row in np.eye(10)))
    figure = mesh_figure(alone)
    assert not any(isinstance(patch, FancyArrowPatch) for patch in figure.axes[0].patches)
    assert "100 % themselves" in title(figure)
    png_bytes(figure)


def test_latency_counts_every_answer(run):
    figure = latency_figure(run.serving)
    axes = figure.axes[0]
    assert sum(patch.get_height() for patch in axes.patches) == 500
    p50, p99 = np.percentile(run.serving.latency_ms, [50, 99])
    assert [line.get_xdata()[0] for line in axes.lines] == [p50, p99]
    assert f"{p50:.2f} ms" in title(figure)
    assert f"{p99:.1f} ms" in title(figure)


@pytest.mark.parametrize(
    ("latency_ms", "scale"), [((3.0, 3.0, 3.0), "linear"), ((0.0,), "linear"), ((1.0, 1.1, 1.2, 90.0), "log"), ((0.0, 1.0, 90.0), "linear")]
)
def test_latency_scales(run, latency_ms, scale):
    figure = latency_figure(msgspec.structs.replace(run.serving, latency_ms=latency_ms))
    assert figure.axes[0].get_xscale() == scale
    assert sum(patch.get_height() for patch in figure.axes[0].patches) == len(latency_ms)
    png_bytes(figure)


def test_no_answers_no_latency(run):
    assert "latency" not in figures_of(msgspec.structs.replace(run, serving=msgspec.structs.replace(run.serving, latency_ms=())))


@pytest.mark.parametrize(("nodes", "classes"), [(1, 1), (2, 3), (30, 40)])
def test_any_size_draws(write_run, nodes, classes):
    serving = read_run(write_run(nodes=nodes, classes=classes)).serving
    for figure in (choice_figure(serving), mesh_figure(serving)):
        assert png_bytes(figure).startswith(b"\x89PNG")


def test_names_are_not_mathematics(run):
    classes = ("$x^", "a_b$", "<c>", *run.serving.classes[3:])
    named = msgspec.structs.replace(run.serving, classes=classes, experts=("$\\bad$", *run.serving.experts[1:]))
    for figure in (choice_figure(named), mesh_figure(named)):
        png_bytes(figure)


def test_svg_is_inline_and_repeatable(run):
    figure = mesh_figure(run.serving)
    text = svg_text(figure, "mesh")
    assert text.startswith("<svg")
    assert text.endswith("</svg>")
    assert "http" not in text
    assert "currentColor" in text
    assert "var(--slate)" in text
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert all(name.startswith("mesh-") for name in ids)
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)
    assert {a or b for a, b in used} <= set(ids)
    assert svg_text(mesh_figure(run.serving), "mesh") == text
