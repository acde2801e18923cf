"""One round of measurement, in a client process: a closed loop of one or more callers for about a second."""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from nmoe.recipes.bench_mesh.base import SyncSystem, System, Unavailable
from nmoe.recipes.bench_mesh.ffn import LocalMoe, make_inputs
from nmoe.recipes.bench_mesh.processes import cpu_clocks, cpu_seconds, descendants, pss_bytes

NUM_INPUTS, WARM_CALLS = 8, 3
TOLERANCE = 1e-5
CHECKED_BATCHES = (1, 33, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is asked: samples in a call, and callers that each wait for an answer before they ask again."""

    batch: int
    callers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What was seen: seconds of each call, of the whole round, and of the processors of client and servers."""

    latencies_s: Sequence[float]
    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What it takes to be there: from ``start`` to ready, then the first call, then memory after the check of the outputs."""

    start_s: float
    first_call_s: float
    server_bytes: int
    num_processes: int


def start(runner: asyncio.Runner, system: System) -> Footprint:
    """Start a system and check its outputs against the local mixture.

    Raises:
        Unavailable: when it does not start or answers wrongly.
    """
    began = time.perf_counter()
    runner.run(system.start())
    start_s = time.perf_counter() - began
    (first,) = make_inputs(1, system.hidden, 1)
    began = time.perf_counter()
    runner.run(system.moe(first))
    first_call_s = time.perf_counter() - began
    runner.run(_check(system))
    servers = {pid for root in system.server_pids() for pid in descendants(root)}
    memory = pss_bytes(system.server_pids())
    return Footprint(start_s=start_s, first_call_s=first_call_s, server_bytes=memory, num_processes=len(servers))


def measure_round(runner: asyncio.Runner, system: System, case: Case, seconds: float) -> Round:
    """Measure one round; one caller of a ``SyncSystem`` uses its plain function.

    Args:
        runner: holds the loop in which the system was started.
        system: a started system.
        case: what to ask.
        seconds: no call begins later than this, positive.
    """
    inputs = make_inputs(case.batch, system.hidden, NUM_INPUTS)
    before = cpu_clocks(descendants(os.getpid()))
    if case.callers == 1 and isinstance(system, SyncSystem):
        _call_in_turn(system, inputs, WARM_CALLS)
        before = cpu_clocks(before)
        began = time.perf_counter()
        latencies = _sync_loop(system, inputs, began + seconds)
    else:
        runner.run(_warm(system, inputs))
        before = cpu_clocks(before)
        began = time.perf_counter()
        latencies = runner.run(_async_loop(system, inputs, case.callers, began + seconds))
    return Round(latencies_s=latencies, wall_s=time.perf_counter() - began, cpu_s=cpu_seconds(before))


def _call_in_turn(system: SyncSystem, inputs: Sequence[Tensor], calls: int) -> None:
    for number in range(calls):
        system.call(inputs[number % len(inputs)])


async def _warm(system: System, inputs: Sequence[Tensor]) -> None:
    for x in inputs[:WARM_CALLS]:
        await system.moe(x)


def _sync_loop(system: SyncSystem, inputs: Sequence[Tensor], until: float) -> list[float]:
    latencies: list[float] = []
    while (began := time.perf_counter()) < until:
        system.call(inputs[len(latencies) % len(inputs)])
        latencies.append(time.perf_counter() - began)
    return latencies


async def _async_loop(system: System, inputs: Sequence[Tensor], callers: int, until: float) -> list[float]:
    latencies: list[float] = []

    async def caller() -> None:
        while (began := time.perf_counter()) < until:
            await system.moe(inputs[len(latencies) % len(inputs)])
            latencies.append(time.perf_counter() - began)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return latencies


async def _check(system: System) -> None:
    """Compare outputs with the local mixture: batches in turn, then different ones at once, so that mixed-up answers show."""
    local = LocalMoe(hidden=system.hidden)
    inputs = [make_inputs(batch, system.hidden, 1)[0] for batch in CHECKED_BATCHES]
    outputs = [await system.moe(x) for x in inputs]
    many = [make_inputs(batch, system.hidden, 2)[1] for batch in range(1, 17)]
    outputs += await asyncio.gather(*(system.moe(x) for x in many))
    for x, output in zip(inputs + many, outputs, strict=True):
        expected = local(x)
        if output.shape != expected.shape:
            raise Unavailable(f"its output is {tuple(output.shape)}, not {tuple(expected.shape)}")
        error = float((output - expected).abs().max())
        if not error <= TOLERANCE:
            raise Unavailable(f"its output is off by {error:.1e} at batch {len(x)}, more than {TOLERANCE:g}")
