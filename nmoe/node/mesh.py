"""Mesh: asks the nodes of a mesh from asyncio.

A request goes to the sooner one of two nodes drawn at random (Mitzenmacher, 2001). A node that is gone, busy or leaving is replaced at
once by another; one that stays silent is hedged by another after a while, if the deadline allows; the first answer counts.
"""

import asyncio
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from jaxtyping import Shaped
from torch import Tensor

from nmoe.core.errors import MeshBusy, MeshError, MessageError
from nmoe.node.links import MIN_SAMPLES, Percentile
from nmoe.node.members import read_members, read_routers
from nmoe.node.messages import (
    InferReply,
    InferRequest,
    Refusal,
    RefusalCode,
    StatusReply,
    StatusRequest,
    decode_as,
    encode,
)
from nmoe.node.requests import infer_request
from nmoe.node.transport.base import Service, Silence, Transport
from nmoe.node.transport.config import TlsFiles, ZenohSettings
from nmoe.node.transport.zenoh import ZenohTransport
from nmoe.node.view import NodeView

FIND_S = 5.0
MAX_IN_FLIGHT = 512
GRACE_S = 0.2  # a transport calls back at its timeout; this much later it is taken for silent
HEDGE_SHARE = 0.4  # of the deadline, after which a silent node is hedged, if its usual time is not known
HEDGE_TIMES = 3.0  # times a node's 95th percentile, if it is
AGAIN = frozenset({RefusalCode.BUSY, RefusalCode.LEAVING, RefusalCode.FAILED})  # another node may do it


@dataclass(slots=True)
class _Known:
    """What is known of a node: how long it takes to answer, and how many answers are awaited."""

    p50: Percentile
    p95: Percentile
    waiting: int = 0
    failed: int = 0

    @property
    def cost(self) -> float:
        return (1 + self.waiting) * (self.p50.value if self.p50.count else 1e-3) * (1 + self.failed)


