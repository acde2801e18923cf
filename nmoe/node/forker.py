"""Forker: forks node processes and waits for them, on one thread.

Each node holds one end of a socket pair, and only the forker the other. By its end a node learns that the forker is dead, whatever killed
it, and the forker that the node is; on it a node says that it is ready, or why it cannot be. What ends is reaped at once, so that a dead
node is no zombie to whoever looks.
"""

import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn, Self

from nmoe.core.errors import MeshError, NmoeError
from nmoe.node.process import GRACE_S, print_line
from nmoe.node.runner import DRAIN_S

READY = b"+"
STOPPING = (signal.SIGINT, signal.SIGTERM)

Serve = Callable[[int, Callable[[str], None]], None]


@dataclass(slots=True, kw_only=True, eq=False)
class _Child:
    name: str
    pid: int
    link: socket.socket
    said: bytes = b""  # READY, and why it ended

    @property
    def ready(self) -> bool:
        return self.said.startswith(READY)

    def end(self, status: int) -> str:
        """Return in words how it ended."""
        words = f"ended with status {status}" if status >= 0 else f"was ended by signal {-status}"
        return self.said.removeprefix(READY).decode(errors="replace") or words


class Forker:
    """Forks nodes and waits for them, on one thread. When its block is left, none of them is."""

    def __init__(self, lifeline: int | None) -> None:
        self._children: list[_Child] = []
        self._stopping = False
        self._gently = False  # told by SIGTERM: nodes leave without a failed request
        self._lifeline = lifeline
        self._selector = selectors.SelectSelector()  # epoll would refuse a file or /dev/null as the lifeline
        self._wake, self._waker = socket.socketpair()  # a signal alone would not end a select

    def __enter__(self) -> Self:
        for end in (self._wake, self._waker):
            end.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who started us may have had it ignored, and then nothing could be reaped
        for number in STOPPING:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._pass_on)
        self._selector.register(self._wake, selectors.EVENT_READ, lambda: self._wake.recv(4096))
        if self._lifeline is not None:
            self._selector.register(self._lifeline, selectors.EVENT_READ, self._watch_lifeline)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End what is left: first ask, then make."""
        self._stopping = True
        gently = self._gently and error is None
        for child in self._children:  # none is reaped yet, so these numbers are still theirs
            os.kill(child.pid, signal.SIGCONT)  # a frozen one could not hear the next
            os.kill(child.pid, signal.SIGTERM if gently else signal.SIGINT)
        until_s = time.monotonic() + GRACE_S + (DRAIN_S if gently else 0.0)
        while self._children and (left_s := until_s - time.monotonic()) > 0:
            self._turn(left_s)
        for child in list(self._children):
            os.kill(child.pid, signal.SIGKILL)
            self._reap(child)
        signal.set_wakeup_fd(-1)
        for end in (self._selector, self._wake, self._waker):
            end.close()

    def fork(self, name: str, serve: Serve) -> None:
        """Start a node; ``serve`` gets the file descriptor of its link to us, and what to call when it is ready."""
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # until the child no longer has our handlers
        try:
            pid = os.fork()
            if pid == 0:
                self._become_node(serve, ours, theirs)
        except OSError as error:
            raise MeshError(f"{name}: cannot fork: {error.strerror}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
            theirs.close()
        child = _Child(name=name, pid=pid, link=ours)
        self._children.append(child)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._hear(child))

    def wait(self) -> None:
        """Wait until told to stop."""
        while not self._stopping:
            if not self._children:
                raise MeshError("no node is left")
            self._turn(None)

    def _turn(self, timeout_s: float | None) -> None:
        for key, _ in self._selector.select(timeout_s):
            key.data()

    def _stop(self, number: int, _: object) -> None:
        self._gently = number == signal.SIGTERM and not self._stopping
        self._stopping = True

    def _pass_on(self, number: int, _: object) -> None:
        for child in self._children:
            os.kill(child.pid, number)

    def _watch_lifeline(self) -> None:
        assert self._lifeline is not None
        if not os.read(self._lifeline, 4096):
            self._selector.unregister(self._lifeline)
            self._stopping = True

    def _hear(self, child: _Child) -> None:
        if data := child.link.recv(4096):
            child.said += data
            return
        status = self._reap(child)
        if self._stopping:
            return
        if not child.ready:
            raise MeshError(f"{child.name}: {child.end(status)}")
        print_line(f"ended {child.name} {status}")
        print(f"{child.name} (pid {child.pid}) {child.end(status)}; the others go on", file=sys.stderr, flush=True)

    def _reap(self, child: _Child) -> int:
        self._selector.unregister(child.link)
        child.link.close()
        self._children.remove(child)
        return os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])

    def _become_node(self, serve: Serve, ours: socket.socket, theirs: socket.socket) -> NoReturn:
        """Be the node until it ends; nothing of the forker's may run in this process."""
        status = 1

        def say(data: bytes) -> None:
            with suppress(BrokenPipeError):  # the forker is dead; the lifeline says so
                theirs.sendall(data)

        def tell(line: str) -> None:
            say(READY)  # first: whoever reads the line may kill this node at once, and the forker must know that it was ready
            print_line(line)

        try:
            signal.set_wakeup_fd(-1)
            for number in (*STOPPING, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
            for end in (ours, self._wake, self._waker, *(child.link for child in self._children)):
                end.close()  # the forker alone may hold them: else its death would go unnoticed
            serve(theirs.fileno(), tell)
            status = 0
        except (NmoeError, ValueError) as error:
            if os.environ.get("NMOE_TRACEBACK"):
                traceback.print_exc()
            say(" ".join(str(error).split()).encode())
            status = 2
        except BaseException as error:  # noqa: BLE001  # a bug must not go on as if this were the forker
            traceback.print_exc()
            say(f"{type(error).__name__}: {error}".encode())
        finally:
            try:
                sys.stderr.flush()
            finally:
                os._exit(status)
