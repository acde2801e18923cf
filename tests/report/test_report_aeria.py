"""The AERIA reproduction's page and figures: made from results.json alone, with every mechanism and value in its place."""

import pytest

from nmoe.market.auction import FAMILIES, MECHANISMS
from nmoe.market.auction.flaws import Flaw
from nmoe.report.aeria import FAMILY_WORDS, FLAW_WORDS, MECHANISM_WORDS, aeria_table
from nmoe.report.figures import png_bytes
from nmoe.report.figures.aeria import LOOKS, VARIED, ablations_figure, families_figure, manipulation_figure, sweeps_figure

VALUES = {
    "family": tuple(FAMILY_WORDS),
    "users": ("20", "100"),
    "capacity_tflops": ("2", "20"),
    "cost_share": ("0", "0.3"),
    "base": ("1.43", "4"),
    "workload": ("mixed", "vgg16"),
}
ABLATED = ("full", "edge only", "device only")


def tree(factor: float) -> dict:
    """Return curves of which each value is its mechanism's place times a factor."""
    sweeps: dict = {}
    for sweep, values in VALUES.items():
        names = ("aeria-ic", "aeria-ef") if sweep == "base" else MECHANISM_WORDS
        sweeps[sweep] = {
            metric: {name: dict.fromkeys(values, factor * (place + 1) / 10) for place, name in enumerate(names)}
            for metric in ("over_f2", "over_f", "served", "profit", "share")
        }
    sweeps["family"]["share"] = {"market": dict.fromkeys(FAMILY_WORDS, factor / 4)}
    numbers = {name: {"2": factor * 10.0, "10": factor * 20.0} for name in ABLATED}
    sweeps["ablation"] = dict.fromkeys(("served", "alone", "worth", "profit"), numbers)
    sweeps["ablation"]["demand"] = {name: numbers[name] for name in ABLATED[:2]}
    return sweeps


@pytest.fixture
def results() -> dict:
    curves, spreads = (
        {"unit": {sweep: tree(factor)[sweep] for sweep in ("family", "base")}, "needs": tree(factor)} for factor in (1.0, 0.1)
    )
    curves["unit"]["family"]["over_f2"]["rsop"]["one-giant"] = 30.0
    del curves["needs"]["family"]["over_f2"]["vickrey"]["pareto"]
    return {
        "name": "aeria",
        "scale": "cpu",
        "quick": True,
        "seeds": 3,
        "command": "nmoe reproduce aeria",
        "hardware": {"cpu": "x86_64", "cores": 2},
        "seconds": 90.0,
        "settings": {
            "operation": {"users": 100, "capacity_flops": 5e12, "cost_share": 0.1, "base": 2.0},
            "points": 400,
            "needs": {"latency_s": (0.05, 0.5), "tasks": (1, 3), "device_flops": (5e9, 50e9), "uplink_bps": (5e6, 50e6)},
            "words": {"unit": "one unit", "needs": "drawn needs"},
            "ablations": list(ABLATED),
        },
        "curves": curves,
        "spreads": spreads,
        "guarantees": [
            {
                "family": family,
                "mixture": 0.4,
                "mixture_bound": 0.295,
                "ef": 0.73,
                "ef_bound": 0.721,
                "ic": 0.5,
                "ic_over_bound": None if family == "two-giants" else 1.1,
                "several": None if family == "two-giants" else 0.05,
                "several_bound": None if family == "two-giants" else 0.06,
            }
            for family in FAMILIES
        ],
        "stage_one": {
            "needs": [
                {"workload": "vgg16", "users": 200, "alone": 20, "unservable": 10, "all_on_edge": 150, "split": 20, "median_gflops": 99.6},
                {"workload": "alexnet", "users": 10, "alone": 10, "unservable": 0, "all_on_edge": 0, "split": 0, "median_gflops": None},
            ]
        },
        "flaws": [
            {
                "method": name,
                "truthful": MECHANISMS[name].truthful,
                "envy_free": MECHANISMS[name].envy_free,
                "markets": 1000,
                "deviations": 10_000,
                "passed": True,
                "found": {flaw.name.lower(): 25 if flaw is Flaw.ENVY else 0 for flaw in Flaw},
            }
            for name in MECHANISMS
        ],
        "manipulation": [
            {"base": base, "users": 12, "markets": 4, "points": 100, "mean": 0.1 / base, "std": 0.01, "bound": 0.2 / base}
            for base in (2.0, 4.0)
        ],
    }


def test_everything_has_a_name_and_a_look():
    assert set(MECHANISM_WORDS) == set(MECHANISMS)
    assert set(LOOKS) == set(MECHANISMS) - {"omniscient"}
    assert len({(colour, line) for colour, line, _ in LOOKS.values()}) == len(LOOKS), "no two lines look alike"
    assert set(FAMILIES) == set(FAMILY_WORDS) - {"affine"}
    assert set(FLAW_WORDS) == {flaw.name.lower() for flaw in Flaw}


def test_the_page_holds_the_numbers(results):
    lines = list(aeria_table(results))
    assert any("scale cpu (quick)" in line for line in lines)
    assert "| uniform | 0.400 | 0.295 | 0.730 | 0.721 | 0.500 | 1.10 | 5.0 % | 6.0 % |" in lines
    assert any(line.startswith("| *largest winner's share of what F2 sells* | 0.25 ± 0.03 |") for line in lines)
    assert any(line.startswith("| AERIA-IC | 0.10 ± 0.01 | 0.10 ± 0.01 |") for line in lines)
    assert any(line.startswith("| Vickrey |") and "| - |" in line for line in lines), "what nobody measured is no number"
    assert "| two giants | 0.400 | 0.295 | 0.730 | 0.721 | 0.500 | no bound | - | - |" in lines
    assert "| 2 TFLOP/s | full | 10.0 ± 1.0 | 10.0 | 1.00 | 1.00 | 0 |" in lines
    assert "| 2 TFLOP/s | device only | 10.0 ± 1.0 | 10.0 | 1.00 | 1.00 | - |" in lines
    assert "| vgg16 | 200 | 10.0 % | 5.0 % | 75.0 % | 10.0 % | 100 |" in lines
    assert "| AERIA-EF | free of envy | 1,000 | 10,000 | 0 (0.0 %) | 25 (2.5 %) |" in lines
    assert "| 2 | 5.0 ± 1.0 % | 10.0 % |" in lines
    assert lines[-1] == "`nmoe reproduce aeria`: 1.5 minutes on x86_64, 2 cores."


def test_figures_have_a_point_per_number(results):
    families = families_figure(results)
    for panel in families.axes:
        assert {line.get_label() for line in panel.lines if not line.get_label().startswith("_")} == {
            MECHANISM_WORDS[name] for name in LOOKS
        }
    assert any("30" in text.get_text() for text in families.axes[0].texts), "what does not fit is told"
    sweeps = sweeps_figure(results)
    assert len(sweeps.axes) == len(VARIED)
    assert manipulation_figure(results).axes[0].lines[0].get_ydata() == pytest.approx([5.0, 2.5])
    served = ablations_figure(results).axes[0].patches
    assert [bar.get_width() for bar in served[:3]] == pytest.approx([10.0] * 3)
    for figure in (families, sweeps, manipulation_figure(results), ablations_figure(results)):
        assert png_bytes(figure).startswith(b"\x89PNG")
