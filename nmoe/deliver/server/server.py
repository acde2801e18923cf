"""Delivery server: a folder of models over HTTP, each transfer at its user's pace, in a thread and an event loop of its own."""

import asyncio
import contextlib
import importlib.util
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nmoe.core.errors import NmoeError
from nmoe.deliver.server.api import DeliveryApi
from nmoe.deliver.server.app import create_app
from nmoe.deliver.server.folder import ModelFolder
from nmoe.deliver.server.metrics import DeliveryMetrics
from nmoe.deliver.server.replanner import DeliverySettings, Replanner
from nmoe.deliver.server.transfer import Timing

MAX_HEADER_BYTES = 16 << 10  # of a header that is not whole yet; one that comes whole in one read may fill that read, 256 KiB
MAX_CONNECTIONS = 1024
HEADER_S = 10.0  # a client has this long to write a request's header, and a closed one to go
KEEP_ALIVE_S = 30
TICK_S = 0.1
UNSENT_BYTES = 64 << 10  # that the kernel holds for a connection; more would hide how slow a link is
START_S = 10.0
LOOK_S = 0.1
GRACE_S = 1.0  # for transfers to see that the server is closed; then they are cancelled


class ServerError(NmoeError):
    """A delivery server that cannot listen, or broke down."""


class DeliveryServer:
    """A folder's server.

    Args:
        folder: with model files.
        host, port: where to listen; port 0 for any free one.
        settings: what is shared.
        drain_s: how long transfers may go on after ``stop``.

    Raises:
        BadFile: when there is no such folder.
    """

    def __init__(self, folder: Path, host: str, port: int, *, settings: DeliverySettings, drain_s: float = 1.0) -> None:
        self.replanner = Replanner(settings=settings)
        self._host, self._port, self._drain_s = host, port, drain_s
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        metrics = DeliveryMetrics(self.replanner)
        timing = Timing(now=time.monotonic, sleep=asyncio.sleep)
        self._api = DeliveryApi(ModelFolder(folder), self.replanner, timing=timing, metrics=metrics)
        config = uvicorn.Config(
            create_app(self._api, metrics),
            http=H11Protocol,  # slower than httptools, but it bounds what is kept of an unfinished header
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(drain_s + GRACE_S),
        )
        self._server = uvicorn.Server(config)

    def start(self) -> str:
        """Listen, answer from now on, and return the address as ``host:port``.

        Raises:
            ServerError: when the address is taken or not this machine's.
        """
        try:
            family = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            self._socket = socket.create_server((self._host, self._port), family=family, backlog=MAX_CONNECTIONS)
        except OSError as error:
            raise ServerError(f"cannot serve HTTP at {self._host}:{self._port}: {error.strerror or error}") from error
        if "linux" in os.uname().sysname.lower():
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)  # what it accepts inherits this
        host, port = self._socket.getsockname()[:2]
        self._thread = threading.Thread(target=self._run, name="nmoe-deliver", daemon=True)
        self._thread.start()
        until_s = time.monotonic() + START_S
        while not self._server.started:
            if not self.running or time.monotonic() > until_s:
                raise ServerError(f"the server at {host}:{port} did not start")
            time.sleep(0.002)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def running(self) -> bool:
        """Whether it answers."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """Take no more connections, let transfers end within ``drain_s``, and return when all is over. May be called twice."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(self._drain_s)
            self.replanner.closed = True
            self._thread.join(GRACE_S + 1.0)
            if self._thread.is_alive():
                self._server.force_exit = True
                self._thread.join(2.0)
        if self._socket is not None:
            self._socket.close()

    def _run(self) -> None:
        factory = None
        if importlib.util.find_spec("uvloop") is not None:
            import uvloop

            factory = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        assert self._socket is not None, "start binds first"
        beside = [asyncio.create_task(self._tick()), asyncio.create_task(self._sweep())]
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            for task in beside:
                task.cancel()
            for task in beside:
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _tick(self) -> None:
        """Measure, expire and plan anew. A plan that fails is our bug: it ends the server rather than leave a stale plan in force."""
        try:
            while True:
                await asyncio.sleep(TICK_S)
                await self._api.tick()
        except Exception:
            self._server.should_exit = True
            raise

    async def _sweep(self) -> None:
        """End connections whose header does not come, or that are closed and do not go: uvicorn has no limit for these."""
        since_s: dict[H11Protocol, float] = {}
        while True:
            await asyncio.sleep(HEADER_S / 8)
            now_s = time.monotonic()
            open_ones = [one for one in self._server.server_state.connections if isinstance(one, H11Protocol)]
            since_s = {one: since_s.get(one, now_s) for one in open_ones if one.transport.is_closing() or _header_owed(one)}
            for one, first_s in since_s.items():
                if now_s - first_s > HEADER_S:
                    one.transport.abort()


def _header_owed(connection: H11Protocol) -> bool:
    """Say whether a client has a request to write and has not written its header."""
    cycle = connection.cycle
    return cycle is None or (cycle.response_complete and connection.timeout_keep_alive_task is None)


def serve_until_told(server: DeliveryServer, *, tell: Callable[[str], None], lifeline: int | None = None) -> None:
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
            if not server.running:
                raise ServerError("the server broke down; its error stands above")
    finally:
        server.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(lifeline: int, told: list[int]) -> None:
    with contextlib.suppress(OSError):
        while os.read(lifeline, 4096):
            pass
    told.append(0)
