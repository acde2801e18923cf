"""Desk: what is remembered is bounded, traces do not keep requests apart, and reloads come one after the other or not at all."""

import asyncio
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nmoe.core.errors import MeshError
from nmoe.node import MemoryHub, Mesh, NodeRunner
from nmoe.node.answers import MAX_REMEMBERED, MAX_REMEMBERED_BYTES, Answered, Answers
from nmoe.node.messages import InferReply, InferRequest, Refusal
from nmoe.node.transport.base import Service

TRACES = ("", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


def answered(rows: int) -> Answered:
    return Answered(np.zeros((rows, 128), np.float32), np.zeros((rows, 2), np.int64), np.zeros((rows, 2, 10), np.float32))


@pytest.mark.parametrize("rows", [1, 1000, 20_000])
def test_answers_remembered_are_bounded_by_number_and_bytes(rows: int) -> None:
    answers = Answers()
    for number in range(2 * MAX_REMEMBERED):
        answers.remember(f"n-{number % 700}", answered(rows))
    left = [one for number in range(700) if (one := answers.recall(f"n-{number}")) is not None]
    assert sum(one.size for one in left) <= MAX_REMEMBERED_BYTES
    assert len(left) == min(MAX_REMEMBERED, MAX_REMEMBERED_BYTES // answered(rows).size)
    assert answers._remembered_bytes == 0


def test_what_is_remembered_holds_no_more_than_its_own_rows(mesh: Any, images: Tensor) -> None:
    with MemoryHub() as hub, NodeRunner(mesh.bundles[0], hub.transport("node-0")) as runner:
        asyncio.run(runner.infer(images[:3], deadline_s=5, identity="one"))
        kept = runner.answers.recall("one")
    assert kept is not None
    assert [part.base is None for part in (kept.features, kept.experts, kept.logits)] == [True] * 3


def test_requests_with_different_traces_are_computed_together(mesh: Any, images: Tensor, eventually: Any) -> None:
    with MemoryHub() as hub, NodeRunner(mesh.bundles[0], hub.transport("node-0")) as runner:
        computed: list[int] = []
        begin, wait = threading.Event(), runner.desk.score

        def score(numbers: Any) -> None:
            computed.append(len(numbers))
            begin.wait(5)
            wait(numbers)

        runner.desk.score = score  # type: ignore[method-assign]
        said: list[InferReply | Refusal] = []
        for trace in ("", *TRACES):
            runner.desk.take(InferRequest(images=images[:1], deadline_s=5.0, trace=trace), said.append, time.monotonic())
            eventually(lambda: computed)  # the first keeps the worker
        begin.set()
        eventually(lambda: len(said) == 4)
        assert computed == [1, 3]


def test_a_reload_that_fails_leaves_the_old_version_whole(mesh: Any, images: Tensor, tmp_path: Path, monkeypatch: Any) -> None:
    folder = shutil.copytree(mesh.folders[0], tmp_path / "node-0")
    with MemoryHub() as hub, NodeRunner(mesh.bundles[0], hub.transport("node-0"), folder=folder) as runner:
        before = asyncio.run(runner.infer(images, deadline_s=5))
        compute, gate = runner._compute, runner.newcomers._gate

        def raising(self: Any) -> None:
            raise RuntimeError("no memory")

        monkeypatch.setattr("nmoe.node.bank.NodeCompute.warm_up", raising)
        assert runner.reload() == "RuntimeError: no memory"
        assert (runner._compute, runner.newcomers._gate, runner.server.bank) == (compute, gate, compute.bank)
        after = asyncio.run(runner.infer(images, deadline_s=5))
        assert isinstance(before, InferReply)
        assert isinstance(after, InferReply)
        assert torch.equal(before.probabilities, after.probabilities)


def test_reloads_come_one_after_the_other(mesh: Any, tmp_path: Path, monkeypatch: Any) -> None:
    folder = shutil.copytree(mesh.folders[0], tmp_path / "node-0")
    inside, most, lock = 0, 0, threading.Lock()

    def counted(self: Any) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02)
        with lock:
            inside -= 1

    with MemoryHub() as hub, NodeRunner(mesh.bundles[0], hub.transport("node-0"), folder=folder) as runner:
        monkeypatch.setattr("nmoe.node.bank.NodeCompute.warm_up", counted)
        threads = [threading.Thread(target=runner.reload) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == 1


def test_a_client_waits_for_its_deadline_and_no_longer(images: Tensor) -> None:
    async def main() -> float:
        with MemoryHub() as hub, hub.transport("node-0") as silent:
            silent.serve(Service.INFER, lambda data, respond: None)
            transport = hub.transport("client")
            transport.ask = lambda *_, **__: None  # type: ignore[method-assign]  # never calls back
            async with Mesh(transport) as mesh:
                asyncio.get_running_loop().call_later(0.2, silent.announce)
                began_s = time.monotonic()
                with pytest.raises(MeshError, match="no answer within"):
                    await mesh.infer(images[:1], deadline_s=0.4)
                return time.monotonic() - began_s

    assert asyncio.run(main()) < 0.75
