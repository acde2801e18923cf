"""The ASOSA reproduction, small: every number is there and in its range, learned methods have their place, bad input writes nothing."""

import json

import pytest

from nmoe.market.incentive import STRATEGIES, joint_equilibrium
from nmoe.recipes.bench_incentive import bench_incentive
from nmoe.recipes.incentive import DAMPINGS, GAMES, QUICK, varied
from nmoe.recipes.incentive_reproduction import reproduce_incentive
from nmoe.report.incentive import METRIC_WORDS


class Silent:
    def stage(self, name: str, done: int, total: int) -> None:
        assert 1 <= done <= total


def reproduce(out, **changes):
    given = {"scale": "cpu", "seeds": 1, "learned": 0, "brief": True, "out": out, "force": False}
    return reproduce_incentive(**given | changes, command="nmoe reproduce", progress=Silent())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduce") / "run"
    found = reproduce(out, learned=1, contenders={"learned": lambda game, seed: joint_equilibrium(game)})
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(found, allow_nan=False))
    for name in ("convergence", "deviation", "turns", "publisher-utility", "owner-utility", "worker-utility"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 10_000
    table = (out / "results.md").read_text()
    assert "numbers are not known to this project" in table
    assert "ASOSA, learned workers" in table
    return found


def test_results_have_what_is_promised(results):
    assert {"name", "scale", "quick", "seeds", "command", "hardware", "seconds", "settings", "rows", "curves", "spreads"} <= set(results)
    names = {strategy.name for strategy in STRATEGIES}
    for sweep, values in QUICK.items():
        for metric in METRIC_WORDS:
            curves = results["curves"][sweep][metric]
            assert set(curves) == names
            assert all(set(curve) == {f"{value:g}" for value in values} for curve in curves.values())
    assert set(results["base"]) == names | {"learned"}
    assert set(results["stocked"]) == names
    for row in results["rows"]:
        assert set(row) == {"method", "setting", "metric", "mean", "std", "n"}
        assert row["n"] == 1


def test_the_loop_settles_and_nobody_deviates(results):
    found = results["convergence"]
    assert [row["damping"] for row in found["rows"]] == list(DAMPINGS)
    assert found["rows"][0]["settled"] == GAMES["quick"]
    assert found["rows"][0]["distance"] < 1e-8
    assert found["deviation"]["best"] <= 1e-9


def test_more_to_win_is_more_for_everybody(results):
    for metric in ("publisher", "owner", "worker"):
        low, high = (results["curves"]["factor"][metric]["asosa"][value] for value in ("50", "100"))
        assert low < high
    assert results["curves"]["cost"]["publisher"]["asosa"]["1"] > results["curves"]["cost"]["publisher"]["asosa"]["2"]


def test_what_is_wrong_writes_nothing(tmp_path):
    for changes, message in (
        ({"scale": "huge"}, "scale must be one of cpu, paper"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"learned": 3}, "learned must be between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            reproduce(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_what_is_varied_is_what_is_said():
    assert varied("cost", 2).unit_cost == (1.0, 3.0)
    assert varied("owners", 3).owners == 3
    assert varied("workers", 5).workers_per_owner == 5
    assert varied("factor", 50).factor == 50


def test_the_benchmark_has_its_rows():
    said = []
    bench_incentive(owners=50, games=2, turns=1, as_json=True, say=said.append)
    rows = json.loads(said[0])["rows"]
    assert {row["system"] for row in rows} == {"closed form", "joint equilibrium", "ASOSA"}
    assert all(set(row) == {"system", "case", "metric", "value", "unit"} for row in rows)
    with pytest.raises(ValueError, match="owners must be at least 2"):
        bench_incentive(owners=1, games=1, turns=1, as_json=True, say=said.append)
