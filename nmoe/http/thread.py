"""HTTP thread: an application that answers at a socket, in a thread and an event loop of its own."""

import asyncio
import contextlib
import importlib.util
import math
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nmoe.core.errors import NmoeError
from nmoe.http.bounded_protocol import BoundedProtocol

BACKLOG = 2048
MAX_FILES = 65536
HEADER_S = 10.0  # a client has this long to write a request's header
KEEP_ALIVE_S = 30
START_S = 30.0

Connection = HttpToolsProtocol | H11Protocol


class ServerError(NmoeError):
    """A server that cannot listen, or broke down."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 for any free one.

    Raises:
        ServerError: when the address is taken or not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ServerError(f"cannot serve HTTP at {host}:{port}: {error.strerror or error}") from error


@contextlib.asynccontextmanager
async def beside(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Let coroutines run as long as the block does; one that failed meanwhile raises at its end."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


class HttpThread:
    """A thread that answers requests.

    Args:
        app: answers them.
        name: of the thread.
        drain_s: how long requests in progress may take after ``stop``.
        header_s: how long a client may take to write a request's header.
        abandon: whether a client that does not take the rest of its answer is given up too, so long after the connection was closed.
        lifespan: is entered in the event loop before the first request, and left after the last.
        options: of uvicorn, other than these.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        name: str,
        drain_s: float,
        header_s: float,
        abandon: bool = False,
        lifespan: Callable[[], AbstractAsyncContextManager[None]] = beside,
        **options: Any,
    ) -> None:
        self._name, self._drain_s, self._lifespan = name, drain_s, lifespan
        self._header_s, self._abandon = header_s, abandon
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._error: NmoeError | ValueError | None = None
        ours = {"http": BoundedProtocol, "ws": "none", "lifespan": "off", "timeout_keep_alive": KEEP_ALIVE_S, "backlog": BACKLOG}
        quiet = {"log_config": None, "access_log": False, "server_header": False, "proxy_headers": False}
        config = uvicorn.Config(app, **{**ours, **quiet, "timeout_graceful_shutdown": math.ceil(drain_s), **options})
        self._server = uvicorn.Server(config)

    def start(self, listening: socket.socket) -> str:
        """Answer at a socket from now on, and return its address as ``host:port``.

        Raises:
            ServerError: when it does not start.
            NmoeError: from ``lifespan``, as next.
            ValueError: likewise.
        """
        allow_files()
        self._socket = listening
        host, port = listening.getsockname()[:2]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._thread = threading.Thread(target=self._run, args=(listening,), name=self._name, daemon=True)
        self._thread.start()
        until_s = time.monotonic() + START_S
        while not self._server.started:
            if not self.running or time.monotonic() > until_s:
                raise self._error or ServerError(f"the server at {address} did not start")
            time.sleep(0.002)
        return address

    @property
    def running(self) -> bool:
        """Whether it answers."""
        return self._thread is not None and self._thread.is_alive()

    def leave(self) -> None:
        """Take no more connections, and let requests in progress end; returns at once. May be called from any thread."""
        self._server.should_exit = True

    def wait(self, seconds: float) -> None:
        """Return when all is over, or after so long."""
        if self._thread is not None:
            self._thread.join(seconds)

    def stop(self) -> None:
        """Take no more connections, let requests in progress end within ``drain_s``, and return when all is over. May be called twice."""
        self.leave()
        self.wait(self._drain_s + 3.0)
        if self.running:
            self._server.force_exit = True
            self.wait(2.0)
        if self._socket is not None:
            self._socket.close()

    def check(self) -> None:
        """Raise if it has ended by itself.

        Raises:
            NmoeError: the cause, or ServerError when that stands on stderr.
        """
        if not self.running:
            raise self._error or ServerError("the server broke down; its error stands above")

    def _run(self, listening: socket.socket) -> None:
        factory = None
        if importlib.util.find_spec("uvloop") is not None:
            import uvloop

            factory = uvloop.new_event_loop
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(self._serve(listening))
        except NmoeError as error:
            self._error = error
        except ValueError as error:
            if self._server.started:  # then it is our bug and nobody's setting
                raise
            self._error = error

    async def _serve(self, listening: socket.socket) -> None:
        async with self._lifespan(), beside(self._sweep()):
            await self._server.serve(sockets=[listening])

    async def _sweep(self) -> None:
        """End connections whose header does not come: uvicorn has a limit for idle connections only, not for slow ones."""
        since_s: dict[Connection, float] = {}
        while True:
            await asyncio.sleep(self._header_s / 8)
            now_s = time.monotonic()
            open_ones = [one for one in self._server.server_state.connections if isinstance(one, Connection)]
            late = [one for one in open_ones if _owes_header(one) or (self._abandon and one.transport.is_closing())]
            since_s = {one: since_s.get(one, now_s) for one in late}
            for one, first_s in since_s.items():
                if now_s - first_s > self._header_s:
                    if self._abandon:
                        one.transport.abort()
                    else:
                        one.transport.close()


def _owes_header(connection: Connection) -> bool:
    """Say whether a client has a request to write and has not written its header."""
    cycle: Any = connection.cycle  # None before the first header, whatever uvicorn's annotation says
    return cycle is None or (cycle.response_complete and connection.timeout_keep_alive_task is None)


def allow_files() -> None:
    """Let this process open as many files as it may: each connection is one, and the usual limit of 1,024 would be the server's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
