"""Deployment: server and nodes of a Flower app in this process, and (slow) the whole of it over TLS on loopback."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("flwr", reason="the extra 'flower' is not installed")

from flwr.app import Context, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from nmoe.core.bundle import read_bundle
from nmoe.core.errors import BadFile, EngineError
from nmoe.federate import FedSC, LocalExchange, run
from nmoe.federate import flower as engine
from nmoe.recipes.deploy import LEFT_OUT, RUN_KEYS, client_program, server_main, training_of
from nmoe.recipes.options import TrainOptions
from nmoe.recipes.program import FEDAVG, program_of

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = tomllib.loads((ROOT / "deploy/flower/pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]["config"]
SMALL = {"nodes": 3, "split": "shards:4", "rounds": 1, "gate-rounds": 2}
NAME = "0123456789abcdef"


@pytest.fixture(autouse=True)
def threads():
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


class Machines:
    """Stands for Flower's grid: a client app per node, a fresh process (no cache) for every message, replies in another order."""

    def __init__(self, folder: Path, *, config=None, node_configs=None):
        folder.mkdir(exist_ok=True)
        toy = {"data": own_file(folder / "toy.npz", labels=(0, 1, 2, 3) * 15)} if config is None else config
        self.run_config = DEFAULTS | SMALL | {"out": str(folder / "out")} | toy
        nodes = self.run_config["nodes"]
        self.node_configs = {
            100 - number: {"partition-id": number, "num-partitions": nodes, "home": str(folder / f"home{number}")}
            | (node_configs or {}).get(number, {})
            for number in range(nodes)
        }
        self.down: set[tuple[int, str, int]] = set()  # (number, stage, round) that get no answer
        self.kill_at: int | None = None  # clock at which the server dies, after the nodes have answered
        self.app = engine.make_client_app(client_program)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

    def get_node_ids(self):
        return list(self.node_configs)

    def send_and_receive(self, messages, *, timeout):
        assert timeout > 0
        replies = []
        for message in messages:
            call = engine._call(message)
            node_id = message.metadata.dst_node_id
            if (self.node_configs[node_id]["partition-id"], call.stage, call.round) in self.down:
                continue
            engine._member.cache_clear()
            replies.append(self.app(message, self.context(node_id)))
        if call.clock == self.kill_at:
            raise KeyboardInterrupt
        return replies[::-1]

    def context(self, node_id):
        return Context(run_id=1, node_id=node_id, node_config=self.node_configs[node_id], state=RecordDict(), run_config=self.run_config)

    def serve(self):
        server_main(self, SimpleNamespace(run_config=self.run_config))
        return Path(self.run_config["out"])

    def bundle(self, number):
        (config,) = [config for config in self.node_configs.values() if config["partition-id"] == number]
        return read_bundle(Path(config["home"]) / "bundles" / f"node-{number}")


def same_states(one: Path, other: Path) -> bool:
    files = sorted(path.name for path in one.glob("*.safetensors"))
    states = [(load_file(one / name), load_file(other / name)) for name in files]
    return bool(states) and all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in states)


def own_file(path: Path, *, size=8, labels=(0, 1, 1, 3) * 8) -> str:
    images = np.random.default_rng(0).integers(0, 256, (len(labels), size, size), dtype=np.uint8)
    np.savez(path, images=images, labels=np.array(labels, dtype=np.int64))
    return str(path)


def test_the_apps_config_is_the_options_with_their_defaults():
    options = {field.name.replace("_", "-"): field.default for field in dataclasses.fields(TrainOptions) if field.name not in LEFT_OUT}
    assert {key: value for key, value in DEFAULTS.items() if key not in RUN_KEYS} == {
        key: value or type(DEFAULTS[key])() for key, value in options.items()
    }
    assert all(type(DEFAULTS[key]) is type(value) for key, value in options.items() if value is not None)
    assert DEFAULTS.keys() - options.keys() == set(RUN_KEYS)


@pytest.mark.parametrize("links", [{}, {"channel": "rayleigh", "snr": "-10:20"}], ids=["wired", "radio"])
def test_a_run_over_machines_is_the_local_run_bit_for_bit(tmp_path, capsys, links):
    machines = Machines(tmp_path)
    machines.run_config |= links
    out = machines.serve()
    options = TrainOptions(data=str(tmp_path / "toy.npz"), nodes=3, split="shards:4", rounds=1, gate_rounds=2, **links)
    program = program_of(options, tmp_path / "local")
    stages = [stage for stage in program.stages() if stage.name != FEDAVG]
    run(stages, LocalExchange(program, range(3)), folder=tmp_path / "local")
    assert same_states(tmp_path / "local" / "checkpoint", out / "checkpoint")
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint", "config.json", "metrics.jsonl"]
    assert not (out / "checkpoint" / "nodes").exists()
    for number in range(3):
        local, deployed = read_bundle(tmp_path / "local" / "bundles" / f"node-{number}"), machines.bundle(number)
        assert deployed.card == local.card
    lines = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (tmp_path / "local", out)]
    assert [[line["bytes"], line["metrics"]] for line in lines[0]] == [[line["bytes"], line["metrics"]] for line in lines[1]]
    assert capsys.readouterr().out.count("\n") == len(lines[1])


