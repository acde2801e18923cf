"""Measures streaming: time against download-then-infer and against the paper's recursion, cost when the file is here, and memory.

The link is a paced file server on loopback, set so that downloading the weights takes as long as computing one call on one thread. Each
measurement has its own process; ways take turns, and medians are reported. The recursion knows nothing of opening, that is of building the
model and asking for the file's header, which downloading first needs as well: it is added to what is predicted.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nmoe.core.errors import EngineError
from nmoe.recipes.bench_deliver.cases import CASES

START_S, JOB_S = 30.0, 600.0


def predict(num_bytes: Mapping[str, int], touched_s: Mapping[str, float], bytes_per_s: float) -> float:
    """Return when the last layer ends by the recursion t_l = max(downloaded_l, t_{l-1}) + T_l, counted from the first byte of the data.

    Args:
        num_bytes: of each weight, in the order in which weights are touched.
        touched_s: when each is touched in a first call that waits for nothing, and under "" when the call ends.
        bytes_per_s: of the link.
    """
    names, downloaded_s, ended_s = list(num_bytes), 0.0, 0.0
    for name, following in zip(names, [*names[1:], ""], strict=True):
        downloaded_s += num_bytes[name] / bytes_per_s
        ended_s = max(downloaded_s, ended_s) + touched_s[following] - touched_s[name]
    return ended_s


def bench_deliver(
    *, models: Sequence[str], turns: int, as_json: bool, say: Callable[[str], None], note: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure, and print a table, or JSON with ``name, machine, rows``.

    Args:
        models: names of ``CASES``.
        turns: how often each way is measured, at least 1.
        as_json: JSON instead of a table.
        say: prints a line.
        note: tells how far it is.

    Returns:
        The rows.

    Raises:
        ValueError: when a model is not known, or ``turns`` is too small.
        EngineError: when a process fails.
    """
    if unknown := sorted(set(models) - set(CASES)):
        raise ValueError(f"models out of {', '.join(CASES)} wanted, got {unknown[0]}")
    if turns < 1:
        raise ValueError(f"turns must be at least 1, got {turns}")
    rows: list[dict[str, Any]] = []
    if not as_json:
        say(f"{'model':<14}{'metric':<58}{'value':>10}  target")
    with tempfile.TemporaryDirectory(prefix="nmoe-bench-deliver-") as name:
        for model in models:
            found = _rows(model, _measure(model, Path(name), turns, note))
            rows += found
            if not as_json:  # at once: all models together take a while
                for row in found:
                    say(f"{row['case']:<14}{row['metric']:<58}{row['value']:>10.3f}  {row['target']}")
    if as_json:
        machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        say(json.dumps({"name": "deliver", "machine": machine, "rows": rows}))
    return rows


def _measure(model: str, folder: Path, turns: int, note: Callable[[str], None]) -> dict[str, Any]:
    """Return everything measured of one model."""
    num_bytes = _job("write", model, folder)["bytes"]
    layers = sorted((_job("layers", model, folder) for _ in range(3)), key=lambda run: float(run["compute_s"]))[1]
    rate = num_bytes / layers["compute_s"]
    note(f"{model}: {num_bytes / 1e6:.0f} MB, {layers['compute_s']:.2f} s of computing, so a link of {rate / 1e6:.1f} MB/s")
    ways: dict[str, list[dict[str, Any]]] = {"traced": [], "card": [], "downloaded": []}
    with _served(folder, rate) as url:
        for turn in range(turns):
            for way, runs in ways.items():
                card = folder / model / "model.safetensors.card.json"
                if way == "card":
                    _job("pack", model, folder)
                runs.append(_job(way, model, folder, url=url))
                card.unlink(missing_ok=True)
            ways["card"][-1]["layers"] = _job("layers", model, folder)
            note(f"{model}: turn {turn + 1} of {turns}: " + ", ".join(f"{way} {runs[-1]['total_s']:.2f} s" for way, runs in ways.items()))
    with _served(folder, float("inf")) as url:
        memory = {way: _job(f"memory {way}", model, folder, url=url) for way in ("empty", "plain", "traced")}
        _job("pack", model, folder)
        memory["card"] = _job("memory card", model, folder, url=url)
        local = _job("local", model, folder, url=url, turns=max(3, turns))
    return {"layers": layers, "rate": rate, "ways": ways, "memory": memory, "local": local}


