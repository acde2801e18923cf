"""Workloads: four of our own, any of the user's, and one clear line for what is none."""

import json
from pathlib import Path

import numpy as np
import pytest

from nmoe.core.errors import BadFile
from nmoe.market.auction.exits import confidence_exits
from nmoe.market.auction.workloads import BRANCHES, Exit, Workload, builtin_workloads, parse_workloads, read_workloads

SMALL = {
    "name": "small",
    "layer_flops": [1e9, 2e9],
    "output_bytes": [1000, 500, 10],
    "exits": [{"after_layer": 1, "head_flops": 1e6, "accuracy": 0.5}, {"after_layer": 2, "head_flops": 2e6, "accuracy": 0.8}],
}
TOML = """
[[workloads]]
name = "small"
layer_flops = [1e9, 2e9]
output_bytes = [1000, 500, 10]
exits = [{after_layer = 1, head_flops = 1e6, accuracy = 0.5}, {after_layer = 2, head_flops = 2e6, accuracy = 0.8}]
"""
LAYERS = """model,layer,macs,out_elems,accuracy,head_macs
small,input,0,1000,,0
small,first,5e8,500,0.5,5e5
small,second,1e9,10,0.8,1e6
other,only,1,2,1,0
"""


def test_the_built_in_four():
    workloads = builtin_workloads()
    assert list(workloads) == ["alexnet", "vgg16", "resnet50", "mobilenet_v2"]
    total = {"alexnet": 1.428e9, "vgg16": 30.94e9, "resnet50": 8.178e9, "mobilenet_v2": 0.6015e9}
    for name, workload in workloads.items():
        assert sum(workload.layer_flops) + workload.exits[-1].head_flops == pytest.approx(total[name], rel=1e-3)
        assert workload.output_bytes[0] == 3 * 224 * 224
        assert 3 <= len(workload.exits) <= 5
        accuracies = [one.accuracy for one in workload.exits]
        assert accuracies == sorted(set(accuracies)), "a later exit is more accurate"
        assert workload.exits[-1].after_layer == len(workload.layer_flops)


@pytest.mark.parametrize("name", BRANCHES)
def test_heads_fit_the_feature_maps_they_stand_on(name: str):
    workload = builtin_workloads()[name]
    for branch in BRANCHES[name][0]:
        assert workload.output_bytes[branch.after_block] % branch.channels == 0
        side = (workload.output_bytes[branch.after_block] / branch.channels) ** 0.5
        assert side == int(side), "a square map of as many channels"


def test_files_of_ones_own_say_the_same(tmp_path: Path):
    (tmp_path / "own.toml").write_text(TOML)
    (tmp_path / "own.json").write_text(json.dumps({"workloads": [SMALL]}))
    (tmp_path / "own.csv").write_text(LAYERS)
    from_toml, from_json, from_csv = (read_workloads(tmp_path / f"own.{kind}") for kind in ("toml", "json", "csv"))
    assert from_toml == from_json == {"small": from_csv["small"]}
    assert from_csv["small"].exits == (
        Exit(after_layer=1, head_flops=1e6, accuracy=0.5),
        Exit(after_layer=2, head_flops=2e6, accuracy=0.8),
    )
    assert from_csv["other"].output_bytes == (150_528.0, 2.0), "without a row for the input it is an image"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": ""}, "name must be text"),
        ({"layer_flops": []}, "at least one layer and one exit wanted, got 0 and 2"),
        ({"exits": []}, "at least one layer and one exit wanted, got 2 and 0"),
        ({"output_bytes": [1, 2]}, "one number more than layer_flops"),
        ({"layer_flops": [1e9, float("nan")]}, r"layer_flops\[1\] must be a number in 0..1e\+30, got nan"),
        ({"layer_flops": [1e9, -1]}, r"layer_flops\[1\] must be a number"),
        ({"layer_flops": [1e9, True]}, r"layer_flops\[1\] must be a number"),
        ({"layer_flops": "much"}, "layer_flops must be a list"),
        ({"output_bytes": [1, float("inf"), 1]}, r"output_bytes\[1\] must be a number"),
        ({"exits": [7]}, "exit 0 must be a table"),
        ({"exits": [{"after_layer": 1, "head_flops": 0}]}, "exit 0: accuracy is missing"),
        ({"exits": [{"after_layer": 3, "head_flops": 0, "accuracy": 1}]}, "after_layer must be a whole number in 1..2, got 3"),
        ({"exits": [{"after_layer": 1, "head_flops": 0, "accuracy": 1.5}]}, "accuracy must be a number in 0..1, got 1.5"),
        ({"exits": SMALL["exits"][::-1]}, "exits must be in the order of their layers"),
        ({"width": 3}, "width is no field"),
    ],
)
def test_what_is_no_workload_is_refused(change: dict, said: str):
    with pytest.raises(ValueError, match=said):
        parse_workloads({"workloads": [SMALL | change]})


