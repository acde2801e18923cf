"""Streams: connections that carry frames in both directions, and the thread that reads them.

A frame is length (4 bytes), number of the query (8), service (1), all little-endian, and the payload. Whoever has a message writes it, and
what a full socket does not take is left to the reading thread, up to ``MAX_LEFT_BYTES``. A stream whose other end takes nothing for
``STUCK_S`` is closed. Only the loop's thread touches the selector; a stream closed from elsewhere is shut down there and dropped here.
"""

import selectors
import socket
import ssl
import struct
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from nmoe.node.messages import MAX_MESSAGE_BYTES

HEADER = struct.Struct("<IQB")
BUFFER_BYTES = 1 << 18
LARGE_BYTES = 1 << 15
MAX_LEFT_BYTES = 8 << 20  # that may wait for a socket, unless it is one message
READS_A_TURN = 8  # so that one busy stream does not keep the others waiting
STUCK_S, TICK_S = 2.0, 0.5

OnFrame = Callable[["Stream", int, int, bytes], None]
OnClosed = Callable[["Stream"], None]


class Stream:
    """One connection, after its greeting. ``send`` and ``close`` may be called from any thread; reading is the loop's business.

    Args:
        sock: connected, made non-blocking here.
        loop: reads it.
        on_frame: called with this stream, number, service and payload.
        on_closed: called once, on the loop's thread.
        until_s: when it ends by itself, on the monotonic clock; None for never.
    """

    def __init__(self, sock: socket.socket, loop: "Loop", on_frame: OnFrame, on_closed: OnClosed, *, until_s: float | None = None) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.open = True
        self.until_s = until_s
        self.on_closed = on_closed
        self._loop = loop
        self._on_frame = on_frame
        self._lock = threading.Lock()  # of writing; with TLS of reading too, which is not safe beside it
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._left: deque[memoryview] = deque()
        self._left_bytes = 0
        self._taken_s = 0.0  # when the other end last took something
        self._head = bytearray()
        self._body: bytearray | None = None
        self._filled = 0
        self._number = self._service = 0

    def send(self, number: int, service: int, payload: bytes) -> bool:
        """Send a frame; False when the stream is closed, or closes because its other end does not keep up. Never waits."""
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
            if not data and self.open:
                return True
            full = bool(self._left) and self._left_bytes + len(data) > MAX_LEFT_BYTES
            if self.open and not full:
                if not self._left:
                    self._taken_s = time.monotonic()
                self._left.append(data)
                self._left_bytes += len(data)
        if full or not self.open:
            self.close()
            return False
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
                self._left_bytes -= sent
                self._left[0] = self._left[0][sent:]
                if not self._left[0]:
                    self._left.popleft()
        return True

    def over(self, now_s: float) -> bool:
        """Say whether it is to be closed: its time is up, or the other end has taken nothing for too long."""
        stuck = bool(self._left) and now_s - self._taken_s > STUCK_S
        return stuck or (self.until_s is not None and now_s > self.until_s)

    def read(self, buffer: bytearray) -> None:
        """Read some of what is there and hand on whole frames. On the loop's thread."""
        view = memoryview(buffer)
        for turn in range(READS_A_TURN):
            if not self.open or (turn and self._tls and not self._pending()):
                return
            target = view if self._body is None else memoryview(self._body)[self._filled :]
            try:
                count = self._receive(target)
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
        if self._tls and self._pending():  # decrypted already, so the selector would not tell
            self._loop.call(lambda: self.read(buffer) if self.open else None)

    def _receive(self, target: memoryview) -> int:
        if self._tls:
            with self._lock:
                return self.sock.recv_into(target)
        return self.sock.recv_into(target)

    def _pending(self) -> bool:
        assert isinstance(self.sock, ssl.SSLSocket)
        with self._lock:
            return self.open and self.sock.pending() > 0

    def _finish_body(self) -> None:
        body = self._body
        if body is not None and self._filled == len(body):
            self._body = None
            self._on_frame(self, self._number, self._service, bytes(body))

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
            body = bytes(data[at : at + size])
            at += size
            self._on_frame(self, number, service, body)
            if not self.open:
                return
        self._head = bytearray(data[at:])

    def close(self) -> None:
        """End the stream; ``on_closed`` follows once."""
        self.open = False
        with suppress(OSError):  # it has ended already
            self.sock.shutdown(socket.SHUT_RDWR)
        self._loop.drop_later(self)


