"""HTTP server: the Open Inference Protocol, metrics and the dashboard in front of one node, in a thread and an event loop of its own."""

from nmoe.http import HEADER_S, HttpThread, ServerError, listen
from nmoe.node.http.app import create_app
from nmoe.node.http.intake import MAX_HELD_BYTES
from nmoe.node.service import NodeService


class HttpServer:
    """One node's HTTP server.

    Args:
        service: the node.
        host, port: where to listen; port 0 for any free one.
        max_body_bytes: larger requests are told 413.
        max_held_bytes: of all bodies in progress; what comes beyond is told 503.
        drain_s: how long requests in progress may take after ``stop``.
        body_timeout_s: how long a request's body may take to arrive.
        header_timeout_s: how long its header may.
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
        self._address: str | None = None
        app = create_app(service, max_body_bytes=max_body_bytes, max_held_bytes=max_held_bytes, body_timeout_s=body_timeout_s)
        self._http = HttpThread(app, name="nmoe-http", drain_s=drain_s, header_s=header_timeout_s)

    @property
    def address(self) -> str:
        """Where it listens, as ``host:port``.

        Raises:
            ServerError: before ``start``.
        """
        if self._address is None:
            raise ServerError("the HTTP server has not been started")
        return self._address

    def start(self) -> None:
        """Listen, and answer from now on.

        Raises:
            ServerError: when the address is taken or not this machine's.
        """
        self._address = self._http.start(listen(self._host, self._port))

    def stop(self) -> None:
        """Take no more connections, let requests in progress end within ``drain_s``, and return when all is over. May be called twice."""
        self._http.stop()
