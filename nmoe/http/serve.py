"""Serve: a server in the foreground of a process, until that is told to end."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Protocol

LOOK_S = 0.1


class Startable(Protocol):
    """A server."""

    def start(self) -> str:
        """Answer from now on, and return the address as ``host:port``."""

    def check(self) -> None:
        """Raise if it has ended by itself."""

    def stop(self) -> None:
        """Let requests in progress end, and return when all is over."""


def serve_until_told(server: Startable, *, tell: Callable[[str], None], lifeline: int | None = None) -> None:
    """Serve until SIGINT or SIGTERM; blocks. Must run on the main thread.

    Args:
        server: not started.
        tell: is given the line ``ready http://host:port`` once it serves.
        lifeline: file descriptor to read from; when it ends, as it does when the process that holds its other end dies, the server does.

    Raises:
        ServerError: when it cannot listen, or broke down.
    """
    told: list[int] = []  # a plain list: an event's lock may be held by the very thread that a handler interrupts
    before = {number: signal.signal(number, lambda number, _: told.append(number)) for number in (signal.SIGINT, signal.SIGTERM)}
    if lifeline is not None:
        threading.Thread(target=_watch, args=(lifeline, told), name="nmoe-lifeline", daemon=True).start()
    try:
        tell(f"ready http://{server.start()}")
        while not told:
            time.sleep(LOOK_S)
            server.check()
    finally:
        server.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(lifeline: int, told: list[int]) -> None:
    with contextlib.suppress(OSError):
        while os.read(lifeline, 4096):
            pass
    told.append(0)
