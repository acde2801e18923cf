"""Direct links: one stream from each member to each node it asks, TCP, or TLS with the mesh's own certificates.

Zenoh finds the nodes, says who is alive and carries what has no direct link, through routers for instance. What can go directly does: a
message through zenoh wakes four threads in each direction and costs 0.25 ms there and back on loopback, here one and 0.07 ms (LOG.md).

A frame is length (4 bytes), number of the query (8), service (1), all little-endian, and the payload; a reply bears its query's number.
A connection begins with a greeting that names mesh, extractor fingerprint and node, so that nobody asks the wrong one. One thread reads
all streams; whoever has a message writes it, and what a full socket does not take is left to that thread. A stream whose other end takes
nothing for ``STUCK_S`` is closed. TLS needs a certificate of the authority on both sides; the server's must bear the node's name, and
where members are named the client's must bear one of theirs.
"""

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from nmoe.node.transport.base import Service
from nmoe.node.transport.stream import Loop, OnClosed, OnFrame, Stream

GREETING = b"NMOE direct 1 "
HANDSHAKE_S, NUM_SHAKERS = 2.0, 16
MAX_STREAMS = 1024
MAX_SHAKING = 64  # connections that have not yet said who they are
SERVICES = tuple(Service)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """TLS for both directions."""

    server: ssl.SSLContext
    client: ssl.SSLContext


class Listener:
    """Accepts direct connections of a node; a greeting that does not fit, and a certificate that does not hold, are told and closed.

    Args:
        loop: reads the streams.
        host: address to listen on.
        port: the same; 0 for any.
        greeting: what a connection must say first.
        on_frame, on_closed: of every stream.
        on_refusal: told who was refused and why.
        tls: contexts, or None for plain TCP.
        members: common names that are let in; None for every certificate of the authority.

    Raises:
        OSError: when the address cannot be listened on.
    """

    def __init__(
        self,
        loop: Loop,
        host: str,
        port: int,
        greeting: str,
        *,
        on_frame: OnFrame,
        on_closed: OnClosed,
        on_refusal: Callable[[str, str], None],
        tls: Contexts | None,
        members: frozenset[str] | None,
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._sock = socket.create_server((host, port), family=family, backlog=128)
        self._sock.setblocking(False)
        self.port: int = self._sock.getsockname()[1]
        self._loop, self._greeting = loop, greeting
        self._on_frame, self._on_closed, self._on_refusal = on_frame, on_closed, on_refusal
        self._tls, self._members = tls, members
        self._shaking = threading.BoundedSemaphore(MAX_SHAKING)
        self._shakers = ThreadPoolExecutor(NUM_SHAKERS, thread_name_prefix="nmoe-direct-greet")
        loop.listen(self._sock, self._accept)

    def close(self) -> None:
        """Stop listening."""
        self._loop.unlisten(self._sock)
        self._shakers.shutdown(wait=True, cancel_futures=True)

    def _accept(self) -> None:
        try:
            sock, (host, *_) = self._sock.accept()
        except OSError:  # it went away again
            return
        if not self._shaking.acquire(blocking=False):
            sock.close()
            return
        try:
            self._shakers.submit(self._greet, sock, host).add_done_callback(lambda greeted: sock.close() if greeted.cancelled() else None)
        except RuntimeError:  # closing
            self._shaking.release()
            sock.close()

    def _greet(self, sock: socket.socket, host: str) -> None:
        until_s = time.monotonic() + HANDSHAKE_S
        try:
            sock.settimeout(HANDSHAKE_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = self._tls.server.wrap_socket(sock, server_side=True)
                name = common_name(sock)
                if self._members is not None and name not in self._members:
                    raise _Stranger(name, "not on the list")
            if not _greeted(sock, self._greeting, until_s):
                raise _Stranger(host, "looks for another node or extractor")
            if self._loop.num_streams >= MAX_STREAMS:
                raise _Stranger(host, "too many connections")
            self._loop.add(Stream(sock, self._loop, self._on_frame, self._on_closed, until_s=valid_until_s(sock)))
        except _Stranger as stranger:
            self._on_refusal(stranger.who, stranger.reason)
            sock.close()
        except (OSError, ValueError) as error:
            self._on_refusal(host, why_refused(error))
            sock.close()
        finally:
            self._shaking.release()


class _Stranger(Exception):
    """Somebody who is not let in."""

    def __init__(self, who: str, reason: str) -> None:
        super().__init__(reason)
        self.who, self.reason = who, reason


def dial(
    host: str, port: int, greeting: str, *, name: str, tls: Contexts | None, loop: Loop, on_frame: OnFrame, on_closed: OnClosed
) -> Stream:
    """Connect to a node and greet it. Blocks for at most some seconds.

    Args:
        host: where it listens.
        port: the same.
        greeting: what it expects.
        name: of the node; with TLS its certificate must bear it.
        tls: contexts, or None for plain TCP.
        loop: reads the stream.
        on_frame: of the stream.
        on_closed: the same.

    Raises:
        OSError: when it cannot be reached, or is not who it should be.
    """
    sock = socket.create_connection((host, port), HANDSHAKE_S)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            sock = tls.client.wrap_socket(sock)
            if common_name(sock) != name:
                raise OSError(f"{host}:{port} shows a certificate of {common_name(sock)}, {name} is expected")
        data = greeting.encode()
        sock.sendall(GREETING + struct.pack("<H", len(data)) + data)
        stream = Stream(sock, loop, on_frame, on_closed, until_s=valid_until_s(sock))
    except OSError:
        sock.close()
        raise
    loop.add(stream)
    return stream


def common_name(sock: socket.socket) -> str:
    """Return the common name of the other end's verified certificate."""
    assert isinstance(sock, ssl.SSLSocket)
    certificate: dict[str, Any] = sock.getpeercert() or {}
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return str(names[0]) if names else ""


def why_refused(error: Exception) -> str:
    """Return in a few fixed words why a handshake failed."""
    text = str(error)
    for words, reason in (
        ("certificate has expired", "certificate expired"),
        ("not yet valid", "certificate not yet valid"),
        ("did not return a certificate", "no certificate"),
        ("unable to get local issuer", "unknown authority"),
        ("self-signed", "unknown authority"),
        ("signature", "unknown authority"),
        ("timed out", "said nothing"),
    ):
        if words in text:
            return reason
    return "failed handshake" if isinstance(error, ssl.SSLError) else "did not greet"


def valid_until_s(sock: socket.socket) -> float | None:
    """Return when the other end's certificate expires, on the monotonic clock; None without TLS."""
    if not isinstance(sock, ssl.SSLSocket):
        return None
    certificate: dict[str, Any] = sock.getpeercert() or {}
    return time.monotonic() + ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()


def _greeted(sock: socket.socket, expected: str, until_s: float) -> bool:
    """Say whether the other end gives the greeting that is expected; whatever else it says is not read."""
    head = _receive(sock, len(GREETING) + 2, until_s)
    if not head.startswith(GREETING):
        raise ValueError("no greeting")
    (size,) = struct.unpack("<H", head[len(GREETING) :])
    wanted = expected.encode()
    return size == len(wanted) and _receive(sock, size, until_s) == wanted


def _receive(sock: socket.socket, size: int, until_s: float) -> bytes:
    data = b""
    while len(data) < size:
        sock.settimeout(max(0.001, until_s - time.monotonic()))
        part = sock.recv(size - len(data))
        if not part:
            raise ValueError("the connection ended before a greeting")
        data += part
    return data
