"""Metrics: bids, epochs and requests in Prometheus' text format, with a bounded number of series."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nmoe.market.service.sealed_market import SealedMarket

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MarketMetrics:
    """What the market's server counts.

    Args:
        market: has the epochs.
    """

    def __init__(self, market: SealedMarket) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_MarketCollector(market))
        self._requests = Counter("nmoe_market_requests", "HTTP requests", ("route", "status"), registry=self._registry)
        self._counted: dict[tuple[str, int], Counter] = {}

    def count(self, route: str, status: int) -> None:
        """Count one request; ``route`` is one of the paths served, not what a client wrote."""
        counter = self._counted.get((route, status))
        if counter is None:
            counter = self._counted[route, status] = self._requests.labels(route, str(status))
        counter.inc()

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _MarketCollector(Collector):
    """The market's state as metrics."""

    def __init__(self, market: SealedMarket) -> None:
        self._market = market

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand: the market need not be started yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Give the metrics of now."""
        market, ledger = self._market, self._market.ledger
        yield CounterMetricFamily("nmoe_market_bids", "Bids taken, replays not counted", market.num_accepted)
        yield CounterMetricFamily("nmoe_market_epochs_cleared", "Epochs cleared", market.num_cleared)
        yield CounterMetricFamily("nmoe_market_commits", "Transactions synced to the disk", ledger.num_commits)
        yield CounterMetricFamily("nmoe_market_writes", "Writes in them", ledger.num_writes)
        for name, text, value in (
            ("nmoe_market_open_bids", "Bids in the open epoch", market.num_open_bids),
            ("nmoe_market_waiting_writes", "Writes that no transaction has begun with", ledger.num_waiting),
            ("nmoe_market_clearing_epochs", "Epochs that are over and not cleared", market.num_clearing),
        ):
            yield GaugeMetricFamily(name, text, value)
        if market.last_price is not None:
            price = GaugeMetricFamily("nmoe_market_unit_price", "Paid in the last epoch that served somebody", labels=("which",))
            price.add_metric(("lowest",), market.last_price.lowest_unit_price)
            price.add_metric(("highest",), market.last_price.highest_unit_price)
            yield price