@pytest.mark.parametrize("clock", [0, 2, 5, 9, 17, 22])
def test_a_killed_server_continues_where_it_was(tmp_path, clock, capsys):
    machines = Machines(tmp_path)
    whole = machines.serve()
    machines.run_config["out"] = str(tmp_path / "again")
    machines.kill_at = clock
    with pytest.raises(KeyboardInterrupt):
        machines.serve()
    machines.kill_at = None
    assert same_states(whole / "checkpoint", machines.serve() / "checkpoint")


def test_another_run_on_the_same_machines_starts_from_nothing(tmp_path, capsys):
    machines = Machines(tmp_path)
    first = machines.serve()
    before = machines.bundle(0).card.extractor_fingerprint
    machines.run_config |= {"out": str(tmp_path / "second"), "seed": 1}
    second = machines.serve()
    names = [json.loads((out / "config.json").read_text())["run_name"] for out in (first, second)]
    assert sorted(path.name for path in (tmp_path / "home0" / "runs").iterdir()) == sorted(names)
    assert machines.bundle(0).card.extractor_fingerprint != before


def test_a_node_without_its_bundle_fails_the_run_and_gets_it_from_the_next(tmp_path, capsys):
    machines = Machines(tmp_path)
    machines.down = {(1, "bundles", 0), (2, "features", 0)}
    with pytest.raises(EngineError, match=r"not every node has its bundle \(node-1: no answer within 600 s\)"):
        machines.serve()
    assert "  node-2: no answer within 600 s" in capsys.readouterr().out
    machines.down = set()
    machines.serve()
    assert len({machines.bundle(number).card.extractor_fingerprint for number in range(3)}) == 1


def test_nodes_may_have_data_of_their_own_and_the_server_none(tmp_path, capsys):
    files = {number: {"data": own_file(tmp_path / f"own{number}.npz", labels=(number, 3) * 12)} for number in range(3)}
    config = {"data": "mushrooms", "image-shape": "8x8x1", "classes": 4}
    machines = Machines(tmp_path, config=config, node_configs=files)
    machines.serve()
    for number in range(3):
        card = machines.bundle(number).card
        assert (card.classes_seen, card.num_classes, card.image_shape) == (tuple(sorted({number, 3})), 4, (8, 8, 1))
        assert card.provenance.data == "mushrooms"


def test_privacy_noise_of_a_node_is_not_the_servers_to_know(tmp_path):
    config = DEFAULTS | SMALL | {"dp-epsilon": "8"}
    node = {"partition-id": 0, "num-partitions": 3, "home": str(tmp_path)}
    programs = [client_program(SimpleNamespace(run_config=config, node_config=node), name) for name in (NAME, NAME, NAME[::-1])]
    seeds = [program.stages()[0].seed for program in programs]
    assert seeds[0] == seeds[1] != seeds[2], "one secret per run, the same after a restart"
    assert 0 not in seeds
    assert isinstance(programs[0].stages()[0], FedSC)
    assert programs[0].stages()[0].noise_multiplier > 0
    assert programs[0].stages()[1].seed == 0
    assert (tmp_path / "runs" / NAME / "noise.json").stat().st_mode & 0o777 == 0o600