def test_files_that_are_none_are_refused(tmp_path: Path):
    for tables in ([], {}, {"workloads": []}, {"workloads": [1]}):
        with pytest.raises(ValueError, match="a list of tables"):
            parse_workloads(tables)
    with pytest.raises(ValueError, match="workload 'small' is there twice"):
        parse_workloads({"workloads": [SMALL, SMALL]})
    with pytest.raises(BadFile, match="cannot read"):
        read_workloads(tmp_path / "none.toml")
    for kind, text, said in (
        ("toml", "= 3", "not valid TOML"),
        ("json", "{", "not valid JSON"),
        ("csv", "model,macs\na,1\n", "it lacks out_elems, accuracy"),
        ("csv", "model,macs,out_elems,accuracy\n", "has no layers"),
        ("csv", "model,macs,out_elems,accuracy\na,1,1,good\n", "line 2: accuracy should be a number or empty"),
        ("csv", "model,macs,out_elems,accuracy\na,much,1,1\n", "line 2: macs should be a number"),
    ):
        (tmp_path / f"own.{kind}").write_text(text)
        with pytest.raises(BadFile, match=said):
            read_workloads(tmp_path / f"own.{kind}")
    (tmp_path / "own.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFile, match="not valid TOML"):
        read_workloads(tmp_path / "own.toml")


def test_confidence_exits_are_the_mean_over_inputs():
    """Every input followed by itself."""
    workload = builtin_workloads()["vgg16"]
    leaving = (0.25, 0.25, 0.125, 0.375)
    mean = confidence_exits(workload, leaving)
    inputs = np.repeat(np.arange(4), [2, 2, 1, 3])  # of eight, where each leaves
    ran = np.zeros(len(workload.layer_flops))
    sent = np.zeros(len(workload.output_bytes))
    for leaves in inputs:
        last = workload.exits[leaves].after_layer
        ran[:last] += workload.layer_flops[:last]
        for place in workload.exits[: leaves + 1]:
            if place.after_layer < len(ran):
                ran[place.after_layer - 1] += place.head_flops
        beyond = len(sent) if leaves == 3 else last
        sent[:beyond] += workload.output_bytes[:beyond]
    assert mean.layer_flops == pytest.approx(ran / 8)
    assert mean.output_bytes == pytest.approx(sent / 8)
    assert len(mean.exits) == 1
    assert mean.exits[0].accuracy == pytest.approx(np.mean([workload.exits[leaves].accuracy for leaves in inputs]))
    assert mean.exits[0].head_flops == pytest.approx(workload.exits[3].head_flops * 3 / 8)


def test_all_leaving_last_is_the_network_with_its_heads_and_all_leaving_first_sends_nothing_beyond():
    workload = builtin_workloads()["alexnet"]
    last = confidence_exits(workload, (0, 0, 1))
    assert last.output_bytes == workload.output_bytes
    assert sum(last.layer_flops) == pytest.approx(sum(workload.layer_flops) + sum(one.head_flops for one in workload.exits[:-1]))
    first = confidence_exits(workload, (1, 0, 0))
    assert first.output_bytes[2:] == (0.0,) * 6
    assert first.layer_flops[2:] == (0.0,) * 5


@pytest.mark.parametrize("leaving", [(1,), (0.5, 0.5, 0.5), (-0.5, 0.5, 1.0), (float("nan"), 0.5, 0.5)])
def test_shares_that_are_none_are_refused(leaving: tuple):
    with pytest.raises(ValueError, match="one share in"):
        confidence_exits(builtin_workloads()["alexnet"], leaving)


def test_exits_elsewhere_have_no_order():
    twice = Workload(name="twice", layer_flops=(1.0,), output_bytes=(1.0, 1.0), exits=(Exit(after_layer=1, head_flops=0, accuracy=1),) * 2)
    with pytest.raises(ValueError, match="exits after different layers"):
        confidence_exits(twice, (0.5, 0.5))
