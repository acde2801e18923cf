"""The AERIA reproduction, small: every number is there, guarantees hold, and bad input writes nothing."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

from nmoe.core.errors import BadFile
from nmoe.market.auction import FAMILIES, MECHANISMS, mechanism_named
from nmoe.market.auction.needs import finish_s
from nmoe.market.auction.workloads import builtin_workloads
from nmoe.recipes import aeria_reproduction
from nmoe.recipes.aeria import (
    ABLATIONS,
    FIXED,
    POINTS,
    QUICK,
    UNIT,
    MarketOperation,
    Place,
    ablate,
    benchmarks_of,
    best_price,
    market_at,
    market_of,
    measure,
    rule_of,
    unit_market,
    varied,
)
from nmoe.recipes.aeria_reproduction import reproduce_aeria
from nmoe.recipes.aeria_users import AFFINE, draw_session, population_of

FOUR = builtin_workloads()
DRAWN = population_of("needs", None)
MEASURES = {
    "phones_ai_benchmark.csv": "model,cpu_f_ai_score\nold,1000\nnew,2000\nnewest,4000\nunknown,\n",
    "eua_servers_melbcbd.csv": "site_id,lat,lon\n1,-37.81,144.97\n",
    "eua_users_melbcbd.csv": "lat,lon\n" + "".join(f"{-37.81 + row * 1e-5:.5f},144.97\n" for row in range(800)),
}


class Silent:
    def stage(self, name: str, done: int, total: int) -> None:
        assert 1 <= done <= total


def reproduce(out: Path, **changes) -> dict:
    given = {"scale": "cpu", "seeds": None, "data_dir": None, "brief": True, "out": out, "force": False}
    return reproduce_aeria(**given | changes, command="nmoe reproduce aeria", progress=Silent())


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    for name, text in MEASURES.items():
        (tmp_path / name).write_text(text)
    rows = "".join(f"set,trace {name},{second},{name}\n" for name in (8, 16) for second in range(6))
    (tmp_path / "throughput.csv.gz").write_bytes(gzip.compress(f"set,trace,t_s,mbps\n{rows}".encode()))
    return tmp_path


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    """A run even shorter than --quick."""
    effort = aeria_reproduction.Effort(1, 8, 30, (1, 3, 2), (2.0, 4.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aeria_reproduction, "BRIEF", effort)
        patch.setattr(aeria_reproduction, "STAGE_ONE_USERS", 100)
        out = tmp_path_factory.mktemp("reproduce") / "run"
        found = reproduce(out)
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(found, allow_nan=False))
    for name in ("families", "sweeps", "ablations", "manipulation"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 10_000
    table = (out / "results.md").read_text()
    assert "numbers are not known to this project" in table
    mean, std = (found[tree]["unit"]["family"]["over_f2"]["aeria-ic"]["uniform"] for tree in ("curves", "spreads"))
    assert f"{mean:.2f} ± {std:.2f}" in table
    return found


def test_results_have_what_is_promised(results):
    assert {"name", "scale", "quick", "seeds", "command", "hardware", "seconds", "settings", "rows", "curves", "spreads"} <= set(results)
    families = results["curves"]["needs"]["family"]["over_f2"]
    assert set(families) == set(MECHANISMS)
    assert set(families["omniscient"]) == {AFFINE, *FAMILIES}
    for sweep, values in QUICK.items():
        curves = results["curves"]["needs"][sweep]["over_f2"]
        assert set(curves) == ({"aeria-ic", "aeria-ef"} if sweep == "base" else set(MECHANISMS))
        assert set(curves["aeria-ic"]) == {f"{value:.4g}" for value in values}
    for row in results["rows"]:
        assert set(row) == {"method", "setting", "metric", "mean", "std", "n"}
    assert {row["method"] for row in results["flaws"]} == set(MECHANISMS)
    assert all(row["passed"] for row in results["flaws"]), "no mechanism breaks what it claims"


def test_guarantees_hold_when_integrated_finely():
    """Section 2.5 of the specification, by 400 midpoints."""
    for family in FAMILIES:
        market = unit_market(varied("family", family, MarketOperation(users=40)), seed=1)
        marks = benchmarks_of(*market)
        mixture = measure(mechanism_named("aeria-mixture"), *market)
        assert mixture["over_f2"] >= 1 / (2 * (1 + math.log(2))) - 2 / POINTS
        envy_free = measure(mechanism_named("aeria-ef"), *market)
        assert envy_free["over_f"] >= 0.5 / math.log(2) - 2 / POINTS
        truthful = measure(mechanism_named("aeria-ic"), *market)
        if marks["share"] <= 1 / 3:
            assert truthful["over_f2"] >= (1 - marks["share"] - 0.5) / math.log(2) - 2 / POINTS
        assert measure(mechanism_named("omniscient"), *market)["over_f"] == pytest.approx(1)


def test_users_are_served_as_they_need():
    session = draw_session(DRAWN, FOUR, 300, family=AFFINE, wanted="", seed=3)
    ended_s = finish_s(session.needs, FOUR, session.edge)
    able = np.isfinite(session.edge.demand)
    assert (ended_s[able] <= session.needs.latency_s[able] * (1 + 1e-9)).all()
    assert (session.value >= 0).all()
    kinds = (session.edge.demand == 0).mean(), np.isinf(session.edge.demand).mean(), (session.edge.demand[able] > 0).mean()
    assert min(kinds) > 0.02, "some manage alone, some cannot be served, some enter"


def test_one_seed_has_the_same_users_everywhere():
    place = Place("needs", DRAWN)
    base = market_at(place, FOUR, MarketOperation(), seed=5)
    for sweep, value in (("capacity_tflops", 1.0), ("cost_share", 0.3), ("base", 4.0)):
        bids, supply = market_at(place, FOUR, varied(sweep, value, MarketOperation()), seed=5)
        assert (bids.amount == base[0].amount).all()
        assert (bids.demand == base[0].demand).all()
        assert (supply != base[1]) == (sweep != "base")
    other = market_at(place, FOUR, varied("family", "pareto", MarketOperation()), seed=5)
    assert (other[0].demand == base[0].demand).all()
    assert {*draw_session(DRAWN, FOUR, 20, family=AFFINE, wanted="vgg16", seed=0).needs.workloads} == {"vgg16"}


def test_the_fixed_price_is_yesterdays_best():
    today, yesterday = (unit_market(MarketOperation(family="uniform"), seed=seed) for seed in (1, 2))
    price = best_price(*yesterday)
    value = np.sort(yesterday[0].amount)[::-1]
    assert price == pytest.approx(value[(value * np.arange(1, len(value) + 1)).argmax()])
    assert rule_of(FIXED, MarketOperation(), yesterday).price == price
    assert measure(rule_of(FIXED, MarketOperation(), yesterday), *today)["over_f"] <= 1 + 1e-12


def test_less_freedom_demands_more_and_serves_no_more_alone():
    session = draw_session(DRAWN, FOUR, 200, family=AFFINE, wanted="", seed=2)
    found = dict(ablate(session, FOUR, MarketOperation(users=200), points=4))
    assert list(found) == list(ABLATIONS)
    assert found["full"]["alone"] == found["no partition"]["alone"] == found["device only"]["alone"] > found["edge only"]["alone"] == 0
    assert found["device only"]["served"] == found["device only"]["alone"]
    assert found["device only"]["profit"] == 0
    assert found["no early exit"]["alone"] <= found["full"]["alone"]
    unlimited = dict(ablate(session, FOUR, MarketOperation(users=200, capacity_flops=1e18, cost_share=0.0), points=4))
    assert unlimited["full"]["served"] >= unlimited["device only"]["served"]


def test_measured_settings_are_drawn_from_their_files(data_dir: Path):
    for setting in ("traces", "melbourne"):
        devices = population_of(setting, data_dir)(50, 0)
        assert set(devices.flops) == {10e9, 20e9, 40e9}, "phones compare as their scores do, the median has 20 GFLOP/s"
        assert (devices.uplink_bps > 0).all()
    assert set(population_of("traces", data_dir)(50, 0).uplink_bps) == {8e6, 16e6}
    with pytest.raises(ValueError, match="setting traces needs --data-dir"):
        population_of("traces", None)
    (data_dir / "phones_ai_benchmark.csv").write_text("model\nx\n")
    with pytest.raises(BadFile, match="should have a column cpu_f_ai_score"):
        population_of("traces", data_dir)
    (data_dir / "phones_ai_benchmark.csv").write_text("model,cpu_f_ai_score\nx,\n")
    with pytest.raises(BadFile, match="should have a score above 0"):
        population_of("melbourne", data_dir)


def test_markets_in_which_nobody_enters_are_measured():
    session = draw_session(DRAWN, FOUR, 3, family=AFFINE, wanted="mobilenet_v2", seed=0)
    idle = session._replace(edge=session.edge._replace(demand=np.array([0.0, np.inf, 0.0])))
    found = measure(mechanism_named("aeria-ic"), *market_of(idle, MarketOperation()), points=2)
    assert found["profit"] == found["served"] == 0
    assert "over_f2" not in found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scale": "huge"}, "scale must be one of cpu, paper, got 'huge'"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
    ],
)
def test_bad_input_writes_nothing(tmp_path: Path, changes: dict, said: str):
    with pytest.raises(ValueError, match=said):
        reproduce(tmp_path / "run", **changes)
    with pytest.raises(BadFile, match="cannot read"):
        reproduce(tmp_path / "run", data_dir=tmp_path / "none")
    assert not (tmp_path / "run").exists()


def test_the_unit_setting_is_what_guarantees_are_proved_for():
    bids, supply = market_at(Place(UNIT, None), FOUR, varied("family", "all-equal", MarketOperation()), seed=0)
    assert set(bids.demand) == {1.0}
    assert (supply.capacity, supply.unit_cost) == (math.inf, 0.0)
