"""The SLIDE reproduction, small: every number is there, the optimal plan is never beaten, and bad input writes nothing."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from nmoe.core.errors import BadFile
from nmoe.deliver.allocate import least_shares, plan
from nmoe.deliver.cells import TaskRanges
from nmoe.deliver.profiles import image_models
from nmoe.deliver.scenario import ModelProfile
from nmoe.recipes.slide import (
    COMPARED,
    OVERLAPPED,
    POINTS,
    QUICK,
    SPECIFICATION,
    Operation,
    draw,
    links_of,
    measure,
    overlaps,
    varied,
)
from nmoe.recipes.slide_reproduction import reproduce_slide

MODELS = image_models()
CELL = links_of("cell", None, 40)
SMALL_CITY = {"eua_servers_melbcbd.csv": "site_id,lat,lon\n1,-37.81,144.97\n", "eua_users_melbcbd.csv": "lat,lon\n-37.811,144.97\n"}


class Silent:
    def stage(self, name: str, done: int, total: int) -> None:
        assert 1 <= done <= total


def reproduce(out: Path, **changes) -> dict:
    given = {
        "scale": "cpu",
        "seeds": 2,
        "settings": ["cell"],
        "data_dir": None,
        "profiles": None,
        "precision": "fp16",
        "brief": True,
        "out": out,
        "force": False,
    }
    return reproduce_slide(**given | changes, command="nmoe reproduce", progress=Silent())


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("reproduce") / "run"
    found = reproduce(out)
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(found, allow_nan=False))
    for name in ("cell-served", "cell-latency", "needs", "overlap"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 10_000
    table = (out / "results.md").read_text()
    mean, std = (found[tree]["cell"]["deadline_s"]["served"]["dai"]["1"] for tree in ("curves", "spreads"))
    assert f"{mean:.1f} ± {std:.1f}" in table
    assert "The paper's values and settings are not known" in table
    return found


def test_results_have_what_is_promised(results):
    assert {"name", "scale", "quick", "seeds", "command", "hardware", "seconds", "settings", "rows", "curves", "spreads"} <= set(results)
    for sweep, values in QUICK.items():
        served = results["curves"]["cell"][sweep]["served"]
        assert set(served) == set(COMPARED)
        assert all(set(curve) == {f"{value:g}" for value in values} for curve in served.values())
    for row in results["rows"]:
        assert set(row) == {"method", "setting", "metric", "mean", "std", "n"}
        assert 1 <= row["n"] <= 2
    assert [(row["bandwidth_mhz"], row["deadline_s"]) for row in results["check"]] == list(SPECIFICATION)


def test_no_method_serves_more_than_the_optimal_one(results):
    for sweep in results["curves"]["cell"].values():
        for method, curve in sweep["served"].items():
            for value, served in curve.items():
                assert served <= sweep["served"]["slide"][value], method


def test_needs_are_laws_and_overlapping_needs_less(results):
    laws = results["needs"]["cell"]
    for law in laws.values():
        known = [share for share in law if share is not None]
        assert len(law) == POINTS
        assert known == sorted(known)
        assert law[len(known) :] == [None] * (POINTS - len(known))
    for slide, dai in zip(laws["slide"], laws["dai"], strict=True):
        assert dai is None or (slide is not None and slide <= dai * (1 + 1e-9))


def test_more_of_anything_good_serves_no_fewer():
    """Laws of the specification, section 1.5, over the same users."""
    for seed in range(3):
        for sweep, values in (("bandwidth_mhz", (50, 200, 800)), ("deadline_s", (0.5, 1, 3)), ("energy_j", (0.5, 3, 30))):
            counts = [plan(draw("cell", CELL, MODELS, varied(sweep, value, Operation()), seed=seed)).served for value in values]
            assert counts == sorted(counts)
            assert counts[0] < counts[-1], "the sweep shows something"


def test_overlapping_never_needs_more_than_downloading_first():
    case = draw("cell", CELL, MODELS, Operation(), seed=5)
    slide, dai = least_shares(case), least_shares(case, "dai")
    able = np.isfinite(dai)
    assert able.sum() > 40
    assert (slide[able] < dai[able]).all()


def test_equal_layers_save_what_the_identity_says():
    layers = 20
    even = {"even": ModelProfile(name="even", layer_bytes=(1e6,) * layers, layer_flops=(1e9,) * layers)}
    for row in overlaps(even, TaskRanges()):
        ratio = row["ratio"]
        assert row["cut"] == pytest.approx((1 - 1 / layers) * min(1, ratio) / (1 + ratio), rel=1e-9)  # section 1.3


def test_measure_compares_the_same_users():
    case = draw("cell", CELL, MODELS, Operation(), seed=1)
    numbers = measure(case, "dai", seed=1)
    assert numbers[OVERLAPPED, "latency_s"] < numbers["dai", "latency_s"]
    assert 0 < numbers[OVERLAPPED, "cut"] < 0.5
    assert (OVERLAPPED, "served") not in numbers
    assert set(measure(case, "slide", seed=1)) == {("slide", "served"), ("slide", "latency_s")}


def test_measured_settings_are_drawn_from_their_files(tmp_path: Path):
    (tmp_path / "throughput.csv.gz").write_bytes(b"")
    with pytest.raises(BadFile, match="throughput"):
        links_of("traces", tmp_path, 4)
    (tmp_path / "throughput.csv.gz").unlink()
    rows = "".join(f"lumos,{name},{second},{rate}\n" for name, rate in (("5g_trace_1", 400), ("4g_trace_1", 1)) for second in range(5))
    (tmp_path / "throughput.csv.gz").write_bytes(gzip.compress(f"set,trace,t_s,mbps\n{rows}".encode()))
    case = draw("traces", links_of("traces", tmp_path, 4), MODELS, Operation(users=3), seed=0)
    assert [user.spectral_efficiency for user in case.users] == [1.0] * 3, "400 Mbit/s on 400 MHz, and none of the 4G trace"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scale": "huge"}, "scale must be one of cpu, paper, got 'huge'"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"settings": ["moon"]}, "setting must be one of cell, traces, cqi, melbourne, got 'moon'"),
        ({"settings": []}, "at least one setting"),
        ({"settings": ["traces"]}, "setting traces needs --data-dir"),
        ({"precision": "fp8"}, "precision must be one of fp32, fp16, int8, got 'fp8'"),
    ],
)
def test_bad_input_writes_nothing(tmp_path: Path, changes: dict, said: str):
    with pytest.raises(ValueError, match=said):
        reproduce(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_bad_files_write_nothing(tmp_path: Path):
    with pytest.raises(BadFile, match="cannot read"):
        reproduce(tmp_path / "run", profiles=tmp_path / "none.csv")
    (tmp_path / "two.csv").write_text("model,params,macs\na,1,1\nb,1,1\n")
    with pytest.raises(ValueError, match="users accept 3 models, the table has 2"):
        reproduce(tmp_path / "run", profiles=tmp_path / "two.csv")
    for name, text in SMALL_CITY.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="a city of at least 40 users wanted, got 1"):
        reproduce(tmp_path / "run", settings=["melbourne"], data_dir=tmp_path)
    assert not (tmp_path / "run").exists()
