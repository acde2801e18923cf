"""The simulation and the churn benchmark as recipes: arguments, traces, files and tables."""

import gzip
import itertools
import json

import numpy as np
import pytest
import torch

from nmoe.moe import Mix
from nmoe.recipes import bench_churn as churn
from nmoe.recipes import simulate as sim
from nmoe.report.figures.churn import churn_figure


def run(*, as_json=False, out=None, **changed):
    lines = []
    options = sim.SimulateOptions(**({"nodes": 60, "requests": 400, "neighbours": 4} | changed))
    return sim.simulate(options, as_json=as_json, out=out, say=lines.append), lines


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("t_s,tokens\n" + "".join(f"{number**1.5},3\n" for number in range(50)))
    return path


def test_a_table_names_what_matters_and_results_go_into_a_folder(tmp_path, trace):
    results, lines = run(trace=trace, out=tmp_path / "out", churn=0.05, tail="pareto:1.8", loss=0.01)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (tmp_path / "out" / "simulation.png").read_bytes().startswith(b"\x89PNG")
    text = "\n".join(lines)
    for word in ("answered in time", "degraded", "refused", "latency p50, p95, p99", "messages", "bytes", "utilisation", "simulator"):
        assert word in text
    assert results["offered"] == 400 == results["answered"] + sum(results["refused"].values()) + results["unanswered"] + results["nowhere"]


def test_json_is_one_line_and_the_same_for_the_same_seed():
    def figures(seed):
        _, (line,) = run(as_json=True, seed=seed)
        return {name: value for name, value in json.loads(line).items() if name != "simulator"}

    assert figures(3) == figures(3)
    assert figures(3) != figures(4)


def test_a_quiet_mesh_answers_everything_by_the_gates_choice():
    results, _ = run(tail="none")
    assert results["availability"] == 1.0
    assert results["degraded_share"] == 0.0
    assert 20 < results["p50_ms"] < 60  # a round trip of 20 ms and two computations


def test_arrivals_follow_the_trace_at_the_rate(trace):
    said = sim.read_arrivals(trace)
    few = np.array(sim.arrivals(30, 10.0, trace, 0).times_s)
    assert few == pytest.approx(said[:30] * (3.0 / said[29]))
    many = np.array(sim.arrivals(5000, 10.0, trace, 0).times_s)
    assert many[-1] == pytest.approx(500)
    assert (np.diff(many) >= 0).all()
    half = np.searchsorted(many, 250) / 5000
    assert half == pytest.approx(np.searchsorted(said, said[-1] / 2) / 50, abs=0.03)
    poisson = np.array(sim.arrivals(5000, 10.0, None, 0).times_s)
    assert poisson[-1] == pytest.approx(500, rel=0.05)


def test_dates_and_single_columns_are_arrival_times_too(tmp_path):
    dates = tmp_path / "dates.csv"
    dates.write_text("TIMESTAMP,x\n2023-11-16 18:15:46.5,1\n2023-11-16 18:15:48.0,1\n")
    assert sim.read_arrivals(dates).tolist() == [0.0, 1.5]
    single = tmp_path / "single.csv"
    single.write_text("whatever\n3\n1\n")
    assert sim.read_arrivals(single).tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n3,4\n", "should have a column of arrival times .*its columns are: a, b"),
        ("t_s\nsoon\nlater\n", "neither numbers"),
        ("t_s\n1\n", "at least two"),
        ("", "none"),
        ("a,t_s\n1\n2\n", "cannot be read"),
        ("t_s\nnan\n1\n", "finite"),
    ],
)
def test_a_trace_that_does_not_fit_is_refused_with_what_was_wanted(tmp_path, text, said):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        run(trace=path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"nodes": 0},
        {"requests": 0},
        {"rate": 0.0},
        {"neighbours": 60},
        {"replicas": 7},
        {"k": 0},
        {"deadline_ms": 0.0},
        {"churn": -1.0},
        {"loss": 1.0},
        {"tail": "normal:1"},
        {"tail": "pareto:x"},
        {"tail": "pareto:0.5"},
        {"rtt": "seattle"},
        {"rtt": "nowhere.npz"},
    ],
)
def test_arguments_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match=r"\w"):
        run(**wrong)


def test_measured_round_trips_are_used(tmp_path):
    np.savez(tmp_path / "far.npz", far_ms=np.full((5, 5), 200.0))
    results, _ = run(rtt=str(tmp_path / "far.npz"))
    assert results["p50_ms"] > 100
    np.savez(tmp_path / "none.npz", row=np.zeros(5))
    with pytest.raises(ValueError, match="row"):
        run(rtt=str(tmp_path / "none.npz"))


@pytest.fixture(scope="module")
def parts():
    """Four experts, each sure of its own class, and gates that know who is."""
    labels = np.arange(80) % 4
    logits = torch.full((80, 4, 4), 0.0)
    logits[torch.arange(80), labels, labels] = 6.0  # [test, expert, class]
    scores = np.tile(np.eye(4, dtype=np.float32)[labels] * 4, (4, 1, 1))
    return churn.Parts(("a", "b", "c", "d"), logits, scores, labels, 2, Mix.PROBABILITIES)


def test_losing_a_node_costs_what_only_it_knew_and_a_replica_saves_it(parts):
    both, _, link, double = churn.SYSTEMS
    assert churn.serve(parts, churn.Condition("lost", 0.0, both), seed=0, passes=1)["accuracy"] == 1.0
    lost = churn.serve(parts, churn.Condition("lost", 0.25, both), seed=0, passes=1)
    assert lost["accuracy"] == pytest.approx(0.75, abs=0.26)
    assert lost["answered"] == 1.0
    assert lost["accuracy"] < churn.serve(parts, churn.Condition("lost", 0.25, double), seed=0, passes=1)["accuracy"] + 0.26
    assert churn.serve(parts, churn.Condition("lost", 0.0, link), seed=0, passes=1)["accuracy"] < 1.0


def test_larger_shares_hit_the_same_nodes_and_more():
    for seed in range(5):
        groups = [set(churn.failing(10, share, seed)) for share in churn.SHARES]
        assert [len(group) for group in groups] == [0, 1, 2, 3, 4, 5, 6]
        assert all(small <= large for small, large in itertools.pairwise(groups))


def test_rows_make_tables_and_a_figure(parts):
    measured = churn._measure(parts, seeds=1, passes=1, progress=churn._Silent())
    rows = churn.as_rows(measured)
    assert {row["system"] for row in rows} == {system.name for system in churn.SYSTEMS}
    assert {row["case"] for row in rows} == {f"{fault} {share:g}" for fault in churn.FAULTS for share in churn.SHARES}
    settings = {"data": "x", "split": "iid", "nodes": 4, "k": 2, "requests": 80, "rate_hz": 1.0, "deadline_ms": 1.0, "round_trip_ms": 1.0}
    settings |= {"seeds": 1, "slow_factor": 30, "loss": 0.3}
    lines = list(churn.as_markdown({"settings": settings, "rows": rows}))
    assert sum(line.startswith("| 0") for line in lines) == len(churn.FAULTS) * len(churn.SHARES)
    assert len(churn_figure(rows).axes) == 6
