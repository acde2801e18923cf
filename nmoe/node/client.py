"""Client: asks nodes of a mesh to classify. Not a node: it announces nothing and serves nothing."""

import threading
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self, TypeVar

from jaxtyping import Shaped
from torch import Tensor

from nmoe.core.errors import MeshError, MessageError
from nmoe.node.members import read_members, read_routers
from nmoe.node.messages import InferReply, Message, Refusal, StatusReply, StatusRequest, decode_as, encode
from nmoe.node.requests import infer_request
from nmoe.node.transport.base import Service, Silence, Transport
from nmoe.node.transport.config import TlsFiles, ZenohSettings
from nmoe.node.transport.zenoh import ZenohTransport

_Reply = TypeVar("_Reply", InferReply, StatusReply)
_SILENCE = {
    Silence.GONE: "went away without an answer",
    Silence.TIMEOUT: "cannot be reached: no answer in time",
    Silence.FULL: "has too much on its way already",
}
GRACE_S = 1.0  # what a reply may take beyond the deadline before the node counts as unreachable; our choice


class MeshClient:
    """A client over any transport, safe to use from several threads; it owns its transport.

    Args:
        transport: a door to the mesh; see ``connect``.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._alive: set[str] = set()
        self._changed = threading.Condition()
        transport.watch(self._peer_changed)

    def nodes(self) -> tuple[str, ...]:
        """Return the names of the nodes alive now, sorted."""
        with self._changed:
            return tuple(sorted(self._alive))

    def wait_for(self, names: Sequence[str], *, timeout_s: float) -> None:
        """Wait until these nodes are alive.

        Raises:
            MeshError: when they are not in time; the message names those missing.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._alive.issuperset(names), timeout_s):
                missing = ", ".join(sorted(set(names) - self._alive))
                raise MeshError(f"not in the mesh after {timeout_s:g} s: {missing}")

    def infer(
        self,
        node: str,
        images: Shaped[Tensor, "batch height width channel"],
        *,
        deadline_s: float,
        k: int | None = None,
        identity: str = "",
        trace: str = "",
    ) -> InferReply:
        """Let a node classify images together with its peers.

        Args:
            node: whom to ask.
            images: uint8, or float32 between 0 and 1, of the bundle's image shape.
            deadline_s: the node answers within this, with whoever has answered by then.
            k: experts per sample; None for the node's own number.
            identity: a name for this request that feedback may refer to; empty for none.
            trace: W3C ``traceparent`` to pass along; empty for none.

        Raises:
            ValueError: when an argument is out of range.
            MeshError: when the node cannot be reached, or refuses; the message says why.
        """
        request = infer_request(images, deadline_s=deadline_s, k=k, identity=identity, trace=trace)
        return self._ask(node, Service.INFER, request, deadline_s, InferReply)

    def status(self, node: str, *, timeout_s: float = 1.0) -> StatusReply:
        """Ask a node whom it sees and what it has done.

        Raises:
            MeshError: when it cannot be reached.
        """
        return self._ask(node, Service.STATUS, StatusRequest(), timeout_s, StatusReply)

    def close(self) -> None:
        """Leave the mesh."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _peer_changed(self, name: str, alive: bool) -> None:
        with self._changed:
            if alive:
                self._alive.add(name)
            else:
                self._alive.discard(name)
            self._changed.notify_all()

    def _ask(self, node: str, service: Service, message: Message, timeout_s: float, wanted: type[_Reply]) -> _Reply:
        replies: SimpleQueue[bytes | Silence] = SimpleQueue()
        with self._changed:
            if node not in self._alive:
                raise MeshError(f"node {node} is not in the mesh; alive: {', '.join(sorted(self._alive)) or 'none'}")
        self._transport.ask(node, service, encode(message), timeout_s=timeout_s + GRACE_S, on_reply=replies.put)
        try:
            reply = replies.get(timeout=timeout_s + 2 * GRACE_S)
        except Empty:  # the transport did not keep its own time limit
            reply = Silence.TIMEOUT
        if isinstance(reply, Silence):
            raise MeshError(f"node {node} {_SILENCE[reply]}")
        try:
            answer = decode_as(reply, wanted)
        except MessageError as error:
            raise MeshError(f"node {node} sent a reply that cannot be read: {error}") from error
        if isinstance(answer, Refusal):
            raise MeshError(f"node {node} refused ({answer.code.value}): {answer.reason}")
        return answer


def connect(
    mesh: str,
    seeds: Sequence[str],
    *,
    listen: str = "tcp/127.0.0.1:0",
    fingerprint: str | None = None,
    insecure: bool = False,
    tls: TlsFiles | None = None,
    members: Path | None = None,
) -> MeshClient:
    """Return a client of a mesh over zenoh.

    Args:
        mesh: name of the mesh.
        seeds: endpoints of one or more nodes, such as ``tcp/127.0.0.1:7447``.
        listen: the client's own endpoint; port 0 for any.
        fingerprint: the extractor's, where several are served in one mesh.
        insecure: allow plain tcp beyond this machine.
        tls: the files of mutual TLS, for ``tls/`` and ``quic/`` endpoints.
        members: the list of members, ``members.json``, where the mesh has one: nobody else is listened to.

    Raises:
        ValueError: when a name or endpoint is malformed or not allowed.
        BadFile: when the list of members cannot be read.
        MeshError: when the own endpoint cannot be listened on.
    """
    settings = ZenohSettings(
        mesh=mesh,
        listen=(listen,),
        seeds=tuple(seeds),
        insecure=insecure,
        tls=tls,
        members=None if members is None else read_members(members),
        routers=frozenset() if members is None else read_routers(members),
    )
    return MeshClient(ZenohTransport(settings, name=None, fingerprint=fingerprint))
