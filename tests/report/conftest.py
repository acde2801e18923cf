"""Made-up run folders with the shape of real ones."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ACCURACY = {
    "own_expert": (0.987, 0.204),
    "random_uniform": (0.311, 0.262),
    "all_uniform": (0.612, 0.588),
    "nmoe": (0.972, 0.958),
    "oracle_gate": (0.996, 0.991),
    "fedavg": (0.931, 0.929),
    "central_moe": (0.975, 0.969),
}


def results(*, serving: bool, channel: bool = False) -> dict[str, Any]:
    """What results.json holds."""
    whole: dict[str, Any] = {
        "data": "digits",
        "nodes": 10,
        "split": "shards:2",
        "k": 2,
        "seed": 7,
        "accuracy": {name: {"local": local, "global": overall} for name, (local, overall) in ACCURACY.items()},
        "privacy": {"epsilon": None, "delta": None, "mechanism": "none: no --dp-epsilon was given"},
        "communication": {"train_bytes": {"features": 14_880_000, "experts": 0, "gates": 880_500}},
        "seconds": {"features": 19.2, "experts": 1.83, "gates": 8.04},
    }
    if serving:
        whole["communication"]["infer_bytes_per_sample"] = 1684.5
        whole["serving"] = {"requests": 1000, "answered": 999, "p50_ms": 4.18, "p99_ms": 17.3, "agreement": 0.985}
    if channel:
        whole["channel"] = {"fading": "rayleigh", "snr_db": [-10.0, 20.0], "transmission": "analog", "gate": "additive", "versions": 8}
        whole["accuracy"] |= {"naive_gate": {"local": 0.91, "global": 0.902}, "perfect_links": {"local": 0.98, "global": 0.97}}
        whole["communication"]["train_bytes"] |= {"naive_gates": 8_000_000, "fedavg": 1_000_000}
        if serving:
            whole["serving"] |= {"agreement": 1.0, "accuracy": 0.951, "simulated": 0.9587, "simulated_error": 0.0119}
    return whole


def rounds() -> list[dict[str, Any]]:
    """The lines of metrics.jsonl: four stages, one refused update."""

    def line(stage: str, number: int, last: int, count: int, **metrics: float) -> dict[str, Any]:
        reasons = ["node-3: NaN in conv1.weight"] if (stage, number) == ("features", 2) else []
        common = {"stage": stage, "round": number, "rounds": last, "seconds": 0.8, "bytes": count}
        return {**common, "refused": reasons, "metrics": metrics}

    return [
        *(line("features", i, 12, 1_240_000, loss=3 - i / 12, knn=0.95 - 0.6 * math.exp(-i / 3)) for i in range(1, 13)),
        line("experts", 1, 1, 0, own_local=0.987),
        *(line("gates", i, 5, 176_100, nmoe_global=0.958 - 0.5 * math.exp(-i), nmoe_local=0.97) for i in range(1, 6)),
        *(line("fedavg", i, 24, 1_220_000, fedavg_global=0.93 - 0.8 * math.exp(-i / 8)) for i in range(1, 25)),
    ]


def serving(nodes: int, classes: int) -> dict[str, Any]:
    """What serving.json holds: experts answer mostly for the two classes they saw."""
    random = np.random.default_rng(0)
    seen = [sorted({node % classes, (node + 1) % classes}) for node in range(nodes)]
    choice = random.dirichlet(np.full(nodes, 0.2), size=classes)
    for node, numbers in enumerate(seen):
        choice[numbers, node] += 1.0
    asked = 0.4 * np.eye(nodes) + 0.6 * random.dirichlet(np.full(nodes, 0.3), size=nodes)
    return {
        "experts": [f"node-{node}" for node in range(nodes)],
        "classes": [str(number) for number in range(classes)],
        "latency_ms": np.exp(random.normal(1.43, 0.45, 500)).tolist(),
        "choice_by_class": (choice / choice.sum(1, keepdims=True)).tolist(),
        "asked": asked.tolist(),
        "classes_seen": seen,
    }


@pytest.fixture
def make_results() -> Callable[..., dict[str, Any]]:
    """Return the function that makes what results.json holds."""
    return results


Writer = Callable[..., Path]


@pytest.fixture(scope="session")
def write_run(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    """Return a function that writes a new run folder named demo; keyword arguments change sizes and options."""

    def write(*, served: bool = True, nodes: int = 10, classes: int = 10, config: dict[str, Any] | None = None) -> Path:
        folder = tmp_path_factory.mktemp("runs") / "demo"
        folder.mkdir()
        options = {"command": "nmoe demo --seed 7", "data": "digits", "seed": 7, "dp_epsilon": None, "gate": "fedgate"}
        (folder / "config.json").write_text(json.dumps(options | (config or {})))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rounds()))
        (folder / "results.json").write_text(json.dumps(results(serving=served)))
        if served:
            (folder / "serving.json").write_text(json.dumps(serving(nodes, classes)))
        return folder

    return write
