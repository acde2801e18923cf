"""The life of a run through the command line: killed and resumed, interrupted, and the demo with its promises."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from nmoe.data import load
from nmoe.node import MeshProcesses

SMALL = ["--nodes", "4", "--split", "shards:3", "--rounds", "2", "--gate-rounds", "12", "--gate-sync", "every:2"]


def start(*words: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nmoe", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=cwd)


def finish(*words: str) -> str:
    process = start(*words)
    out, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    return out


def wait_for_round(run: Path, stage: str, round: int, process: subprocess.Popen[str]) -> None:
    """Wait until a stage's checkpoint has reached a round."""
    wanted = f'"stage": "{stage}", "round": {round},'
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        metrics = run / "metrics.jsonl"
        if metrics.exists() and wanted in metrics.read_text():
            return
        time.sleep(0.002)
    raise AssertionError(f"{stage} never reached round {round}: {process.poll()}")


def weights(run: Path) -> dict[str, bytes]:
    """Return the final files of a run that must not depend on how it got there."""
    files = [*run.glob("checkpoint/*.safetensors"), *run.glob("bundles/*/*.safetensors")]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish("train", *SMALL, "--out", str(run))
    return run


OTHER_STAGES = [pytest.param(stage, round, marks=pytest.mark.slow) for stage, round in (("features", 1), ("experts", 2), ("fedavg", 1))]


@pytest.mark.parametrize(("stage", "round"), [("gates", 5), *OTHER_STAGES])  # every stage, in one process: test_federate_contract.py
def test_killed_and_resumed_is_bit_identical(stage: str, round: int, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("train", *SMALL, "--out", str(run))
    wait_for_round(run, stage, round, process)
    process.kill()
    process.communicate()
    assert not (run / "results.json").exists()
    finish("train", "--resume", str(run))
    assert weights(run) == weights(whole)
    resumed, uninterrupted = (json.loads((folder / "results.json").read_text()) for folder in (run, whole))
    assert resumed["accuracy"] == uninterrupted["accuracy"]
    assert resumed["communication"] == uninterrupted["communication"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["round"]) for line in lines] == sorted(
        {(line["stage"], line["round"]) for line in lines},
        key=lambda key: (["features", "experts", "gates", "bundles", "fedavg"].index(key[0]), key[1]),
    )


def test_train_writes_the_run_folder_without_serving(whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text())
    assert "serving" not in results
    assert "infer_bytes_per_sample" not in results["communication"]
    assert (whole / "report.html").is_file()
    assert sorted(path.name for path in (whole / "bundles").iterdir()) == [f"node-{number}" for number in range(4)]


