"""Metrics: users, shares and rates in Prometheus' text format, read when asked for; as many series as there may be users."""

from collections.abc import Iterator

from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily, Metric

from nmoe.deliver.server.replanner import Replanner
from nmoe.http import RequestMetrics


class DeliveryMetrics:
    """What a delivery server counts, and the state of its users.

    Args:
        replanner: has the users.
    """

    def __init__(self, replanner: Replanner) -> None:
        self.requests = RequestMetrics("nmoe_deliver_requests", self._state)
        self.plans = Counter("nmoe_deliver_plans", "Plans made", registry=self.requests.registry)
        self._replanner = replanner

    def _state(self) -> Iterator[Metric]:
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
