"""Direct links: one stream from each member to each node it asks, TCP, or TLS with the mesh's own certificates.

Zenoh finds the nodes, says who is alive and carries what has no direct link, through routers for instance. What is asked most goes directly:
a message through zenoh wakes four threads in each direction and costs 0.25 ms there and back on loopback, here one and 0.07 ms (LOG.md).

A frame is length (4 bytes), number of the query (8), service (1), all little-endian, and the payload; a reply bears its query's number. The first
frame of a connection is a greeting that names mesh, extractor fingerprint and node, so that nobody asks the wrong one. One thread reads all
streams; whoever has a message writes it, and what a full socket does not take is left to that thread. A stream whose other end takes
nothing for ``STUCK_S`` is closed. TLS needs a certificate of the authority on both sides; the server's must bear the node's name, and
where members are named the client's must bear one of theirs.
"""

import selectors
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from nmoe.node.messages import MAX_MESSAGE_BYTES
from nmoe.node.transport.base import Service

HEADER = struct.Struct("<IQB")
GREETING = b"NMOE direct 1 "
BUFFER_BYTES = 1 << 18
LARGE_BYTES = 1 << 15
HANDSHAKE_S, STUCK_S = 2.0, 2.0
MAX_SHAKING = 64  # connections that have not yet said who they are
SERVICES = tuple(Service)

