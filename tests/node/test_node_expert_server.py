"""Expert server and workers: whatever a peer asks and whatever a module does, the node goes on."""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from nmoe.node import ExpertHost, MemoryHub, NodeOptions, TensorFormat
from nmoe.node.batcher import Batch, Batcher, Job, Line
from nmoe.node.messages import ExpertReply, ExpertRequest, ExpertRows, GradientRequest, Refusal, RefusalCode, decode, encode
from nmoe.node.transport.base import Service, Silence
from nmoe.node.workers import Workers


class Wide(nn.Module):
    """Every row's first number, many times."""

    def __init__(self, *, width: int = 512) -> None:
        super().__init__()
        self.width = width

    def forward(self, features: Tensor) -> Tensor:
        return features[:, :1].expand(-1, self.width)


def request(rows: int, *, version: str = "") -> ExpertRequest:
    return ExpertRequest(
        request=7,
        origin="caller",
        deadline_s=5.0,
        format=TensorFormat.INT8,
        experts=(ExpertRows(expert="wide", version=version, rows=None),),
        features=np.ones((rows, 64), np.float32),
    )


@pytest.fixture
def ask() -> Any:
    """Serve a host and ask it over memory."""

    def asking(module: nn.Module, service: Service, data: bytes, *, out_dim: int = 512) -> tuple[Any, ExpertHost]:
        said: list[bytes | Silence] = []
        there = threading.Event()

        def replied(reply: bytes | Silence) -> None:
            said.append(reply)
            there.set()

        with (
            MemoryHub() as hub,
            hub.transport("caller") as caller,
            ExpertHost(
                "host", {"wide": module}, in_dim=64, out_dim=out_dim, transport=hub.transport("host"), options=NodeOptions(gradients=True)
            ) as host,
        ):
            caller.ask("host", service, data, timeout_s=10, on_reply=replied)
            assert there.wait(10)
            assert host.running
            assert host._workers.failures == 0
        assert isinstance(said[0], bytes)
        return decode(said[0]), host

    return asking


def test_a_small_request_with_a_reply_too_large_for_a_message_is_refused(ask: Any) -> None:
    said, host = ask(Wide(), Service.EXPERT, encode(request(40_000)))
    assert (said.code, said.request) == (RefusalCode.BAD_SHAPE, 7)
    assert said.reason == "a reply of 40000 x 512 numbers does not fit into a message"
    assert host.server.rows_served == 0


def test_the_largest_reply_is_sent(ask: Any) -> None:
    said, _ = ask(Wide(), Service.EXPERT, encode(request(30_000)))
    assert isinstance(said, ExpertReply)


@pytest.mark.parametrize("version", ["", "1", "unheard of"])
def test_gradients_are_of_the_version_named(ask: Any, version: str) -> None:
    forward = request(3, version=version)
    said, _ = ask(Wide(), Service.GRADIENT, encode(GradientRequest(forward=forward, gradients=np.ones((3, 512), np.float32))))
    if version == "unheard of":
        assert (said.code, said.reason) == (RefusalCode.BAD_SHAPE, "host serves version 1, unheard of was asked for")
    else:
        assert (said.gradients == np.array([512.0] + [0.0] * 63)).all()


def test_a_reply_that_cannot_be_encoded_is_a_refusal(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def encoding(message: Any) -> bytes:
        if isinstance(message, ExpertReply):
            raise ValueError("too much")
        return encode(message)

    monkeypatch.setattr("nmoe.node.expert_server.encode", encoding)
    said, _ = ask(Wide(), Service.EXPERT, encode(request(3)))
    assert isinstance(said, Refusal)
    assert (said.code, said.reason, said.request) == (RefusalCode.FAILED, "ValueError: too much", 7)


def test_a_worker_outlives_what_it_computes(capsys: pytest.CaptureFixture[str], eventually: Callable[..., None]) -> None:
    computed: list[str] = []

    def compute(batch: Batch[str]) -> None:
        for job in batch.jobs:
            if job.item == "bad":
                raise RuntimeError("why")
            computed.append(job.item)

    batcher: Batcher[str] = Batcher()
    workers = Workers(batcher, compute, name="worker")
    workers.start()
    try:
        for item in ("bad", "good"):
            assert workers.submit(Job(Line.EXPERT, item, 4, 1, time.monotonic() + 5, item)) is None
        eventually(lambda: computed == ["good"])
        eventually(lambda: batcher.queue_rows() == 0)
        assert workers.failures == 1
        assert all(thread.is_alive() for thread in workers.threads)
    finally:
        workers.close()
    assert "RuntimeError: why" in capsys.readouterr().err


def test_close_works_off_what_is_queued() -> None:
    computed: list[int] = []
    workers: Workers[int] = Workers(Batcher(), lambda batch: computed.extend(job.item for job in batch.jobs), name="worker")
    for number in range(5):
        workers.submit(Job(Line.EXPERT, number, 1, 1, time.monotonic() + 5, number))
    workers.start()
    workers.close()
    assert computed == [0, 1, 2, 3, 4]
