"""Metrics: bids, epochs and requests in Prometheus' text format, with a bounded number of series."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from nmoe.http import RequestMetrics
from nmoe.market.service.sealed_market import SealedMarket


def market_metrics(market: SealedMarket) -> RequestMetrics:
    """Return what the server of a market counts."""

    def state() -> Iterator[Metric]:
        ledger = market.ledger
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

    return RequestMetrics("nmoe_market_requests", state)