@pytest.mark.parametrize("moment", [pytest.param("features", marks=pytest.mark.slow), "serving"])
def test_interrupt_leaves_no_process(moment: str, tmp_path: Path) -> None:
    process = start("demo", *SMALL, "--out", str(tmp_path / "run"))
    if moment == "features":
        wait_for_round(tmp_path / "run", "features", 1, process)
    else:
        until = time.monotonic() + 120
        while not children(process) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
    family = children(process)
    assert family or moment == "features"
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the Python processes that a run has started, but for copies of itself that become its ``git`` and are over at once."""
    found = []
    with suppress(psutil.NoSuchProcess):
        run = psutil.Process(process.pid)
        own_words = run.cmdline()
        for child in run.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "python" in child.name() and child.cmdline() not in ([], own_words):
                    found.append(child)
    return found


def test_demo_keeps_its_promises(tmp_path: Path) -> None:
    """The default demo, seed 0: keys, targets, every request answered, agreement with the in-process layer, no process left."""
    run = tmp_path / "run"
    out = finish("demo", "--out", str(run))
    results = json.loads((run / "results.json").read_text())
    assert {"data", "nodes", "split", "k", "seed", "accuracy", "privacy", "communication", "serving", "seconds"} <= results.keys()
    accuracy = results["accuracy"]
    methods = {"own_expert", "random_uniform", "all_uniform", "nmoe", "oracle_gate", "fedavg", "central_moe"}
    assert methods == accuracy.keys()
    assert all(scores.keys() == {"local", "global"} for scores in accuracy.values())
    assert accuracy["nmoe"]["global"] >= 0.90
    assert accuracy["central_moe"]["global"] - accuracy["nmoe"]["global"] <= 0.04
    assert accuracy["own_expert"]["global"] <= 0.25
    serving = results["serving"]
    assert serving["requests"] == serving["answered"] == 359
    assert serving["agreement"] == 1.0
    assert serving["accuracy"] == pytest.approx(accuracy["nmoe"]["global"], abs=0.02)
    assert 0 < serving["p50_ms"] <= serving["p99_ms"]
    assert results["privacy"].keys() == {"epsilon", "delta", "mechanism"}
    assert results["privacy"]["mechanism"].startswith("none: ")
    assert {"features", "experts", "gates"} <= results["communication"]["train_bytes"].keys()
    assert 0 < results["communication"]["infer_bytes_per_sample"] < 2 * (2048 + 512)
    assert "NMoE" in out
    assert "<html" in (run / "report.html").read_text()
    assert {"accuracy.png", "choice.png", "mesh.png", "traffic.png", "latency.png"} == {path.name for path in (run / "figures").iterdir()}
    left = [p for p in psutil.process_iter(["cmdline"]) if str(run) in " ".join(p.info["cmdline"] or [])]
    assert not left


def test_privacy_budget_is_spent_and_reported(tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish("train", *SMALL, "--rounds", "1", "--dp-epsilon", "8", "--out", str(run))
    privacy = json.loads((run / "results.json").read_text())["privacy"]
    assert privacy["epsilon"] == pytest.approx(8, rel=1e-3)
    assert privacy["delta"] == 1e-5
    assert "without noise" in privacy["mechanism"]


@pytest.mark.parametrize(
    "words",
    [
        ["--extractor", "fedce", "--gate", "rangate", "--neighbours", "2", "--mix", "logits"],
        pytest.param(["--gate", "rollgate", "--gate-reading", "B", "--participation", "0.5"], marks=pytest.mark.slow),
    ],
)
def test_other_methods_run_from_the_command_line(words: list[str], tmp_path: Path) -> None:
    finish("train", "--nodes", "5", "--split", "iid", "--rounds", "3", "--gate-rounds", "10", *words, "--out", str(tmp_path / "run"))
    accuracy = json.loads((tmp_path / "run" / "results.json").read_text())["accuracy"]
    assert accuracy["nmoe"]["global"] > 0.6  # every node has every class: about 0.9, a tenth by chance
    assert accuracy["nmoe"]["global"] <= accuracy["oracle_gate"]["global"]


def test_own_images_resume_from_another_folder_and_are_answered(tmp_path: Path) -> None:
    """A relative path of the data stays good for a resume elsewhere; a mesh answers unlabelled images of a file."""
    digits = load("digits").train
    np.savez(tmp_path / "own.npz", images=digits.images[:300, :, :, 0], labels=digits.labels[:300])
    np.savez(tmp_path / "new.npz", images=digits.images[300:304])
    words = ["train", "--data", "own.npz", "--nodes", "3", "--split", "iid", "--rounds", "2", "--gate-rounds", "2", "--out", "run"]
    process = start(*words, cwd=tmp_path)
    wait_for_round(tmp_path / "run", "features", 1, process)
    process.kill()
    process.communicate()
    finish("train", "--resume", str(tmp_path / "run"))
    with MeshProcesses(sorted((tmp_path / "run" / "bundles").iterdir()), mesh="own") as mesh:
        endpoint = mesh.nodes["node-0"].endpoint
        out = finish("infer", str(tmp_path / "new.npz"), "--count", "0", "--mesh", "own", "--connect", endpoint, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["image"] for row in rows] == [0, 1, 2, 3]
    assert all(row["truth"] is None and sum(row["experts"].values()) == pytest.approx(1) for row in rows)
