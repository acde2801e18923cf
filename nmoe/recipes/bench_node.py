"""Benchmark of serving: what a node costs and how a mesh behaves, with real processes on this machine.

Start-up, memory, joining, how soon a killed or frozen node is out of the others' plans, what HTTP adds, what becomes of twice the load that
can be served, and, if asked for, a soak. Answers are those of the bundles given; times are of this machine and what else runs on it.
"""

import asyncio
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nmoe.core.bundle import read_card
from nmoe.core.errors import MeshBusy, MeshError, NmoeError
from nmoe.node import Mesh, MeshProcesses, NodeView, free_ports
from nmoe.recipes.serve import bundle_folders

DEADLINE_S = 1.0
STARTS, CALLS = 5, 300
LOAD_S, IN_FLIGHT, RAMP = 6.0, 64, 1.25
SOAK_SHARE, SAMPLE_S = 0.7, 5.0
WATCH_S = 5.0  # how long to wait for a node to leave the others' plans

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What came of some seconds of requests."""

    offered: int
    answered: int
    busy: int
    failed: int
    seconds: float
    latencies_s: Sequence[float]

    @property
    def goodput(self) -> float:
        """Requests answered per second."""
        return self.answered / self.seconds


def bench_node(run: Path, *, soak_s: float, as_json: bool, say: Callable[[str], None], note: Callable[[str], None]) -> None:
    """Measure a mesh of a run's bundles and print the table, or JSON with ``name, machine, rows``.

    Args:
        run: run folder with bundles of at least three nodes.
        soak_s: seconds at 70 % of capacity; 0 for no soak.
        as_json: JSON instead of a table.
        say: prints a line of the result.
        note: prints a line of progress.

    Raises:
        ValueError: when there are too few bundles, or ``soak_s`` is negative.
        MeshError: when the mesh does not come up.
    """
    bundles = bundle_folders(run)
    if len(bundles) < 3:
        raise ValueError(f"at least three bundles are wanted, {run} has {len(bundles)}")
    if soak_s < 0:
        raise ValueError(f"soak must be at least 0 s, got {soak_s}")
    note("start-up")
    rows = start_up(bundles[0])
    images = torch.randint(0, 256, (64, *read_card(bundles[0]).image_shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with MeshProcesses(bundles, http="127.0.0.1:0") as mesh:
        seeds = [node.endpoint for node in mesh.nodes.values()]
        note("latency, HTTP")
        rows += asyncio.run(_latency(mesh, seeds, images))
        note("load")
        rows += asyncio.run(_overload(mesh, seeds, images))
        if soak_s:
            note(f"soak of {soak_s:g} s")
            rows += asyncio.run(_soak(mesh, seeds, images, soak_s))
        note("a node is killed, another frozen")
        rows += asyncio.run(_losses(mesh, seeds))
    note("a node joins")
    rows += _joining(bundles, images)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    if as_json:
        say(json.dumps({"name": "node", "machine": machine, "rows": rows}))
        return
    for one in rows:
        say(f"{one['case']:<34}{one['metric']:<38}{one['value']:>12,.3f} {one['unit']}")


def row(case: str, metric: str, value: float, unit: str) -> Row:
    """Return one row of the result."""
    return {"system": "nmoe", "case": case, "metric": metric, "value": value, "unit": unit}


def start_up(bundle: Path) -> list[Row]:
    """Start a node by itself some times; its own word says when it is ready."""
    taken, memory = [], []
    for _ in range(STARTS):
        endpoint = f"tcp/127.0.0.1:{free_ports(1)[0]}"
        command = [sys.executable, "-m", "nmoe", "node", str(bundle), "--mesh", "start", "--listen", endpoint, "--exit-with-parent"]
        began_s = time.perf_counter()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            if not process.stdout.readline().startswith("ready"):
                raise MeshError(f"{bundle} did not start")
            taken.append(time.perf_counter() - began_s)
            memory.append(pss_bytes(process.pid))
            process.stdin.close()
    return [
        row("one node", "median seconds until ready", statistics.median(taken), "s"),
        row("one node", "memory (PSS)", statistics.median(memory) / 2**20, "MiB"),
    ]


def pss_bytes(pid: int) -> int:
    """Return a process's proportional set size."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