class Mesh:
    """A client of a mesh, for one event loop: ``async with Mesh.connect(...) as mesh: answer = await mesh.infer(images, deadline_s=0.05)``.

    Args:
        transport: a door to the mesh; owned.
        max_in_flight: requests that may wait for an answer at a time; one more is told ``MeshBusy`` at once, as nothing here queues.

    Raises:
        ValueError: when ``max_in_flight`` is not positive.
    """

    def __init__(self, transport: Transport, *, max_in_flight: int = MAX_IN_FLIGHT) -> None:
        _check(max_in_flight)
        self._transport = transport
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._known: dict[str, _Known] = {}
        self._draw = random.Random()
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def connect(
        cls,
        mesh: str,
        seeds: Sequence[str],
        *,
        listen: str = "tcp/127.0.0.1:0",
        insecure: bool = False,
        tls: TlsFiles | None = None,
        members: Path | None = None,
        multicast: str | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> "Mesh":
        """Return a client of a mesh over zenoh.

        Args:
            mesh: name of the mesh.
            seeds: endpoints of one or more nodes or routers, such as ``tcp/127.0.0.1:7447``.
            listen: the client's own endpoint; port 0 for any.
            insecure: allow plain tcp beyond this machine.
            tls: the files of mutual TLS, for ``tls/`` and ``quic/`` endpoints.
            members: the list of members, ``members.json``, where the mesh has one: nobody else is listened to.
            multicast: interface on which nodes are looked for; None for none.
            max_in_flight: requests that may wait for an answer at a time.

        Raises:
            ValueError: when a name or endpoint is malformed or not allowed, or ``max_in_flight`` is not positive.
            BadFile: when the list of members cannot be read.
            MeshError: when the own endpoint cannot be listened on.
        """
        _check(max_in_flight)
        settings = ZenohSettings(
            mesh=mesh,
            listen=(listen,),
            seeds=tuple(seeds),
            insecure=insecure,
            tls=tls,
            members=None if members is None else read_members(members),
            routers=frozenset() if members is None else read_routers(members),
            multicast=multicast,
        )
        return cls(ZenohTransport(settings, name=None, fingerprint=None), max_in_flight=max_in_flight)

    async def __aenter__(self) -> Self:
        self._loop = loop = asyncio.get_running_loop()

        def changed(name: str, alive: bool) -> None:
            loop.call_soon_threadsafe(self._peer_changed, name, alive)

        self._transport.watch(changed)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await asyncio.to_thread(self._transport.close)

    def nodes(self) -> tuple[str, ...]:
        """Return the names of the nodes alive now, sorted."""
        return tuple(sorted(self._known))

    async def wait_for(self, count: int = 1, *, timeout_s: float = FIND_S) -> None:
        """Wait until so many nodes are alive.

        Raises:
            MeshError: when they are not in time.
        """
        until_s = time.monotonic() + timeout_s
        while len(self._known) < count:
            if time.monotonic() > until_s:
                raise MeshError(f"{count} nodes wanted, {len(self._known)} found within {timeout_s:g} s")
            await asyncio.sleep(0.005)

    async def infer(
        self,
        images: Shaped[Tensor, "batch height width channel"],
        *,
        deadline_s: float,
        k: int | None = None,
        node: str | None = None,
        identity: str = "",
        trace: str = "",
    ) -> InferReply:
        """Let the mesh classify images.

        Args:
            images: uint8, or float32 between 0 and 1, of the bundles' image shape.
            deadline_s: the answer comes within this, from whoever has answered by then.
            k: experts per sample; None for the node's own number.
            node: whom to ask; None for whoever is likely to be quick.
            identity: a name for this request, for feedback.
            trace: W3C ``traceparent``.

        Raises:
            ValueError: when an argument is out of range.
            MeshBusy: when ``max_in_flight`` requests wait already, or every node asked is busy.
            MeshError: when nobody answers, or the request is refused; the message says why.
        """
        if self._in_flight >= self._max_in_flight:
            raise MeshBusy(f"busy: {self._in_flight} requests of this client wait for an answer already")
        request = infer_request(images, deadline_s=deadline_s, k=k, identity=identity, trace=trace)
        if node is not None and node not in self._known:
            raise MeshError(f"node {node} is not in the mesh; alive: {', '.join(self.nodes()) or 'none'}")
        until_s = time.monotonic() + deadline_s
        if not self._known:
            await self.wait_for(timeout_s=deadline_s)
        self._in_flight += 1
        try:
            return await self._ask_until(request, until_s, node)
        finally:
            self._in_flight -= 1

    async def _ask_until(self, request: InferRequest, until_s: float, node: str | None) -> InferReply:
        """Ask one node after another, or beside another, until one answers or the time is over."""
        tried: set[str] = set()
        waiting: dict[asyncio.Task[InferReply | MeshError], str] = {}
        said = MeshError("nobody is there")
        try:
            while True:
                name = self._pick(tried, node)
                if name is not None:
                    tried.add(name)
                    waiting[asyncio.create_task(self._ask(name, request, until_s))] = name
                if not waiting:
                    raise said
                patience_s = self._patience_s(waiting.values(), until_s) if self._pick(tried, node) else None
                done, _ = await asyncio.wait(waiting, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del waiting[task]
                    result = task.result()
                    if isinstance(result, InferReply):
                        return result
                    said = result
        finally:
            for task in waiting:
                task.cancel()

    def _pick(self, tried: set[str], node: str | None) -> str | None:
        if node is not None:
            return None if node in tried else node
        names = [name for name in self._known if name not in tried]
        if len(names) <= 1:
            return names[0] if names else None
        return min(self._draw.sample(names, 2), key=lambda name: self._known[name].cost)

    def _patience_s(self, names: Iterable[str], until_s: float) -> float:
        left_s = max(0.0, until_s - time.monotonic())
        usual = [self._known[name].p95 for name in names if name in self._known]
        known = [percentile.value for percentile in usual if percentile.count >= MIN_SAMPLES]
        return min([HEDGE_SHARE * left_s, *(HEDGE_TIMES * value for value in known)])

    async def _ask(self, name: str, request: InferRequest, until_s: float) -> InferReply | MeshError:
        """Ask one node; return its reply, or why another is to be asked.

        Raises:
            MeshError: when asking another would not help.
        """
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            return MeshError(f"no answer within {request.deadline_s:g} s")
        known = self._known.get(name)
        began_s = time.monotonic()
        if known is not None:
            known.waiting += 1
        hurried = InferRequest(images=request.images, deadline_s=left_s, k=request.k, identity=request.identity, trace=request.trace)
        try:
            reply = await self._exchange(name, Service.INFER, encode(hurried), left_s)
        finally:
            if known is not None:
                known.waiting -= 1
        answer = self._read(name, reply, request.deadline_s)
        if known is not None and isinstance(answer, InferReply):
            known.failed = 0
            known.p50.add(time.monotonic() - began_s)
            known.p95.add(time.monotonic() - began_s)
        elif known is not None:
            known.failed += 1
        return answer

    def _read(self, name: str, reply: bytes | Silence, deadline_s: float) -> InferReply | MeshError:
        if isinstance(reply, Silence):
            return MeshError(f"node {name}: {f'no answer within {deadline_s:g} s' if reply is Silence.TIMEOUT else reply.value}")
        try:
            message = decode_as(reply, InferReply)
        except MessageError as error:
            return MeshError(f"node {name} sent a reply that cannot be read: {error}")
        if isinstance(message, InferReply):
            return message
        said = f"node {name} refused ({message.code.value}): {message.reason}"
        refused = MeshBusy(said) if message.code is RefusalCode.BUSY else MeshError(said)
        if message.code in AGAIN:
            return refused
        raise refused

    async def status(self, node: str, *, timeout_s: float = 1.0) -> NodeView:
        """Ask a node for its view.

        Raises:
            MeshError: when it does not answer, or says nonsense.
        """
        reply = await self._exchange(node, Service.STATUS, encode(StatusRequest()), timeout_s)
        if isinstance(reply, Silence):
            raise MeshError(f"node {node}: {reply.value}")
        try:
            message = decode_as(reply, StatusReply)
        except MessageError as error:
            raise MeshError(f"node {node} sent a reply that cannot be read: {error}") from error
        if isinstance(message, Refusal):
            raise MeshError(f"node {node} refused ({message.code.value}): {message.reason}")
        return message.view

    async def _exchange(self, node: str, service: Service, payload: bytes, timeout_s: float) -> bytes | Silence:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes | Silence] = loop.create_future()

        def replied(reply: bytes | Silence) -> None:
            loop.call_soon_threadsafe(_settle, future, reply)

        self._transport.ask(node, service, payload, timeout_s=timeout_s, on_reply=replied)
        try:
            return await asyncio.wait_for(future, timeout_s + GRACE_S)
        except TimeoutError:
            return Silence.TIMEOUT

    def _peer_changed(self, name: str, alive: bool) -> None:
        if alive:
            self._known.setdefault(name, _Known(Percentile(0.5), Percentile(0.95)))
        else:
            self._known.pop(name, None)


def _check(max_in_flight: int) -> None:
    if max_in_flight < 1:
        raise ValueError(f"max_in_flight must be at least 1, got {max_in_flight}")


def _settle(future: "asyncio.Future[bytes | Silence]", reply: bytes | Silence) -> None:
    if not future.done():  # whoever asked may have been answered by another node
        future.set_result(reply)
