"""Market server: a market over HTTP, in a thread and an event loop of its own."""

import asyncio
import contextlib
import importlib.util
import math
import os
import resource
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from nmoe.core.errors import NmoeError
from nmoe.market.service.api import MarketApi
from nmoe.market.service.app import create_market_app
from nmoe.market.service.commitment import SECRET_BYTES
from nmoe.market.service.ledger import Ledger
from nmoe.market.service.market_metrics import MarketMetrics
from nmoe.market.service.sealed_market import SealedMarket
from nmoe.market.service.terms import MarketSettings

MAX_CONNECTIONS = 4096
BACKLOG = 2048
MAX_HEADER_BYTES = 64 << 10  # of a header that is not whole yet; one that comes whole in one read may fill that read, 256 KiB
HEADER_S = 10.0  # a client has this long to write a request's header
KEEP_ALIVE_S = 30
DRAIN_S = 5.0  # for requests under way when it stops
START_S = 30.0
LOOK_S = 0.1
LONGEST_NAP_S = 0.5  # between two looks at the clock, which may be set


class MarketServerError(NmoeError):
    """A market's server that cannot listen, or broke down."""


class MarketServer:
    """The server of a market's database.

    Args:
        database: an SQLite file; made if it is not there.
        host: where to listen.
        port: likewise; 0 for any free one.
        settings: of the market.

    Raises:
        BadFile: when the file is no market's database, or damaged.
        LedgerError: when another server holds it.
    """

    def __init__(self, database: Path, host: str, port: int, *, settings: MarketSettings) -> None:
        self._host, self._port = host, port
        self._ledger = Ledger(database, secret=secrets.token_bytes(SECRET_BYTES))
        self._market = SealedMarket(self._ledger, settings, now=time.time)
        metrics = MarketMetrics(self._market)
        self._api = MarketApi(self._market, metrics)
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        config = uvicorn.Config(
            create_market_app(self._api, metrics, sorted(settings.workloads)),
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(DRAIN_S),
        )
        self._server = uvicorn.Server(config)

    def start(self) -> str:
        """Listen, answer from now on, and return the address as ``host:port``.

        Raises:
            MarketServerError: when the address is taken or not this machine's.
            BadFile: when a stored epoch or bid is damaged.
            ValueError: when an epoch that is not cleared was opened with other workloads.
        """
        try:
            self._listen()
            assert self._socket is not None, "it listens"
            host, port = self._socket.getsockname()[:2]
            self._thread = threading.Thread(target=self._run, name="nmoe-market", daemon=True)
            self._thread.start()
            until_s = time.monotonic() + START_S
            while not self._server.started:
                if not self.running or time.monotonic() > until_s:
                    if self._error is not None:
                        raise self._error
                    raise MarketServerError(f"the server at {host}:{port} did not start within {START_S:g} s")
                time.sleep(0.002)
        except BaseException:
            self.stop()
            raise
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def running(self) -> bool:
        """Whether it answers."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def failure(self) -> str | None:
        """Why it ended by itself, if it is known."""
        return self._ledger.failure or self._market.failure

    def stop(self) -> None:
        """Take no more connections, let requests under way end, and let go of the database. May be called twice."""
        self._api.leaving = True
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(DRAIN_S + 3.0)
            if self._thread.is_alive():
                self._server.force_exit = True
                self._thread.join(2.0)
        if self._socket is not None:
            self._socket.close()
        self._ledger.close()

    def _listen(self) -> None:
        _allow_files()
        try:
            family = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            self._socket = socket.create_server((self._host, self._port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise MarketServerError(f"cannot serve HTTP at {self._host}:{self._port}: {error.strerror or error}") from error

    def _run(self) -> None:
        factory = None
        if importlib.util.find_spec("uvloop") is not None:
            import uvloop

            factory = uvloop.new_event_loop
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(self._serve())
        except (NmoeError, ValueError) as error:
            self._error = error

    async def _serve(self) -> None:
        assert self._socket is not None, "start binds first"
        await self._market.start(self._fail)
        beside = [asyncio.create_task(self._tick()), asyncio.create_task(self._sweep())]
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            for task in beside:
                task.cancel()
            for task in beside:
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await self._market.stop()

    def _fail(self) -> None:
        self._server.should_exit = True

    async def _tick(self) -> None:
        """End epochs when their time is over."""
        while True:
            remaining_s = self._market.remaining_s()
            await asyncio.sleep(LONGEST_NAP_S if remaining_s is None else min(remaining_s, LONGEST_NAP_S))
            self._market.tick()

    async def _sweep(self) -> None:
        """End connections whose header does not come: uvicorn has a limit for idle connections only, not for slow ones."""
        since_s: dict[HttpToolsProtocol, float] = {}
        while True:
            await asyncio.sleep(HEADER_S / 8)
            now_s = time.monotonic()
            open_ones = [one for one in self._server.server_state.connections if isinstance(one, HttpToolsProtocol)]
            since_s = {one: since_s.get(one, now_s) for one in open_ones if _owes_header(one)}
            for one, first_s in since_s.items():
                if now_s - first_s > HEADER_S:
                    one.transport.close()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools, which keeps what it has of a header without any bound, with one."""

    unfinished_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Take what came, and end the connection when a header grows too long."""
        super().data_received(data)
        self.unfinished_bytes = self.unfinished_bytes + len(data) if _owes_header(self) else 0
        if self.unfinished_bytes > MAX_HEADER_BYTES:
            self.transport.close()


def _owes_header(connection: HttpToolsProtocol) -> bool:
    """Say whether a client has a request to write and has not written its header."""
    cycle: RequestResponseCycle | None = connection.cycle  # None before the first header, whatever uvicorn's annotation says
    return cycle is None or (cycle.response_complete and connection.timeout_keep_alive_task is None)


def _allow_files() -> None:
    """Let this process open as many files as it has connections, and some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, 2 * MAX_CONNECTIONS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve_market_until_told(server: MarketServer, *, tell: Callable[[str], None], lifeline: int | None = None) -> None:
    """Serve until SIGINT or SIGTERM; blocks. Must run on the main thread.

    Args:
        server: not started.
        tell: is given the line ``ready http://host:port`` once it serves.
        lifeline: file descriptor to read from; when it ends, as it does when the process that holds its other end dies, the server does.

    Raises:
        MarketServerError: when it cannot listen, or broke down.
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
                raise MarketServerError(server.failure or "the server broke down; its error stands above")
    finally:
        server.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(lifeline: int, told: list[int]) -> None:
    with contextlib.suppress(OSError):
        while os.read(lifeline, 4096):
            pass
    told.append(0)