async def _latency(mesh: MeshProcesses, seeds: Sequence[str], images: Tensor) -> list[Row]:
    """Ask one node by turns over the mesh and over HTTP."""
    name = next(iter(mesh.nodes))
    address = mesh.await_http(name)
    connection = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"))
    body = json.dumps(
        {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, *images.shape[1:]], "data": images[0].flatten().tolist()}]}
    )
    direct, over_http = [], []
    async with Mesh.connect(mesh.mesh, seeds) as client:
        await client.wait_for(len(seeds))
        for number in range(CALLS + 20):
            began_s = time.perf_counter()
            await client.infer(images[:1], deadline_s=DEADLINE_S, node=name)
            middle_s = time.perf_counter()
            connection.request("POST", "/v2/models/nmoe/infer", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            said = response.read()
            if response.status != 200:
                raise NmoeError(f"HTTP answered {response.status}: {said.decode()[:200]}")
            if number >= 20:
                direct.append(middle_s - began_s)
                over_http.append(time.perf_counter() - middle_s)
    connection.close()
    p50, p50_http = statistics.median(direct), statistics.median(over_http)
    return [
        row("batch 1, one caller", "p50 over the mesh", 1000 * p50, "ms"),
        row("batch 1, one caller", "p99 over the mesh", 1000 * percentile(direct, 0.99), "ms"),
        row("batch 1, one caller", "p50 over HTTP", 1000 * p50_http, "ms"),
        row("batch 1, one caller", "HTTP adds to p50", 1000 * (p50_http - p50), "ms"),
    ]


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile, by rank."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def closed_loop(client: Mesh, images: Tensor, *, callers: int, seconds: float) -> Load:
    """Let callers ask as fast as they are answered."""
    counts = {"answered": 0, "busy": 0, "failed": 0}
    latencies: list[float] = []
    until_s = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        while time.perf_counter() < until_s:
            await _ask(client, images[number % len(images)][None], counts, latencies)

    began_s = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    return Load(offered=sum(counts.values()), seconds=time.perf_counter() - began_s, latencies_s=latencies, **counts)


async def open_loop(client: Mesh, images: Tensor, *, per_s: float, seconds: float, tick_s: float = 0.002) -> Load:
    """Send so many requests a second, whatever comes back."""
    counts = {"answered": 0, "busy": 0, "failed": 0}
    latencies: list[float] = []
    began_s = time.perf_counter()
    tasks: set[asyncio.Task[None]] = set()
    sent = 0
    while (passed_s := time.perf_counter() - began_s) < seconds:
        while sent < passed_s * per_s:
            task = asyncio.create_task(_ask(client, images[sent % len(images)][None], counts, latencies))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
        await asyncio.sleep(tick_s)
    if tasks:
        await asyncio.wait(tasks, timeout=2 * DEADLINE_S)
    return Load(offered=sent, seconds=time.perf_counter() - began_s, latencies_s=latencies, **counts)  # what still waited, and its time


async def find_peak(client: Mesh, images: Tensor) -> Load:
    """Return the load of most answers per second: what callers in a loop reach, and then more and more until it does not help."""
    await closed_loop(client, images, callers=IN_FLIGHT, seconds=1.0)
    best = await closed_loop(client, images, callers=IN_FLIGHT, seconds=LOAD_S / 2)
    per_s = best.goodput
    while True:
        per_s *= RAMP
        load = await open_loop(client, images, per_s=per_s, seconds=LOAD_S / 2)
        if load.goodput > best.goodput:
            best = load
        if load.goodput < 0.95 * per_s:
            return best


async def _ask(client: Mesh, image: Tensor, counts: dict[str, int], latencies: list[float]) -> None:
    began_s = time.perf_counter()
    names = client.nodes()
    try:
        await client.infer(image, deadline_s=DEADLINE_S, node=names[int(began_s * 1e6) % len(names)])
    except MeshBusy:
        counts["busy"] += 1
        return
    except MeshError:
        counts["failed"] += 1
        return
    counts["answered"] += 1
    latencies.append(time.perf_counter() - began_s)


async def _overload(mesh: MeshProcesses, seeds: Sequence[str], images: Tensor) -> list[Row]:
    async with Mesh.connect(mesh.mesh, seeds) as client:
        await client.wait_for(len(seeds))
        peak = await find_peak(client, images)
        twice = await open_loop(client, images, per_s=2 * peak.goodput, seconds=LOAD_S)
    return [
        row("peak", "answered per second", peak.goodput, "1/s"),
        row("peak", "p99", 1000 * percentile(peak.latencies_s, 0.99), "ms"),
        row("twice the peak offered", "goodput over peak", twice.goodput / peak.goodput, ""),
        row("twice the peak offered", "told busy", twice.busy / twice.offered, ""),
        row("twice the peak offered", "neither answered nor told busy", (twice.offered - twice.answered - twice.busy) / twice.offered, ""),
        row("twice the peak offered", "p99 of the answered", 1000 * percentile(twice.latencies_s, 0.99), "ms"),
    ]


async def _soak(mesh: MeshProcesses, seeds: Sequence[str], images: Tensor, seconds: float) -> list[Row]:
    """Load the mesh to 70 % of what it can take, and watch its memory."""
    pids = [node.pid for node in mesh.nodes.values()]
    memory: list[int] = []
    async with Mesh.connect(mesh.mesh, seeds) as client:
        await client.wait_for(len(seeds))
        peak = await find_peak(client, images)

        async def sample() -> None:
            while True:
                await asyncio.sleep(SAMPLE_S)
                memory.append(sum(pss_bytes(pid) for pid in pids))

        sampling = asyncio.create_task(sample())
        load = await open_loop(client, images, per_s=SOAK_SHARE * peak.goodput, seconds=seconds)
        sampling.cancel()
    settled = memory[max(1, len(memory) // 10) :]  # the first tenth fills pools and buffers
    return [
        row("soak at 70 %", "requests", load.offered, ""),
        row("soak at 70 %", "errors", load.failed, ""),
        row("soak at 70 %", "told busy", load.busy, ""),
        row("soak at 70 %", "memory at the end over after a tenth", settled[-1] / settled[0], ""),
        row("soak at 70 %", "most over least memory", max(settled) / min(settled), ""),
        row("soak at 70 %", "p99", 1000 * percentile(load.latencies_s, 0.99), "ms"),
    ]


async def _losses(mesh: MeshProcesses, seeds: Sequence[str]) -> list[Row]:
    killed, frozen = list(mesh.nodes)[-2:]
    rows = []
    async with Mesh.connect(mesh.mesh, seeds[:1]) as client:
        await client.wait_for(len(seeds))
        for name, strike, what in ((killed, mesh.kill, "killed"), (frozen, mesh.freeze, "frozen")):
            others = [other for other in mesh.nodes if other not in (killed, frozen)]
            began_s = time.perf_counter()
            strike(name)
            await _until(client, others, partial(_without, name))
            rows.append(row(f"a node is {what}", "seconds until out of all plans", time.perf_counter() - began_s, "s"))
    return rows


def _joining(bundles: Sequence[Path], images: Tensor) -> list[Row]:
    """Start a mesh without its last node; then that one, and see how soon it is asked."""
    with MeshProcesses(bundles[:-1]) as mesh:
        seeds = [node.endpoint for node in mesh.nodes.values()]
        name = read_card(bundles[-1]).node
        endpoint = f"tcp/127.0.0.1:{free_ports(1)[0]}"
        command = [sys.executable, "-m", "nmoe", "node", str(bundles[-1]), "--mesh", mesh.mesh, "--listen", endpoint, "--exit-with-parent"]
        with subprocess.Popen([*command, "--connect", seeds[0]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            began_s = time.perf_counter()
            taken = asyncio.run(_until_asked(mesh, seeds, name, images)) - began_s
            process.stdin.close()
    return [row("a node joins", "seconds from its start of serving to its first routed call", taken, "s")]


async def _until_asked(mesh: MeshProcesses, seeds: Sequence[str], name: str, images: Tensor) -> float:
    until_s = time.perf_counter() + WATCH_S
    async with Mesh.connect(mesh.mesh, seeds[:1]) as client:
        await client.wait_for(len(seeds))
        while time.perf_counter() < until_s:
            for node in mesh.nodes:
                reply = await client.infer(images, deadline_s=DEADLINE_S, node=node)
                if name in {reply.names[index] for index in reply.experts.flatten().tolist() if index >= 0}:
                    return time.perf_counter()
    raise MeshError(f"{name} was not asked within {WATCH_S:g} s of joining")


def _without(name: str, view: NodeView) -> bool:
    return all(link.state != "up" for link in view.links if link.peer == name)


async def _until(client: Mesh, nodes: Sequence[str], holds: Callable[[NodeView], bool]) -> None:
    """Wait until something holds in every node's view."""
    until_s = time.perf_counter() + WATCH_S
    left = list(nodes)
    while left:
        if time.perf_counter() > until_s:
            raise MeshError(f"{', '.join(left)} did not notice within {WATCH_S:g} s")
        views = await asyncio.gather(*(client.status(name) for name in left))
        left = [view.node for view in views if not holds(view)]
        await asyncio.sleep(0.005)