class Loop:
    """The thread that reads all streams of one member, and accepts new ones. Selector and sets belong to it alone.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._todo: deque[Callable[[], object]] = deque()
        self._streams: set[Stream] = set()
        self._open = True
        self._ended = False  # the thread, but for what it still finds to do
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    @property
    def num_streams(self) -> int:
        """Streams open now."""
        return len(self._streams)

    def call(self, todo: Callable[[], object]) -> None:
        """Run something on the loop's thread; once that has ended, here."""
        self._todo.append(todo)
        if self._ended:
            self._finish()
        else:
            self._wake_up()

    def _wake_up(self) -> None:
        with suppress(OSError):  # it is full, so the thread will wake; or the thread has ended
            self._waker.send(b"\0")

    def listen(self, sock: socket.socket, accept: Callable[[], None]) -> None:
        """Call ``accept`` whenever somebody waits at a listening socket."""
        self.call(lambda: self._selector.register(sock, selectors.EVENT_READ, accept))

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
        if self._ended:
            stream.open = False
            stream.sock.close()
            stream.on_closed(stream)
            return
        self._streams.add(stream)
        self._selector.register(stream.sock, selectors.EVENT_READ, stream)
        if not stream.open:
            self._drop(stream)

    def write_later(self, stream: Stream) -> None:
        """Go on writing when the socket takes more."""
        self.call(lambda: self._watch(stream, writing=True))

    def _watch(self, stream: Stream, *, writing: bool) -> None:
        if stream in self._streams:
            self._selector.modify(stream.sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0), stream)

    def drop_later(self, stream: Stream) -> None:
        """Forget a stream that was ended."""
        self.call(lambda: self._drop(stream))

    def _drop(self, stream: Stream) -> None:
        if stream not in self._streams:  # a second time, or not added yet: then ``_add`` sees to it
            return
        self._streams.discard(stream)
        self._selector.unregister(stream.sock)
        stream.sock.close()
        stream.on_closed(stream)

    def close(self) -> None:
        """Close all streams and end the thread."""
        self._open = False
        self._wake_up()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        buffer = bytearray(BUFFER_BYTES)
        looked_s = time.monotonic()
        while self._open:
            for key, mask in self._selector.select(TICK_S if self._streams else None):
                self._guard(key.data, mask, buffer)
            while self._todo:
                self._guard(self._todo.popleft(), 0, buffer)
            if (now_s := time.monotonic()) - looked_s > TICK_S:
                looked_s = now_s
                for stream in [stream for stream in self._streams if stream.over(now_s)]:
                    stream.close()
        self._finish()  # what is told to close now must not be left open
        for stream in list(self._streams):
            stream.open = False
            self._guard(lambda stream=stream: self._drop(stream), 0, buffer)  # type: ignore[misc]  # a default binds the loop's variable
        self._ended = True
        self._finish()
        for end in (self._selector, self._wake, self._waker):
            end.close()

    def _finish(self) -> None:
        """Do what is left to do."""
        with suppress(IndexError):  # another thread may have done the last of it
            while True:
                self._guard(self._todo.popleft(), 0, bytearray())

    def _guard(self, what: Stream | Callable[[], object] | None, mask: int, buffer: bytearray) -> None:
        """Do one thing; an error in it is shown and ends one stream, not the others."""
        try:
            if what is None:
                self._wake.recv(4096)
            elif isinstance(what, Stream):
                self._serve(what, mask, buffer)
            else:
                what()
        except Exception:  # noqa: BLE001  # our bug, or a handler's: shown, ends that stream; a dead thread would end all
            traceback.print_exc()
            if isinstance(what, Stream):
                what.close()

    def _serve(self, stream: Stream, mask: int, buffer: bytearray) -> None:
        if stream not in self._streams:  # dropped earlier in this turn
            return
        if mask & selectors.EVENT_WRITE and stream.flush():
            self._watch(stream, writing=False)
        if mask & selectors.EVENT_READ:
            stream.read(buffer)
        if not stream.open:
            stream.close()
