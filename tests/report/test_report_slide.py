"""The SLIDE reproduction's page and figures: made from results.json alone, with every method and value in its place."""

import pytest

from nmoe.deliver.allocate import METHODS
from nmoe.report.figures import png_bytes
from nmoe.report.figures.slide import LOOKS, NOTES, needs_figure, overlap_figure, sweeps_figure
from nmoe.report.slide import METHOD_WORDS, SWEEP_WORDS, slide_table

VALUES = {"bandwidth_mhz": (100, 400), "deadline_s": (0.5, 1), "users": (20, 40), "energy_j": (2, 25), "batch": (10, 20)}
SERVED = {"slide": 12.0, "dai": 9.0, "dai-equal": 0.0}
LATENCY_S = {"slide": 0.9, "dai": 0.95, "dai-overlapped": 0.7}


def tree(served: float, latency: float) -> dict:
    """Return curves of which each value is its method's number times a factor, plus its place."""
    sweeps = {}
    for sweep, values in VALUES.items():
        sweeps[sweep] = {
            "served": {
                method: {f"{value:g}": served * number + place for place, value in enumerate(values)} for method, number in SERVED.items()
            },
            "latency_s": {method: {f"{value:g}": latency * number for value in values} for method, number in LATENCY_S.items()},
            "cut": {"dai-overlapped": {f"{value:g}": 0.25 * latency for value in values}},
            "ratio": {"dai-overlapped": {f"{value:g}": 0.4 for value in values}},
        }
    del sweeps["users"]["latency_s"]["dai"]["20"]  # nobody was served
    return sweeps


@pytest.fixture
def results() -> dict:
    number = {"mean": 12.0, "std": 1.0}
    return {
        "name": "slide",
        "scale": "cpu",
        "quick": True,
        "seeds": 3,
        "command": "nmoe reproduce slide",
        "hardware": {"cpu": "x86_64", "cores": 2},
        "seconds": 60.0,
        "settings": {
            "models": ["a", "b"],
            "precision": "fp16",
            "bandwidth_mhz": 400.0,
            "users": 40,
            "carrier_mhz": 400.0,
            "words": {"cell": "drawn cell"},
            "tasks": {
                "deadline_s": 1.0,
                "energy_j": [10, 40],
                "batch": [8, 32],
                "device_flops": [1.2e11, 6e11],
                "power_w": [10, 30],
                "layer_overhead_s": 1e-3,
                "choices": 3,
            },
        },
        "curves": {"cell": tree(1.0, 1.0)},
        "spreads": {"cell": tree(0.1, 0.1)},
        "check": [
            {"bandwidth_mhz": 400.0, "deadline_s": 1.0, "slide": number, "dai": {"mean": 10.0, "std": 1.0}, "specification": [13.6, 9.9]}
        ],
        "overlap": [{"model": "a", "layers": 4, "ratio": ratio, "cut": 0.3 * ratio} for ratio in (0.5, 1.0)],
        "needs": {"cell": {"slide": [0.01, 0.02, None], "dai": [0.02, None, None]}},
    }


def test_every_method_has_a_name_and_a_look():
    assert set(METHODS) <= set(METHOD_WORDS)
    assert set(METHODS) - {"slide-weighted"} <= set(LOOKS)
    assert len({(colour, line) for colour, line, _ in LOOKS.values()}) == len(LOOKS), "no two lines look alike"


def test_the_page_holds_the_numbers(results):
    lines = list(slide_table(results))
    for words in SWEEP_WORDS.values():
        assert f"### Users served against {words}" in lines
        assert f"### Mean latency, s against {words}" in lines
    assert "| drawn cell | 13.0 ± 2.2 | 10.0 ± 1.9 | +30 % | 25.0 % |" in lines
    assert "| SLIDE | 12.0 ± 1.2 | 13.0 ± 2.2 |" in lines
    assert "| download, then infer | - | 0.95 ± 0.10 |" in lines, "a mean over nobody is no number"
    assert "| users of download-then-infer, overlapped | 0.70 ± 0.07 | 0.70 ± 0.07 |" in lines
    assert "| 400 MHz | 1 s | 12.0 ± 1.0 | 10.0 ± 1.0 | +20 % | 13.6, 9.9 |" in lines
    assert "| a | 15.0 % | 30.0 % |" in lines
    assert any("25.0 ± 2.5 % (0.40)" in line for line in lines)
    assert any("scale cpu (quick)" in line for line in lines)


