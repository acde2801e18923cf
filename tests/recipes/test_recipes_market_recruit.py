"""``nmoe market recruit``: tables, JSON, files; and a plan that a training run honours."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from nmoe.core.errors import BadFile
from nmoe.core.files import write_json
from nmoe.federate import LocalExchange, Watcher, run
from nmoe.recipes.market_recruit import example_recruitment, market_recruit
from nmoe.recipes.options import TrainOptions, read_options
from nmoe.recipes.program import TrainProgram, program_of
from nmoe.recipes.recruited import drawn_samples, recruited_samples, recruitment_rows


def recruit(path, **changes):
    said, shown = [], []
    given = {"workers": "exact", "seed": 0, "max_steps": 1000, "episodes": None, "policies": None, "as_json": False, "out": None}
    record = market_recruit(path, **given | changes, say=said.append, show=shown.append)
    return record, said, shown


@pytest.fixture(name="task")
def write_task(tmp_path):
    lines = []
    example_recruitment(4, seed=0, say=lines.append)
    path = tmp_path / "task.toml"
    path.write_text("\n".join(lines))
    return path


def test_json_is_the_plan_and_nothing_else(task):
    record, said, shown = recruit(task, as_json=True)
    assert shown == []
    assert json.loads(said[0]) == record
    assert record["kind"] == "nmoe-recruitment"
    assert record["version"] == 1
    assert record["published"]
    assert [node["id"] for node in record["nodes"]] == ["node-0", "node-1", "node-2", "node-3"]
    assert record["loop"]["converged"]
    assert sum(node["payment"] for node in record["nodes"]) == pytest.approx(record["reward"])


def test_files_are_written(task, tmp_path):
    record, said, shown = recruit(task, out=tmp_path / "out")
    assert len(shown) == 1
    assert said == [f"plan and figures in {tmp_path / 'out'}"]
    assert json.loads((tmp_path / "out" / "plan.json").read_text()) == record
    for name in ("convergence", "utilities", "deviation"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 10_000


def test_a_task_that_is_not_published_says_why(task, tmp_path):
    task.write_text(task.read_text().replace("lambda = 100.000", "lambda = 0.1"))
    record, said, shown = recruit(task, out=tmp_path / "out")
    assert not record["published"]
    assert "too low" in record["why_not"]
    assert "No task is published" in str(shown[0])
    assert said == [f"plan in {tmp_path / 'out'}"]


def test_what_is_wrong_is_said_before_anything_is_written(task, tmp_path):
    with pytest.raises(ValueError, match="workers must be one of exact, learned, got 'clever'"):
        recruit(task, workers="clever", out=tmp_path / "out")
    with pytest.raises(ValueError, match="episodes and policies are those of learned workers"):
        recruit(task, episodes=3)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        recruit(task, seed=-1)
    with pytest.raises(ValueError, match="at least 1 step wanted"):
        recruit(task, max_steps=0)
    with pytest.raises(ValueError, match="out: a folder wanted"):
        recruit(task, out=task)
    with pytest.raises(ValueError, match="at least 2 owners"):
        example_recruitment(1, seed=0, say=print)
    assert not (tmp_path / "out").exists()


def test_a_loop_that_falls_back_says_so(task):
    record, _, _ = recruit(task, max_steps=1)
    assert record["loop"]["fell_back"]
    assert "fallen back" in record["method"]


def plan_of(tmp_path, samples):
    path = tmp_path / "plan.json"
    nodes = [{"id": f"node-{number}", "samples": count} for number, count in samples.items()]
    write_json(path, {"kind": "nmoe-recruitment", "version": 1, "nodes": nodes})
    return path


def test_a_plan_is_read_in_the_order_of_nodes(tmp_path):
    assert recruited_samples(plan_of(tmp_path, {2: 7, 0: 5, 1: 0}), 3) == (5, 0, 7)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({0: 5, 1: 5}, "is a plan for 2 nodes, this run has 3"),
        ({0: 5, 1: 5, 7: 5}, "is a plan for other nodes: 'node-7' is none of node-0 to node-2"),
        ({0: 0, 1: 0, 2: 0}, "recruits nobody"),
    ],
)
def test_a_plan_for_other_nodes_is_refused(tmp_path, samples, message):
    with pytest.raises(ValueError, match=message):
        recruited_samples(plan_of(tmp_path, samples), 3)
    with pytest.raises(BadFile, match="cannot read"):
        recruited_samples(tmp_path / "nowhere.json", 3)


def test_samples_are_drawn_once_for_a_seed():
    own = np.arange(100, 200)
    kept = drawn_samples(own, 30, seed=3, node=1)
    assert len(set(kept.tolist())) == 30
    assert (np.diff(kept) > 0).all()
    assert (kept == drawn_samples(own, 30, seed=3, node=1)).all()
    assert (kept != drawn_samples(own, 30, seed=3, node=2)).any()
    assert drawn_samples(own, 500, seed=3, node=1) is own


def test_options_with_a_plan_read_back_and_are_checked(tmp_path):
    options = TrainOptions(nodes=3, recruitment=(5, 0, 7), k=2)
    assert options.members() == (0, 2)
    assert options.neighbourhood() == ((1,), (0,))
    write_json(tmp_path / "config.json", asdict(options))
    assert read_options(tmp_path) == options
    with pytest.raises(ValueError, match="one number of samples per node, 3, each at least 0"):
        TrainOptions(nodes=3, recruitment=(5, 7))
    with pytest.raises(ValueError, match="at least one node with samples"):
        TrainOptions(nodes=2, recruitment=(0, 0))
    with pytest.raises(ValueError, match=r"neighbours must be between 0 .* and 1, got 2"):
        TrainOptions(nodes=3, recruitment=(5, 0, 7), neighbours=2)


def test_a_run_trains_by_its_plan(tmp_path):
    options = TrainOptions(nodes=4, split="iid", rounds=1, gate_rounds=2, recruitment=(40, 0, 60, 50))
    program = program_of(options, tmp_path)
    whole = TrainProgram(options=TrainOptions(nodes=4, split="iid"), run_folder=None, noise_multiplier=0.0, revision="")
    assert program.names() == ("node-0", "node-2", "node-3")
    assert [len(samples) for samples in program.assignment()] == [40, 60, 50]
    assert set(program.assignment()[1]) < set(whole.assignment()[2])
    assert len(program.pooled()) == 150
    exchange = LocalExchange(program, range(3))
    run(program.stages(), exchange, folder=tmp_path)
    exchange.close()
    bundles = tmp_path / "bundles"
    assert sorted(path.name for path in bundles.iterdir()) == ["node-0", "node-2", "node-3"]
    card = json.loads((bundles / "node-2" / "card.json").read_text())
    assert card["node"] == "node-2"
    assert card["experts"] == ["node-0", "node-2", "node-3"]
    assert card["neighbours"] == ["node-0", "node-3"]


class Broken(RuntimeError):
    """The process is gone."""


class Killer(Watcher):
    """Kills a run in its next round after so many, before that round is saved."""

    def __init__(self, rounds):
        self.left = rounds

    def evaluate(self, stage, number, state):
        if self.left <= 0:
            raise Broken
        return {}

    def seen(self, record):
        self.left -= 1


def test_a_killed_run_with_a_plan_resumes_as_if_it_never_was(tmp_path):
    options = TrainOptions(nodes=4, split="iid", rounds=2, gate_rounds=4, recruitment=(40, 0, 60, 50))

    def life(folder, watcher=None):
        program = program_of(read_options(folder), folder)
        exchange = LocalExchange(program, range(3))
        try:
            return run(program.stages(), exchange, folder=folder, watcher=watcher)
        finally:
            exchange.close()

    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        write_json(folder / "config.json", asdict(options))
    wanted = life(folders[0])
    rounds = folders[0].joinpath("metrics.jsonl").read_text().count("\n")
    for done in (0, 2, rounds - 5, rounds - 1):  # rounds that are saved before the kill, those before an earlier one included
        with pytest.raises(Broken):
            life(folders[1], Killer(done))
        assert folders[1].joinpath("metrics.jsonl").exists() == (done > 0)
    found = life(folders[1])
    assert found.keys() == wanted.keys()
    for stage, state in wanted.items():
        assert all(torch.equal(found[stage][name], tensor) for name, tensor in state.items())
    weights = sorted(path.relative_to(folders[0]) for path in (folders[0] / "bundles").rglob("*.safetensors"))
    assert len({path.parts[1] for path in weights}) == 3
    assert all((folders[0] / path).read_bytes() == (folders[1] / path).read_bytes() for path in weights)


def test_a_node_with_fewer_samples_than_planned_trains_on_all_and_that_is_said():
    options = TrainOptions(nodes=4, split="iid", recruitment=(40, 0, 60, 10**6))
    program = TrainProgram(options=options, run_folder=None, noise_multiplier=0.0, revision="")
    sizes = [len(samples) for samples in program.assignment()]
    rows = recruitment_rows(options.recruitment, program.names(), program.assignment())
    assert [row["trained"] for row in rows] == [40, 0, 60, sizes[2]]
    assert rows[3] == {"node": "node-3", "planned": 10**6, "trained": sizes[2]}
