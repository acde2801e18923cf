"""A node that is not there: what the HTTP server stands in front of in its tests."""

import asyncio
import http.client
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import torch

from nmoe.core.bundle import BundleCard, ModelSpec, Provenance
from nmoe.node.http import HttpServer
from nmoe.node.messages import InferReply, Refusal, RefusalCode
from nmoe.node.service import Learned, NodeService
from nmoe.node.view import ExpertView, LinkView, NodeView, RefusedView

NAMES = ("node-0", "node-1", "node-2", "node-3")
_SPEC = ModelSpec(kind="test", arguments={})


def new_card(image_shape: tuple[int, int, int] = (4, 4, 1)) -> BundleCard:
    return BundleCard(
        format=1,
        node="node-0",
        experts=NAMES,
        neighbours=NAMES[1:],
        classes_seen=(0, 1),
        num_classes=10,
        k=2,
        mix="probabilities",
        image_shape=image_shape,
        extractor=_SPEC,
        expert=_SPEC,
        gate=_SPEC,
        extractor_fingerprint="0" * 64,
        files={},
        provenance=Provenance(recipe="test", seed=0, data="none", git_revision="none"),
    )


def new_link(peer: str, index: int = 1, **changes: Any) -> LinkView:
    link = LinkView(
        peer=peer,
        state="up",
        experts=(peer,),
        rtt_s=0.0004 * index,
        goodput_bps=2e8,
        loss=0.002 * index,
        queue_rows=3 * index,
        p50_s=0.0021 * index,
        p95_s=0.0052 * index,
        asked=4000 // index,
        answered=3980 // index,
        hedged=12,
        rows=8000 // index,
        failed={"late": 3 * index},
        bytes_sent=4_200_000 // index,
        bytes_received=320_000 // index,
        format="float16" if index % 2 else "int8",
    )
    return msgspec.structs.replace(link, **changes)


def new_view(node: str = "node-0", **changes: Any) -> NodeView:
    others = [name for name in NAMES if name != node]
    view = NodeView(
        node=node,
        mesh="lab",
        endpoint="tls/192.0.2.3:7447",
        http="127.0.0.1:8080",
        version="0.1.0",
        bundle="abc123",
        ready=True,
        draining=False,
        uptime_s=3725.0,
        k=2,
        num_classes=10,
        classes=(0, 1),
        image_shape=(4, 4, 1),
        answered=5210,
        degraded=14,
        refused={"busy": 21, "late": 2},
        in_progress=2,
        requests_per_s=41.5,
        p50_s=0.0041,
        p99_s=0.0123,
        rows_served=9001,
        queue_rows=4,
        malformed={"version": 2},
        log_errors=0,
        bytes_out={"float16": 5_200_000, "int8": 1_300_000},
        links=tuple(new_link(name, index) for index, name in enumerate(others, 1)),
        experts=tuple(
            ExpertView(expert=name, nodes=(name,), rows_chosen=4000 - 700 * index, rows_answered=3990 - 720 * index)
            for index, name in enumerate(NAMES)
        ),
        refusals=(RefusedView(who="node-9", reason="another extractor", count=7, last_s=3600.0),),
    )
    return msgspec.structs.replace(view, **changes)


@dataclass
class FakeService(NodeService):
    """Answers at once and says what it was asked."""

    own_card: BundleCard = field(default_factory=new_card)
    up: bool = True
    alive: bool = True
    refusal: Refusal | None = None
    failure: Exception | None = None
    wait_s: float = 0.0
    most_at_once: int = 10**9
    views: tuple[NodeView, ...] = field(default_factory=lambda: (new_view("node-1"), new_view("node-0")))
    reload_reason: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    learned: dict[str, int] = field(default_factory=dict)
    at_once: int = 0
    reloads: int = 0

    @property
    def card(self) -> BundleCard:
        return self.own_card

    @property
    def ready(self) -> bool:
        return self.up

    @property
    def running(self) -> bool:
        return self.alive

    async def infer(self, images, *, deadline_s, k=None, identity="", trace=""):
        if self.at_once >= self.most_at_once:
            return Refusal(request=0, code=RefusalCode.BUSY, reason="too many requests")
        self.at_once += 1
        try:
            if self.wait_s:
                await asyncio.sleep(self.wait_s)
        finally:
            self.at_once -= 1
        if self.failure is not None:
            raise self.failure
        if self.refusal is not None:
            return self.refusal
        if len(self.asked) < 10_000:
            self.asked.append({"images": images, "deadline_s": deadline_s, "k": k, "identity": identity, "trace": trace})
        batch = len(images)
        if identity:
            self.learned[identity] = batch
        probabilities = torch.full((batch, self.own_card.num_classes), 0.05)
        probabilities[:, 3] = 0.55
        return InferReply(
            probabilities=probabilities,
            labels=torch.full((batch,), 3),
            experts=torch.tensor([[1, -1]]).repeat(batch, 1),
            weights=torch.tensor([[1.0, 0.0]]).repeat(batch, 1),
            names=NAMES,
            degraded=True,
            bytes_sent=100,
            bytes_received=50,
            seconds=0.001,
        )

    def feedback(self, identity, labels):
        if identity not in self.learned:
            return Learned.UNKNOWN, f"unknown request {identity!r}"
        if self.learned[identity] != len(labels):
            return Learned.UNFIT, f"{self.learned[identity]} labels wanted, got {len(labels)}"
        return Learned.YES, ""

    def view(self) -> NodeView:
        return next((view for view in self.views if view.node == self.own_card.node), self.views[0])

    async def mesh_view(self, *, timeout_s=0.5):
        return self.views

    def reload(self):
        self.reloads += 1
        self.own_card = msgspec.structs.replace(self.own_card)
        return self.reload_reason


Serve = Callable[..., HttpServer]


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers that end with the test."""
    started: list[HttpServer] = []

    def start(service: NodeService, **options: Any) -> HttpServer:
        server = HttpServer(service, "127.0.0.1", 0, **{"max_body_bytes": 1 << 20, **options})
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


@dataclass
class Client:
    """One connection, kept alive."""

    connection: http.client.HTTPConnection

    def __call__(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        given = dict(headers or {})
        if isinstance(body, dict | list):
            body = msgspec.json.encode(body)
            given.setdefault("content-type", "application/json")
        self.connection.request(method, path, body, given)
        response = self.connection.getresponse()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


@pytest.fixture
def connect() -> Iterator[Callable[[HttpServer], Client]]:
    connections = []

    def open_one(server: HttpServer) -> Client:
        host, _, port = server.address.rpartition(":")
        connections.append(http.client.HTTPConnection(host, int(port), timeout=30))
        return Client(connections[-1])

    yield open_one
    for connection in connections:
        connection.close()


@pytest.fixture
def ask(serve, service, connect) -> Client:
    """A client of the fake service's server."""
    return connect(serve(service))


def request_of(data: list[Any], *, datatype: str = "UINT8", shape: list[int] | None = None, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "shape": shape or [1, 4, 4, 1], "datatype": datatype, "data": data}], **more}


@pytest.fixture
def infer_request() -> Callable[..., dict[str, Any]]:
    return request_of


@pytest.fixture
def fakes() -> Any:
    """The makers of made-up views and services."""

    class Fakes:
        service, view, link, card = FakeService, staticmethod(new_view), staticmethod(new_link), staticmethod(new_card)

    return Fakes
