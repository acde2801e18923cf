"""The life of a run over noisy links, through the command line: trained, killed and resumed, and served by real processes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

SMALL = ["--nodes", "4", "--split", "shards:3", "--rounds", "1", "--gate-rounds", "12", "--gate-sync", "trunk"]
NOISY = ["--channel", "rayleigh", "--snr", "-10:20", "--channel-gate", "joint"]


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "nmoe", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


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
    finish("train", *SMALL, *NOISY, "--out", str(run))
    return run


def test_results_say_what_the_channel_cost_and_what_seeing_it_was_worth(whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text())
    assert results["channel"] == {
        "fading": "rayleigh",
        "snr_db": [-10, 20],
        "transmission": "analog",
        "gate": "joint",
        "collapse_weight": 0.01,
        "clean_rounds": 3,
        "versions": 8,
    }
    accuracy = results["accuracy"]
    assert {"own_expert", "naive_gate", "nmoe", "perfect_links", "oracle_gate", "fedavg", "central_moe"} <= accuracy.keys()
    assert max(accuracy[name]["global"] for name in ("naive_gate", "nmoe")) <= accuracy["oracle_gate"]["global"]
    assert {"gates", "naive_gates"} <= results["communication"]["train_bytes"].keys()
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert not any(line["refused"] for line in lines)
    last = {line["stage"]: line["metrics"] for line in lines}
    assert last["gates"]["nmoe_global"] == pytest.approx(accuracy["nmoe"]["global"])  # the same blocks
    assert last["naive_gates"]["naive_global"] == pytest.approx(accuracy["naive_gate"]["global"])
    report = (whole / "report.html").read_text()
    assert "over noisy links" in report
    assert "naive gate, SNR hidden" in report


@pytest.mark.slow  # tests/federate/test_federate_contract.py kills stages over links in one process
@pytest.mark.parametrize(("stage", "round"), [("gates", 2), ("gates", 6), ("naive_gates", 5)])
def test_killed_and_resumed_is_bit_identical(stage: str, round: int, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("train", *SMALL, *NOISY, "--out", str(run))
    wait_for_round(run, stage, round, process)
    process.kill()
    process.communicate()
    finish("train", "--resume", str(run))
    assert weights(run) == weights(whole)
    resumed, uninterrupted = (json.loads((folder / "results.json").read_text()) for folder in (run, whole))
    assert resumed["accuracy"] == uninterrupted["accuracy"]
    assert resumed["communication"] == uninterrupted["communication"]


def test_a_mesh_over_noisy_links_answers_as_its_simulation_expects(tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish("demo", *SMALL, "--gate-rounds", "30", "--channel", "rayleigh", "--snr", "-15:10", "--out", str(run))
    serving = json.loads((run / "results.json").read_text())["serving"]
    assert serving["requests"] == serving["answered"] == 359
    assert serving["agreement"] == 1.0  # what crossed no link
    assert abs(serving["accuracy"] - serving["simulated"]) <= 4 * serving["simulated_error"]
