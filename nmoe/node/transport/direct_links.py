"""Direct links of one member: whom it has a stream to, and the queries that travel on them."""

import itertools
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from nmoe.node.transport.base import OnQuery, Respond, Service, Silence
from nmoe.node.transport.config import TlsFiles
from nmoe.node.transport.direct import SERVICES, Contexts, Listener, dial
from nmoe.node.transport.stream import Loop, Stream

FIRST_PAUSE_S, MAX_PAUSE_S = 0.2, 10.0  # between tries to connect
STEADY_S = 5.0  # a stream that lasted longer was a good one

Settle = Callable[[bytes | Silence], None]


@dataclass(slots=True)
class _Way:
    """The way to one node: its address, its stream once there is one, and the queries on it."""

    address: str
    greeting: str
    stream: Stream | None = None
    waiting: dict[int, Settle] | None = None
    since_s: float = 0.0
    pause_s: float = 0.0  # before it is dialled again; longer each time a stream does not last


class DirectLinks:
    """All direct links of one member.

    Args:
        name: of its threads.
        tls: the mesh's certificates; None for plain TCP.
        members: common names that are let in; None for all of the authority.
        on_refusal: told who was refused and why.
    """

    def __init__(self, name: str, *, tls: TlsFiles | None, members: frozenset[str] | None, on_refusal: Callable[[str, str], None]) -> None:
        self._tls = None if tls is None else contexts(tls)
        self._members = members
        self._on_refusal = on_refusal
        self._loop = Loop(f"nmoe-direct-{name}")
        self._lock = threading.Lock()
        self._ways: dict[str, _Way] = {}
        self._numbers = itertools.count(1)
        self._services: dict[int, OnQuery] = {}
        self._listener: Listener | None = None
        self._open = True
        self._closing = threading.Event()

    def listen(self, host: str, greeting: str, port: int = 0) -> int:
        """Let others connect, at a port or, for 0, any; return it.

        Raises:
            OSError: when the address cannot be listened on.
        """
        self._listener = Listener(
            self._loop,
            host,
            port,
            greeting,
            on_frame=self._asked,
            on_closed=lambda _: None,
            on_refusal=self._on_refusal,
            tls=self._tls,
            members=self._members,
        )
        return self._listener.port

    def serve(self, service: Service, on_query: OnQuery) -> None:
        """Answer queries of a service; see ``Transport.serve``."""
        self._services[SERVICES.index(service)] = on_query

    def found(self, node: str, address: str, greeting: str) -> None:
        """A node listens at an address: connect to it in the background."""
        with self._lock:
            way = self._ways.get(node)
            if not self._open or (way is not None and way.address == address):
                return
            self._ways[node] = new = _Way(address, greeting)
        if way is not None and way.stream is not None:
            way.stream.close()
        self._start_dialling(node, new)

    def _start_dialling(self, node: str, way: _Way) -> None:
        threading.Thread(target=self._dial, args=(node, way), name="nmoe-direct-dial", daemon=True).start()

    def lost(self, node: str) -> None:
        """A node is gone: so is the way to it."""
        with self._lock:
            way = self._ways.pop(node, None)
        if way is not None and way.stream is not None:
            way.stream.close()

    def reaches(self, node: str) -> bool:
        """Say whether there is a stream to a node."""
        way = self._ways.get(node)
        return way is not None and way.stream is not None and way.stream.open

    def ask(self, node: str, service: Service, payload: bytes, settle: Settle) -> int | None:
        """Send a query if there is a stream to the node; ``settle`` follows unless ``forget`` is called first. None when there is none."""
        way = self._ways.get(node)
        if way is None or (stream := way.stream) is None or (waiting := way.waiting) is None:
            return None
        number = next(self._numbers)
        waiting[number] = settle
        sent = stream.send(number, SERVICES.index(service), payload)
        if (not sent or way.waiting is not waiting) and waiting.pop(number, None) is not None:
            return None  # the stream ended meanwhile
        return number

    def forget(self, node: str, number: int) -> bool:
        """Do not wait for a query any more; False when it has been settled."""
        way = self._ways.get(node)
        return way is not None and way.waiting is not None and way.waiting.pop(number, None) is not None

    def close(self) -> None:
        """Close everything; queries under way are settled as gone. A second call does nothing."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            self._ways.clear()
        self._closing.set()
        if self._listener is not None:
            self._listener.close()
        self._loop.close()

    def _dial(self, node: str, way: _Way) -> None:
        """Connect to a node; go on trying, ever more seldom, as long as it is announced there."""
        host, _, port = way.address.rpartition(":")
        waiting: dict[int, Settle] = {}
        pause_s = FIRST_PAUSE_S
        if way.pause_s:
            self._closing.wait(way.pause_s)
        while self._ways.get(node) is way:
            try:
                way.waiting = waiting
                stream = dial(
                    host.strip("[]"),
                    int(port),
                    way.greeting,
                    name=node,
                    tls=self._tls,
                    loop=self._loop,
                    on_frame=lambda _, number, __, body: _settle(waiting, number, body),
                    on_closed=lambda _: self._ended(node, way),
                )
            except OSError:
                self._closing.wait(pause_s)
                pause_s = min(MAX_PAUSE_S, 2 * pause_s)
                continue
            way.stream, way.since_s = stream, time.monotonic()
            if self._ways.get(node) is not way:
                stream.close()
            return

    def _ended(self, node: str, way: _Way) -> None:
        way.stream = None
        waiting, way.waiting = way.waiting or {}, None
        for number in list(waiting):
            _settle(waiting, number, Silence.GONE)
        if self._open and self._ways.get(node) is way:  # it is still announced
            lived_s = time.monotonic() - way.since_s
            way.pause_s = FIRST_PAUSE_S if lived_s > STEADY_S else min(MAX_PAUSE_S, max(FIRST_PAUSE_S, 2 * way.pause_s))
            self._start_dialling(node, way)

    def _asked(self, stream: Stream, number: int, service: int, body: bytes) -> None:
        on_query = self._services.get(service)
        if on_query is None:
            stream.close()
            return
        on_query(body, _responder(stream, number))


def _responder(stream: Stream, number: int) -> Respond:
    def respond(data: bytes) -> None:
        stream.send(number, 0, data)  # when it is closed, nobody is left to tell

    return respond


def _settle(waiting: dict[int, Settle], number: int, reply: bytes | Silence) -> None:
    settle = waiting.pop(number, None)
    if settle is not None:  # else it was forgotten, or never asked
        settle(reply)


def contexts(files: TlsFiles) -> Contexts:
    """Return TLS contexts of the mesh's files: both sides show a certificate of the authority."""
    made = []
    for purpose in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(purpose)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the name of the node is checked, not that of its host
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files.root_ca)
        context.load_cert_chain(files.certificate, files.private_key)
        made.append(context)
    return Contexts(server=made[0], client=made[1])
