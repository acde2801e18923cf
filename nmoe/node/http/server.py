"""HTTP server: the Open Inference Protocol, metrics and the dashboard in front of one node, in a thread and an event loop of its own."""

import asyncio
import contextlib
import importlib.util
import math
import resource
import socket
import threading
import time

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from nmoe.core.errors import MeshError
from nmoe.node.http.app import create_app
from nmoe.node.http.intake import MAX_HELD_BYTES
from nmoe.node.service import NodeService

BACKLOG = 2048
MAX_FILES = 65536
START_S = 10.0
HEADER_S = 10.0  # a client has this long to write a request's header
KEEP_ALIVE_S = 30


class HttpServer:
    """One node's HTTP server.

    Args:
        service: the node.
        host, port: where to listen; port 0 for any free one.
        max_body_bytes: larger requests are told 413.
        max_held_bytes: of all bodies in progress; what comes beyond is told 503.
        drain_s: how long requests in progress may take after ``stop``.
        body_timeout_s: how long a request's body may take to arrive.
    """

    def __init__(
        self,
        service: NodeService,
        host: str,
        port: int,
        *,
        max_body_bytes: int = 64 << 20,
        max_held_bytes: int = MAX_HELD_BYTES,
        drain_s: float = 5.0,
        body_timeout_s: float = 30.0,
        header_timeout_s: float = HEADER_S,
    ) -> None:
        self._host, self._port = host, port
        self._drain_s = drain_s
        self._header_timeout_s = header_timeout_s
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        config = uvicorn.Config(
            create_app(service, max_body_bytes=max_body_bytes, max_held_bytes=max_held_bytes, body_timeout_s=body_timeout_s),
            http=HttpToolsProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(drain_s),
        )
        self._server = uvicorn.Server(config)

    @property
    def address(self) -> str:
        """Where it listens, as ``host:port``.

        Raises:
            MeshError: before ``start``.
        """
        if self._socket is None:
            raise MeshError("the HTTP server has not been started")
        return self._address

    def start(self) -> None:
        """Listen, and answer from now on.

        Raises:
            MeshError: when the address is taken or not this machine's.
        """
        allow_files()
        try:
            family = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            self._socket = socket.create_server((self._host, self._port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise MeshError(f"cannot serve HTTP at {self._host}:{self._port}: {error.strerror or error}") from error
        host, port = self._socket.getsockname()[:2]
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._thread = threading.Thread(target=self._run, name="nmoe-http", daemon=True)
        self._thread.start()
        until_s = time.monotonic() + START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > until_s:
                raise MeshError(f"the HTTP server at {self._address} did not start")
            time.sleep(0.002)

    def stop(self) -> None:
        """Take no more connections, let requests in progress end within ``drain_s``, and return when all is over. May be called twice."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(self._drain_s + 3.0)
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
        sweeper = asyncio.create_task(self._sweep())
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sweeper

    async def _sweep(self) -> None:
        """End connections whose header does not come: uvicorn has a limit for idle connections only, not for slow ones."""
        since_s: dict[object, float] = {}
        while True:
            await asyncio.sleep(min(1.0, self._header_timeout_s / 4))
            now_s = time.monotonic()
            waiting = [one for one in self._server.server_state.connections if isinstance(one, HttpToolsProtocol) and _owes_header(one)]
            since_s = {one: since_s.get(one, now_s) for one in waiting}
            for one in waiting:
                if now_s - since_s[one] > self._header_timeout_s:
                    one.transport.close()


def _owes_header(connection: HttpToolsProtocol) -> bool:
    """Say whether a client has a request to write and has not written its header."""
    cycle: RequestResponseCycle | None = connection.cycle  # None before the first header, whatever uvicorn's annotation says
    return cycle is None or (cycle.response_complete and connection.timeout_keep_alive_task is None)


def allow_files() -> None:
    """Let this process open as many files as it may: each connection is one, and the usual limit of 1,024 would be the server's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