def test_figures_have_a_line_per_method(results):
    served = sweeps_figure(results, "cell", "served")
    panels = [axes for axes in served.axes if axes.lines]
    assert [axes.get_xlabel() for axes in panels] == list(SWEEP_WORDS.values())
    for axes in panels:
        assert {line.get_label() for line in axes.lines} == {METHOD_WORDS[method] for method in SERVED}
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] >= 13, "nothing is cut off"
        slide, *others = sorted(axes.lines, key=lambda line: line.get_label() != "SLIDE")
        assert all(slide.get_zorder() > line.get_zorder() for line in others), "equal curves do not hide it"
        assert all(slide.get_linewidth() > line.get_linewidth() for line in others)
    latency = sweeps_figure(results, "cell", "latency_s")
    assert (served.get_supxlabel(), latency.get_supxlabel()) == (NOTES["served"], NOTES["latency_s"])
    assert {line.get_label() for line in latency.axes[0].lines} == {METHOD_WORDS[method] for method in LATENCY_S}
    law = needs_figure(results).axes[0].lines[0]
    assert law.get_xdata() == pytest.approx([1, 2])
    assert law.get_ydata() == pytest.approx([0, 50])
    saved = overlap_figure(results).axes[0].lines
    assert saved[0].get_ydata() == pytest.approx([15, 30])
    assert max(saved[1].get_ydata()) == pytest.approx(50, abs=0.01)
    for figure in (served, latency, needs_figure(results), overlap_figure(results)):
        assert png_bytes(figure).startswith(b"\x89PNG")


def test_a_setting_in_which_nobody_can_be_served_draws(results):
    results["needs"]["cell"]["dai"] = [None, None, None]
    png_bytes(needs_figure(results))
    for sweep in results["curves"]["cell"].values():
        sweep["latency_s"] = {}
    png_bytes(sweeps_figure(results, "cell", "latency_s"))
    assert list(slide_table(results)).count("Nobody is served.") == len(SWEEP_WORDS)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_needs_are_labelled_and_shown_whole(results, count):
    settings = ["cell", "traces", "cqi", "melbourne"][:count]
    results["settings"]["words"] = dict.fromkeys(settings, "words")
    results["needs"] = {setting: {"slide": [1e-4, 0.02, 1e4 * 10**place]} for place, setting in enumerate(settings)}
    figure = needs_figure(results)
    png_bytes(figure)  # ticks are there once it is drawn
    panels = figure.axes[:count]
    for place, panel in enumerate(panels):
        low, high = panel.get_xlim()
        assert low < 0.01
        assert 1e6 * 10**place < high, "the curve is not cut off"
        assert any(label.get_text() and label.get_visible() for label in panel.get_xticklabels())
    assert [bool(panel.get_xlabel()) for panel in panels] == [place + 2 >= count for place in range(count)], "the last of each column"


def test_seven_models_and_the_bound_look_unlike_and_none_is_drawn_above_it(results):
    results["overlap"] = [{"model": name, "ratio": ratio, "cut": 0.1 * ratio} for name in "abcdefg" for ratio in (2.0, 5.0)]
    *models, bound = overlap_figure(results).axes[0].lines
    assert bound.get_label() == "bound"
    assert len({line.get_color() for line in (*models, bound)}) == 8
    assert len({line.get_marker() for line in models}) == 7
    assert {line.get_linestyle() for line in models} == {"None"}, "a straight line between two points is above the bound"


@pytest.mark.parametrize(
    ("seconds", "words"), [(2.04, "2.0 seconds"), (59.9, "59.9 seconds"), (60.0, "1.0 minutes"), (149.8, "2.5 minutes")]
)
def test_below_a_minute_the_page_counts_seconds(results, seconds, words):
    assert f"`: {words} on x86_64" in list(slide_table(results | {"seconds": seconds}))[-1]
