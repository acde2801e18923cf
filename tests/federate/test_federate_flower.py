"""Flower's Ray simulation against the in-process engine: one algorithm, two engines, the same bits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SMALL = ["--nodes", "3", "--split", "shards:4", "--rounds", "1", "--gate-rounds", "2", "--gate-sync", "trunk"]
NOISY = ["--channel", "rayleigh", "--snr", "-10:20", "--transmission", "digital"]


def train(engine: str, words: list[str], out: Path) -> list[dict]:
    """Train in a process of its own, as a user would: Ray's daemons must not outlive the test or share its process."""
    command = [sys.executable, "-m", "nmoe", "train", *SMALL, *words, "--engine", engine, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow  # Ray takes a minute to start and end; test_federate_deployment.py holds Flower to the local run in one process
@pytest.mark.parametrize("words", [pytest.param([], id="perfect-links"), pytest.param(NOISY, id="noisy-links")])
def test_ray_and_local_give_bit_identical_weights_and_byte_counts(words: list[str], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra 'flower' is not installed")
    local, ray = (train(engine, words, tmp_path / engine) for engine in ("local", "ray"))
    assert [line["bytes"] for line in local] == [line["bytes"] for line in ray]
    assert not any(line["refused"] for line in local + ray)
    assert [line["metrics"] for line in local] == [line["metrics"] for line in ray]
    files = sorted(path.relative_to(tmp_path / "local") for path in (tmp_path / "local").rglob("*.safetensors"))
    assert len(files) >= 5 + 3 * 3  # five stages, three parts of three bundles
    for file in files:
        first, second = load_file(tmp_path / "local" / file), load_file(tmp_path / "ray" / file)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), file