MISTAKES = {
    "more partitions": ({}, {"num-partitions": 4}, "node config gives num-partitions=4, the run has nodes=3"),
    "number": ({}, {"partition-id": 3}, "node config must give partition-id between 0 and 2, got 3"),
    "home": ({}, {"home": "here"}, "node config must give home, an absolute path on this machine, got 'here'"),
    "spelling": ({}, {"Data": "x"}, "node config may give partition-id, num-partitions, home, data, data-dir, got Data"),
    "no file": ({}, {"data": "/nowhere/own.npz"}, "there is no file /nowhere/own.npz"),
    "size": ({}, {"data": "own 9.npz"}, "images must be [8, 8, 1] as the run says, got [9, 9, 1]"),
    "label": ({"image-shape": "8x8x1", "classes": 10}, {"data": "own 12.npz"}, "labels must be in 0..9, got 0..12"),
    "other classes": (
        {"image-shape": "8x8x1", "classes": 3},
        {},
        "digits has images [8, 8, 1] and 10 classes, the run says [8, 8, 1] and 3",
    ),
    "no data": ({"data": "mushrooms", "image-shape": "8x8x1", "classes": 3}, {}, "got 'mushrooms'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_node_that_does_not_fit_stops_the_run_before_it_begins(tmp_path, mistake):
    config, node, line = MISTAKES[mistake]
    own_file(tmp_path / "own 12.npz", labels=(0, 12))
    own_file(tmp_path / "own 9.npz", size=9)
    if str(node.get("data", "/")).startswith("own"):
        node = {"data": str(tmp_path / node["data"])}
    machines = Machines(tmp_path, config=config, node_configs={1: node})
    with pytest.raises(EngineError, match="a node cannot take part: .*" + re.escape(line)) as raised:
        machines.serve()
    assert "\n" not in str(raised.value)
    assert not Path(machines.run_config["out"]).exists()


def test_two_nodes_of_one_number_stop_the_run(tmp_path):
    machines = Machines(tmp_path, config={}, node_configs={1: {"partition-id": 0}})
    with pytest.raises(EngineError, match="two nodes have number 0"):
        machines.serve()


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"out": "runs/x"}, "run config must give out, an absolute path on this machine, got 'runs/x'"),
        ({"dp-epsilon": "much"}, "dp-epsilon must be a number, or empty for no noise, got 'much'"),
        ({"image-shape": "8x8"}, "image-shape and classes go together"),
        ({"classes": 10}, "image-shape and classes go together"),
        ({"k": 4}, "k must be between 1 and 3"),
        ({"gate-sync": "some"}, "gate sync must be one of"),
        ({"round": 1}, "run config has no option round"),
    ],
)
def test_mistakes_in_the_runs_config_are_one_line(tmp_path, config, line):
    machines = Machines(tmp_path, config=config)
    with pytest.raises(ValueError, match=re.escape(line)):
        machines.serve()
    assert list(tmp_path.glob("nmoe-loopback-*")) == []


def test_a_config_without_an_option_is_refused():
    with pytest.raises(ValueError, match="run config lacks rounds"):
        training_of({key: value for key, value in DEFAULTS.items() if key != "rounds"})


def test_a_run_folder_of_another_run_is_left_alone(tmp_path, capsys):
    machines = Machines(tmp_path)
    machines.kill_at = 1
    with pytest.raises(KeyboardInterrupt):
        machines.serve()
    machines.run_config["rounds"] = 9
    with pytest.raises(ValueError, match="holds a run with rounds 1, this one has 9: choose another out"):
        machines.serve()
    (tmp_path / "out" / "config.json").write_text("[]")
    with pytest.raises(BadFile, match="is not the configuration of a run over machines"):
        machines.serve()
    (tmp_path / "out" / "config.json").unlink()
    (tmp_path / "out" / "letter.txt").touch()
    with pytest.raises(BadFile, match=r"cannot read .*config\.json"):
        machines.serve()


def loopback(folder: Path, *words: str) -> subprocess.Popen[str]:
    script = [sys.executable, str(ROOT / "deploy" / "loopback.py"), *words]
    return subprocess.Popen(script, env=os.environ | {"TMPDIR": str(folder)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def left_behind(folder: Path) -> list[list[str]]:
    """Return the command lines of Flower's processes that name a folder or run in it."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()  # empty for one that has ended and waits for its parent to notice
            if words and (str(folder) in " ".join(words) or folder in (Path(process.cwd()) / "here").parents):
                found.append(words)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_supernodes_over_tls_train_what_one_process_trains(tmp_path):
    with loopback(tmp_path, "--rounds", "1", "--gate-rounds", "1", "--keep") as script:
        said, complained = script.communicate(timeout=1100)
    assert script.returncode == 0, complained
    assert "bundles of 2 nodes share extractor" in said
    assert "finished:completed" in said
    assert left_behind(tmp_path) == []
    (folder,) = tmp_path.glob("nmoe-loopback-*")  # torch leaves a cache of its own beside it
    program = program_of(TrainOptions(nodes=2, split="shards:5", rounds=1, gate_rounds=1), tmp_path / "local")
    stages = [stage for stage in program.stages() if stage.name != FEDAVG]
    run(stages, LocalExchange(program, range(2)), folder=tmp_path / "local")
    assert same_states(tmp_path / "local" / "checkpoint", folder / "server" / "run" / "checkpoint")
    records = [json.loads(line) for line in (folder / "server" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not any(record["refused"] for record in records)


@pytest.mark.slow
def test_the_script_ends_every_process_when_it_is_told_to_end(tmp_path):
    with loopback(tmp_path) as script:
        assert "2 SuperNodes" in script.stdout.readline()
        time.sleep(15)  # so that the run has begun and processes of every kind are there
        assert left_behind(tmp_path) != []
        script.send_signal(signal.SIGTERM)
        _, complained = script.communicate(timeout=60)
    assert script.returncode == 130
    assert "interrupted" in complained
    assert left_behind(tmp_path) == []
    assert list(tmp_path.glob("nmoe-loopback-*")) == []
