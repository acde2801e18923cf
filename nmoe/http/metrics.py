"""Metrics: in Prometheus' text format, requests by route and status and whatever a server adds, with a bounded number of series."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class RequestMetrics:
    """What a server counts.

    Args:
        name: of the requests' counter, such as ``nmoe_market_requests``.
        state: yields metrics of now; asked whenever somebody looks.

    Attributes:
        registry: for counters of the server's own.
    """

    def __init__(self, name: str, state: Callable[[], Iterator[Metric]]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_StateCollector(state))
        self._requests = Counter(name, "HTTP requests", ("route", "status"), registry=self.registry)
        self._counted: dict[tuple[str, int], Counter] = {}

    def count(self, route: str, status: int) -> None:
        """Count one request; ``route`` is one of the paths served, not what a client wrote."""
        counter = self._counted.get((route, status))
        if counter is None:
            counter = self._counted[route, status] = self._requests.labels(route, str(status))
        counter.inc()

    def response(self) -> Response:
        """Return everything."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE)


class _StateCollector(Collector):
    """The state of a server as metrics."""

    def __init__(self, state: Callable[[], Iterator[Metric]]) -> None:
        self._state = state

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand: the server need not be started yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Give the metrics of now."""
        return self._state()