def _rows(model: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a model's rows: what was measured, beside its target."""
    ways, rate = found["ways"], found["rate"]
    middle = {way: statistics.median(run["total_s"] for run in runs) for way, runs in ways.items()}
    ratios = {
        way: statistics.median(run["total_s"] / late["total_s"] for run, late in zip(ways[way], ways["downloaded"], strict=True))
        for way in ("card", "traced")
    }
    predicted = [predict(run["layers"]["bytes"], run["layers"]["touched_s"], rate) for run in ways["card"]]
    errors = [run["total_s"] / ended_s - 1 for run, ended_s in zip(ways["card"], predicted, strict=True)]
    started = [run["total_s"] / (run["opened_s"] + ended_s) - 1 for run, ended_s in zip(ways["card"], predicted, strict=True)]
    plain = found["local"]["seconds"]["plain"]
    overheads = {
        way: statistics.median(here / there for here, there in zip(found["local"]["seconds"][way], plain, strict=True)) - 1
        for way in ("cache", "offline")
    }
    empty_bytes = found["memory"]["empty"]["peak_bytes"]
    memory = {way: (facts["peak_bytes"] - empty_bytes) / facts["model_bytes"] for way, facts in found["memory"].items()}
    rows = [
        ("computing one call, weights here", found["layers"]["compute_s"], "s", ""),
        ("rate of the link", rate / 1e6, "MB/s", ""),
        ("download first, then infer", middle["downloaded"], "s", ""),
        ("streamed, order from the card", middle["card"], "s", ""),
        ("streamed, order traced", middle["traced"], "s", ""),
        ("streamed / download first, order from the card", ratios["card"], "ratio", "<= 0.68"),
        ("streamed / download first, order traced", ratios["traced"], "ratio", "<= 0.68"),
        ("predicted by the recursion", statistics.median(predicted), "s", ""),
        ("measured / (opening + predicted) - 1", statistics.median(started), "ratio", "within 0.10"),
        ("measured / predicted - 1, building the model included", statistics.median(errors), "ratio", ""),
        ("file in the cache, server asked: time / plain loading - 1", overheads["cache"], "ratio", "<= 0.03"),
        ("file in the cache, offline: time / plain loading - 1", overheads["offline"], "ratio", "<= 0.03"),
        ("peak memory above that without weights / weights, card", memory["card"], "ratio", "<= 1.1"),
        ("peak memory above that without weights / weights, traced", memory["traced"], "ratio", "<= 1.1"),
        ("peak memory above that without weights / weights, plain", memory["plain"], "ratio", ""),
    ]
    return [
        {"system": "nmoe deliver", "case": model, "metric": metric, "value": value, "unit": unit, "target": target}
        for metric, value, unit, target in rows
    ]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _job(job: str, model: str, folder: Path, *, url: str = "-", turns: int = 0) -> Any:
    """Run one measurement in a process of its own."""
    command = [sys.executable, "-m", "nmoe.recipes.bench_deliver.work", job, model, str(folder), url, str(turns)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=JOB_S, env=_environment(), check=False)
    if done.returncode:
        raise EngineError(f"measuring {job} of {model} failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return json.loads(done.stdout)


@contextmanager
def _served(folder: Path, bytes_per_s: float) -> Iterator[str]:
    """Serve a folder at a rate; yields its address."""
    command = [sys.executable, "-m", "nmoe.recipes.bench_deliver.shaped_server", str(folder), str(bytes_per_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environment()) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()