OnFrame = Callable[["Stream", int, int, bytearray], None]
OnClosed = Callable[["Stream"], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """TLS for both directions."""

    server: ssl.SSLContext
    client: ssl.SSLContext


class Stream:
    """One connection, after its greeting. ``send`` may be called from any thread; reading is the loop's business.

    Args:
        sock: connected, made non-blocking here.
        loop: reads it.
        on_frame: called with this stream, number, service and payload.
        on_closed: called once.
    """

    def __init__(self, sock: socket.socket, loop: "Loop", on_frame: OnFrame, on_closed: OnClosed) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.open = True
        self._loop = loop
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._lock = threading.Lock()  # of writing; with TLS of reading too, which is not safe beside it
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._left: deque[memoryview] = deque()
        self._taken_s = 0.0  # when the other end last took something
        self._head = bytearray()
        self._body: bytearray | None = None
        self._filled = 0
        self._number = self._service = 0

    def send(self, number: int, service: int, payload: bytes) -> bool:
        """Send a frame; False when the stream is closed. Never waits."""
        head = HEADER.pack(len(payload), number, service)
        with self._lock:
            if not self.open:
                return False
            if self._tls or len(payload) < LARGE_BYTES:
                data = memoryview(head + payload)
                if not self._left:
                    data = data[self._write(data) :]
            else:  # worth not copying
                sent = 0 if self._left else self._write_both(head, payload)
                data = memoryview(head[sent:] + payload) if sent < HEADER.size else memoryview(payload)[sent - HEADER.size :]
            if not data or not self.open:
                return self.open
            if not self._left:
                self._taken_s = time.monotonic()
            self._left.append(data)
        self._loop.write_later(self)
        return True

    def _write(self, data: memoryview) -> int:
        try:
            return self.sock.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0
        except OSError:
            self.open = False
            return 0

    def _write_both(self, head: bytes, payload: bytes) -> int:
        try:
            return self.sock.sendmsg((head, payload))
        except BlockingIOError:
            return 0
        except OSError:
            self.open = False
            return 0

    def flush(self) -> bool:
        """Write what is left; return whether nothing is. On the loop's thread."""
        with self._lock:
            while self._left:
                sent = self._write(self._left[0])
                if not sent:
                    return not self.open
                self._taken_s = time.monotonic()
                self._left[0] = self._left[0][sent:]
                if not self._left[0]:
                    self._left.popleft()
        return True

    def stuck(self, now_s: float) -> bool:
        """Say whether the other end has taken nothing for too long."""
        return bool(self._left) and now_s - self._taken_s > STUCK_S

    def read(self, buffer: bytearray) -> None:
        """Read what is there and hand on whole frames. On the loop's thread."""
        view = memoryview(buffer)
        while self.open:
            target = view if self._body is None else memoryview(self._body)[self._filled :]
            try:
                if self._tls:
                    with self._lock:
                        count = self.sock.recv_into(target)
                else:
                    count = self.sock.recv_into(target)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError:
                count = 0
            if not count:
                self.close()
                return
            if self._body is not None:
                self._filled += count
                self._finish_body()
            else:
                self._parse(view[:count])
            if not self._tls and count < len(target):
                return  # there is no more; the selector will tell

    def _finish_body(self) -> None:
        body = self._body
        if body is not None and self._filled == len(body):
            self._body = None
            self._on_frame(self, self._number, self._service, body)

    def _parse(self, data: memoryview) -> None:
        """Take frames out of what was read; the rest waits in ``_head`` or ``_body``."""
        if self._head:
            self._head += data
            data = memoryview(bytes(self._head))
            self._head = bytearray()
        at = 0
        while len(data) - at >= HEADER.size:
            size, number, service = HEADER.unpack_from(data, at)
            if size > MAX_MESSAGE_BYTES:
                self.close()
                return
            at += HEADER.size
            if len(data) - at < size:
                self._body, self._filled = bytearray(size), len(data) - at
                self._body[: self._filled] = data[at:]
                self._number, self._service = number, service
                return
            body = bytearray(data[at : at + size])
            at += size
            self._on_frame(self, number, service, body)
            if not self.open:
                return
        self._head = bytearray(data[at:])

    def close(self) -> None:
        """Close the stream; ``on_closed`` follows once."""
        with self._lock:
            if self.sock.fileno() < 0:
                return
            self.open = False
            self._loop.forget(self)
            self.sock.close()
        self._on_closed(self)


class Loop:
    """The thread that reads all streams of one member, and accepts new ones.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._todo: deque[Callable[[], None]] = deque()
        self._streams: set[Stream] = set()
        self._writing: set[Stream] = set()
        self._open = True
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def call(self, todo: Callable[[], None]) -> None:
        """Run something on the loop's thread."""
        self._todo.append(todo)
        self._waker.send(b"\0")

    def listen(self, sock: socket.socket, accept: Callable[[], None]) -> None:
        """Call ``accept`` whenever somebody waits at a listening socket."""
        self.call(lambda: self._listen(sock, accept))

    def _listen(self, sock: socket.socket, accept: Callable[[], None]) -> None:
        if sock.fileno() >= 0:  # else it was closed meanwhile
            self._selector.register(sock, selectors.EVENT_READ, accept)

    def unlisten(self, sock: socket.socket) -> None:
        """Stop listening and close the socket."""
        self.call(lambda: self._unlisten(sock))

    def _unlisten(self, sock: socket.socket) -> None:
        if sock.fileno() in self._selector.get_map():
            self._selector.unregister(sock)
        sock.close()

    def add(self, stream: Stream) -> None:
        """Begin to read a stream."""
        self.call(lambda: self._add(stream))

    def _add(self, stream: Stream) -> None:
        if stream.open:
            self._streams.add(stream)
            self._selector.register(stream.sock, selectors.EVENT_READ, stream)

    def write_later(self, stream: Stream) -> None:
        """Go on writing when the socket takes more."""
        self.call(lambda: self._watch_writing(stream))

    def _watch_writing(self, stream: Stream) -> None:
        if stream in self._streams:
            self._writing.add(stream)
            self._selector.modify(stream.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, stream)

    def forget(self, stream: Stream) -> None:
        """A stream is about to be closed; called under its lock, from any thread."""
        try:
            self._selector.unregister(stream.sock)
        except (KeyError, ValueError):  # was never added
            return
        self._streams.discard(stream)
        self._writing.discard(stream)

    def close(self) -> None:
        """Close all streams and end the thread."""
        self._open = False
        self._waker.send(b"\0")
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        buffer = bytearray(BUFFER_BYTES)
        while self._open:
            for key, mask in self._selector.select(0.5 if self._writing else None):
                if key.data is None:
                    self._wake.recv(4096)
                elif isinstance(key.data, Stream):
                    self._serve(key.data, mask, buffer)
                else:
                    key.data()
            while self._todo:
                self._todo.popleft()()
            if self._writing:
                now_s = time.monotonic()
                for stream in [stream for stream in self._writing if stream.stuck(now_s)]:
                    stream.close()
        for stream in list(self._streams):
            stream.close()
        for end in (self._selector, self._wake, self._waker):
            end.close()

    def _serve(self, stream: Stream, mask: int, buffer: bytearray) -> None:
        if mask & selectors.EVENT_WRITE and stream.flush() and stream in self._writing:
            self._writing.discard(stream)
            self._selector.modify(stream.sock, selectors.EVENT_READ, stream)
        if mask & selectors.EVENT_READ:
            stream.read(buffer)
        if not stream.open:
            stream.close()


class Listener:
    """Accepts direct connections of a node; a greeting that does not fit, and a certificate that does not hold, are told and closed.

    Args:
        loop: reads the streams.
        host: address to listen on.
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
        greeting: str,
        *,
        on_frame: OnFrame,
        on_closed: OnClosed,
        on_refusal: Callable[[str, str], None],
        tls: Contexts | None,
        members: frozenset[str] | None,
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._sock = socket.create_server((host, 0), family=family, backlog=128)
        self._sock.setblocking(False)
        self.port: int = self._sock.getsockname()[1]
        self._loop, self._greeting = loop, greeting
        self._on_frame, self._on_closed, self._on_refusal = on_frame, on_closed, on_refusal
        self._tls, self._members = tls, members
        self._shaking = threading.BoundedSemaphore(MAX_SHAKING)
        self._shakers = ThreadPoolExecutor(4, thread_name_prefix="nmoe-direct-greet")
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
            self._shakers.submit(self._greet, sock, host)
        except RuntimeError:  # closing
            self._shaking.release()
            sock.close()

    def _greet(self, sock: socket.socket, host: str) -> None:
        try:
            sock.settimeout(HANDSHAKE_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = self._tls.server.wrap_socket(sock, server_side=True)
                name = common_name(sock)
                if self._members is not None and name not in self._members:
                    raise _Stranger(name, "not on the list")
            said = _receive_greeting(sock)
            if said != self._greeting:
                raise _Stranger(host, "looks for another node or extractor")
            self._loop.add(Stream(sock, self._loop, self._on_frame, self._on_closed))
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
        host, port: where it listens.
        greeting: what it expects.
        name: of the node; with TLS its certificate must bear it.
        tls: contexts, or None for plain TCP.
        loop: reads the stream.
        on_frame, on_closed: of the stream.

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
        stream = Stream(sock, loop, on_frame, on_closed)
    except OSError:
        sock.close()
        raise
    loop.add(stream)
    return stream


def common_name(sock: socket.socket) -> str:
    """Return the common name of the other end's verified certificate."""
    assert isinstance(sock, ssl.SSLSocket)
    certificate = sock.getpeercert() or {}
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]  # type: ignore[misc, union-attr]
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


def _receive_greeting(sock: socket.socket) -> str:
    head = _receive(sock, len(GREETING) + 2)
    if not head.startswith(GREETING):
        raise ValueError("no greeting")
    (size,) = struct.unpack("<H", head[len(GREETING) :])
    return _receive(sock, size).decode()


def _receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise ValueError("the connection ended before a greeting")
        data += part
    return data
