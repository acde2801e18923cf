"""The benchmark of the mesh: the reference computation, each system against it, and the rows that come out."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from nmoe.recipes.bench_mesh.base import System, Unavailable
from nmoe.recipes.bench_mesh.client import Client
from nmoe.recipes.bench_mesh.ffn import NUM_CHOSEN, FfnGate, local_moe, make_experts, make_inputs
from nmoe.recipes.bench_mesh.grpc_aio import GrpcSystem
from nmoe.recipes.bench_mesh.hivemind import HivemindSystem
from nmoe.recipes.bench_mesh.measure import as_rows, bench_mesh, measure
from nmoe.recipes.bench_mesh.module import ModuleSystem
from nmoe.recipes.bench_mesh.processes import cpu_clocks, cpu_seconds
from nmoe.recipes.bench_mesh.ray_serve import RaySystem
from nmoe.recipes.bench_mesh.rounds import Case, Footprint, Round
from nmoe.recipes.bench_mesh.systems import all_systems
from nmoe.recipes.bench_mesh.tcp import TcpSystem

HIDDEN = 16
METRICS = {"p50": "ms", "p99": "ms", "calls per second": "1/s", "samples per second": "1/s", "processor time per call": "ms", "calls": ""}
needs_grpc = pytest.mark.skipif(find_spec("grpc") is None, reason="grpcio is not installed")
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
PEER = os.environ.get("NMOE_BENCH_PEER")  # an interpreter that has hivemind
needs_peer = pytest.mark.skipif(PEER is None, reason="set NMOE_BENCH_PEER to an interpreter that has hivemind")


class BrokenSystem(System):
    """Starts a process that it cannot use."""

    name = "broken"

    def missing(self) -> str | None:
        return None

    async def start(self) -> None:
        raise Unavailable("out of luck")

    async def stop(self) -> None:
        return

    async def moe(self, x: Tensor) -> Tensor:
        raise AssertionError

    def server_pids(self) -> list[int]:
        return []


class WrongSystem(BrokenSystem):
    """Answers, but not what the mixture would."""

    name = "wrong"

    async def start(self) -> None:
        return

    async def moe(self, x: Tensor) -> Tensor:
        return local_moe(x) + 1e-4


class DyingSystem(BrokenSystem):
    """Right at first; a larger batch ends its process."""

    name = "dying"

    async def start(self) -> None:
        return

    async def moe(self, x: Tensor) -> Tensor:
        if len(x) == 7 and x.equal(make_inputs(7, self.hidden, 1)[0]):
            os._exit(9)
        return local_moe(x)


@pytest.mark.parametrize("batch", [1, 2, 33])
def test_local_moe_is_what_a_naive_loop_computes(batch):
    (x,) = make_inputs(batch, HIDDEN, 1)
    gate, experts = FfnGate(hidden=HIDDEN), make_experts(HIDDEN)
    expected = torch.zeros(batch, HIDDEN)
    with torch.no_grad():
        for row in range(batch):
            scores = gate.scores(x[row])
            chosen = sorted(range(4), key=lambda expert: -float(scores[expert]))[:NUM_CHOSEN]
            weights = torch.stack([scores[expert] for expert in chosen]).exp()
            for expert, weight in zip(chosen, weights / weights.sum(), strict=True):
                module = experts[expert]
                inner = x[row] @ module.ffn.weight.T + module.ffn.bias
                inner = 0.5 * inner * (1 + torch.tanh(inner * 0.7978845608 * (1 + 0.044715 * inner**2)))  # hivemind's gelu_fast
                outer = x[row] + inner @ module.ffn_output.weight.T + module.ffn_output.bias
                expected[row] += weight * (outer - outer.mean()) / outer.var(correction=0).sqrt()
    assert torch.allclose(local_moe(x), expected, atol=1e-5)


def test_one_share_per_chosen_expert():
    (x,) = make_inputs(33, HIDDEN, 1)
    plan = FfnGate(hidden=HIDDEN).plan(x)
    experts = [share.expert for share in plan.shares]
    assert experts == sorted(set(experts))
    assert sum(len(share.inputs) for share in plan.shares) == NUM_CHOSEN * len(x)
    assert torch.cat([share.inputs for share in plan.shares]).equal(x[plan.samples])


@pytest.mark.parametrize("make", [TcpSystem, pytest.param(GrpcSystem, marks=needs_grpc)])
def test_a_system_answers_as_the_local_mixture_and_ends_its_processes(make: Callable[[int], System]):
    system = make(HIDDEN)
    inputs = [make_inputs(batch, HIDDEN, 1)[0] for batch in (1, 33)]

    async def answers() -> tuple[list[Tensor], list[int]]:
        try:
            await system.start()
            return [await system.moe(inputs[0]), *await asyncio.gather(*(system.moe(x) for x in inputs))], system.server_pids()
        finally:
            await system.stop()

    outputs, pids = asyncio.run(answers())
    for x, output in zip([inputs[0], *inputs], outputs, strict=True):
        assert torch.allclose(output, local_moe(x), atol=1e-5)
    assert pids
    assert [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: RaySystem(HIDDEN), id="ray", marks=needs_ray),
        pytest.param(lambda: HivemindSystem(HIDDEN, interpreter=Path(PEER or "")), id="hivemind", marks=needs_peer),
    ],
)
def test_a_peer_answers_as_the_local_mixture_and_ends_its_processes(make: Callable[[], System]):
    with Client(make()) as client:
        assert client.start().num_processes > 1  # compares the outputs as well
        tree = psutil.Process().children(recursive=True)
        assert len(client.round(Case(batch=1, callers=2), 0.1).latencies_s) > 0
    _, alive = psutil.wait_procs(tree, timeout=2)
    assert alive == []


def test_the_benchmark_says_rows_and_whom_it_skipped():
    said: list[str] = []
    noted: list[str] = []
    cases = (Case(batch=1, callers=1), Case(batch=7, callers=3))

    def systems(peer: Path | None, hidden: int) -> list[System]:
        return [ModuleSystem(hidden), TcpSystem(hidden), HivemindSystem(hidden, interpreter=peer)]

    peer = Path("no/such/python")
    bench_mesh(
        peer=peer, as_json=True, say=said.append, note=noted.append, turns=2, seconds=0.05, hidden=[HIDDEN], cases=cases, systems=systems
    )
    (line,) = said
    result = json.loads(line)
    assert result["name"] == "mesh"
    assert result["skipped"] == [{"system": "hivemind", "reason": f"no interpreter {peer}"}]
    assert all(row.keys() == {"system", "case", "metric", "value", "unit"} for row in result["rows"])
    assert {row["system"] for row in result["rows"]} == {"module", "tcp"}
    for system in ("module", "tcp"):
        for case in ("hidden 16, batch 1, 1 caller", "hidden 16, batch 7, 3 callers"):
            rows = {row["metric"]: row for row in result["rows"] if (row["system"], row["case"]) == (system, case)}
            assert {metric: row["unit"] for metric, row in rows.items()} == METRICS
            assert all(row["value"] > 0 for row in rows.values())
            assert rows["p50"]["value"] <= rows["p99"]["value"]
    footprint = {row["metric"] for row in result["rows"] if (row["system"], row["case"]) == ("tcp", "hidden 16")}
    assert footprint == {"start-up", "first call", "server memory", "server processes"}


def test_the_tables_name_every_system_and_the_ratio_to_the_reference():
    said: list[str] = []
    cases = (Case(batch=1, callers=1),)

    def systems(peer: Path | None, hidden: int) -> list[System]:
        return [TcpSystem(hidden), HivemindSystem(hidden, interpreter=peer)]

    bench_mesh(
        peer=Path("none"), as_json=False, say=said.append, note=said.append, turns=1, seconds=0.05, hidden=[8], cases=cases, systems=systems
    )
    (row,) = [line.split() for line in said[said.index("hidden 8, batch 1, 1 caller") :] if line.startswith("  tcp")]
    assert row[2] == "1.00"
    assert said[-1] == "hivemind: skipped, no interpreter none"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(BrokenSystem, "out of luck"), (WrongSystem, "its output is off by 1.0e-04 at batch 1"), (DyingSystem, "it ended with status 9")],
)
def test_a_system_that_fails_is_skipped_with_its_reason(kind: type[System], reason: str, monkeypatch: pytest.MonkeyPatch):
    # The client process imports the class by name; pytest's import mode gives this file a name that only pytest knows.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(kind, "__module__", Path(__file__).stem)
    measured = measure([kind(HIDDEN), ModuleSystem(HIDDEN)], (Case(batch=7, callers=1),), 1, 0.05, note=lambda text: None)
    assert reason in measured.skipped[kind.name]
    assert "\n" not in measured.skipped[kind.name]
    assert [name for name, _ in measured.rounds if measured.rounds[name, _]] == ["module"]


def test_rows_are_of_the_quieter_half():
    measured = measure([], (), 1, 0.1, note=lambda text: None)
    assert as_rows(measured, 1) == []
    quiet, loud = ([0.001] * 100, [0.003] * 100)
    measured.footprints["x"] = Footprint(start_s=1.0, first_call_s=0.002, server_bytes=2**20, num_processes=1)
    measured.rounds["x", Case(batch=4, callers=1)] = [
        Round(latencies_s=latencies, wall_s=sum(latencies), cpu_s=0.1) for latencies in (loud, quiet, loud, quiet)
    ]
    values = {row["metric"]: row["value"] for row in as_rows(measured, 1)}
    assert values["p50"] == pytest.approx(1)
    assert values["samples per second"] == pytest.approx(4000)
    assert values["processor time per call"] == pytest.approx(1)
    assert values["calls"] == 200
    assert values["server memory"] == 1


def test_processor_time_of_a_process_is_counted_finely():
    before = cpu_clocks([os.getpid(), 2**22 + 1])
    began = time.process_time()
    while time.process_time() - began < 0.02:
        pass
    assert 0.02 <= cpu_seconds(before) < 0.2


def test_nothing_survives_a_benchmark_that_is_interrupted():
    script = (
        "from nmoe.recipes.bench_mesh.measure import bench_mesh; from nmoe.recipes.bench_mesh.tcp import TcpSystem;"
        "bench_mesh(peer=None, as_json=True, say=print, note=lambda t: print(t, flush=True), turns=9, seconds=0.3,"
        "systems=lambda peer, hidden: [TcpSystem(hidden)])"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    while "turn 2" not in process.stdout.readline():
        assert process.poll() is None
    tree = below(process.pid, "bench_mesh")
    assert len(tree) == 2  # the client and its server
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert [child for child in tree if child.is_running()] == []


def test_too_little_is_refused():
    with pytest.raises(ValueError, match="turns must be at least 1"):
        bench_mesh(peer=None, as_json=True, say=print, note=print, turns=0)


def test_every_system_has_a_name_of_its_own():
    names = [system.name for system in all_systems(None, HIDDEN)]
    assert len(set(names)) == len(names)
    assert "tcp" in names


def below(pid: int, word: str) -> list[psutil.Process]:
    """Return the processes below one whose command line contains a word."""
    return [process for process in psutil.Process(pid).children(recursive=True) if any(word in part for part in process.cmdline())]
