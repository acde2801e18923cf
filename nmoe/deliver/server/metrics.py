"""Metrics: users, shares and rates in Prometheus' text format, read when asked for; as many series as there may be users."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nmoe.deliver.server.replanner import Replanner

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class DeliveryMetrics:
    """What a delivery server counts, and the state of its users.

    Args:
        replanner: has the users.
    """

    def __init__(self, replanner: Replanner) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_UserCollector(replanner))
        self._requests = Counter("nmoe_deliver_requests", "HTTP requests", ("route", "status"), registry=self._registry)
        self.plans = Counter("nmoe_deliver_plans", "Plans made", registry=self._registry)

    def count(self, route: str, status: int) -> None:
        """Count one request; ``route`` is one of the paths served, not what a client wrote."""
        self._requests.labels(route, str(status)).inc()

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _UserCollector(Collector):
    """The users as metrics."""

    def __init__(self, replanner: Replanner) -> None:
        self._replanner = replanner

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Give the metrics of now."""
        users = self._replanner.users
        served = sum(user.allocation is not None and user.allocation.served for user in users.values())
        transfers = self._replanner.anonymous_transfers + sum(user.transfers for user in users.values())
        yield GaugeMetricFamily("nmoe_deliver_users", "Registered users", len(users))
        yield GaugeMetricFamily("nmoe_deliver_served", "Users that the plan serves", served)
        yield GaugeMetricFamily("nmoe_deliver_transfers", "Transfers under way", transfers)
        yield GaugeMetricFamily("nmoe_deliver_sent_bytes_total", "Bytes of model files sent", self._replanner.total_bytes)
        for name, text, values in (
            ("nmoe_deliver_user_share", "Share of the bandwidth", [user.share for user in users.values()]),
            ("nmoe_deliver_user_rate_bits_per_second", "Pace of a user's transfers", [user.bucket.rate * 8 for user in users.values()]),
            ("nmoe_deliver_user_spectral_efficiency", "As planned with, bit/s/Hz", [user.efficiency for user in users.values()]),
        ):
            gauge = GaugeMetricFamily(name, text, labels=("user",))
            for user, value in zip(users, values, strict=True):
                gauge.add_metric((user,), value)
            yield gauge
