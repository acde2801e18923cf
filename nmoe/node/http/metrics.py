"""Metrics: a node's counts and times in Prometheus' text format, read from its view when asked for, with a bounded number of series."""

from collections.abc import Iterator, Mapping

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from nmoe.http import RequestMetrics
from nmoe.node.service import NodeService
from nmoe.node.view import ExpertView, LinkView, NodeView

MAX_WORDS = 24  # distinct reasons or kinds in one metric; the rest is counted as "other"
MAX_PEERS = 256  # neighbours and experts with series of their own, by name
LINK_STATES = ("up", "down", "draining", "open", "probing", "refused")
_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """What a node's HTTP server counts itself, and what its node has counted."""

    def __init__(self, service: NodeService) -> None:
        self._service = service
        self.requests = RequestMetrics("nmoe_http_requests", self._state)
        self._infer_s = Histogram(
            "nmoe_http_infer_seconds", "Infer requests over HTTP, body to answer", registry=self.requests.registry, buckets=_BUCKETS_S
        )

    def observe_infer(self, seconds: float) -> None:
        """Take note of how long an infer request took."""
        self._infer_s.observe(seconds)

    def _state(self) -> Iterator[Metric]:
        view = self._service.view()
        yield from _node_metrics(view)
        yield from _link_metrics(sorted(view.links, key=lambda link: link.peer)[:MAX_PEERS])
        yield from _expert_metrics(sorted(view.experts, key=lambda expert: expert.expert)[:MAX_PEERS])


def _node_metrics(view: NodeView) -> Iterator[Metric]:
    outcomes = {"answered": view.answered - view.degraded, "degraded": view.degraded}
    outcomes |= {f"refused: {code}": count for code, count in _bounded(view.refused).items()}
    yield _counter("nmoe_requests", "Infer requests by outcome", "outcome", outcomes)
    yield _counter("nmoe_malformed_messages", "Messages that could not be read, by kind of fault", "fault", view.malformed)
    reasons: dict[str, int] = {}
    for refused in view.refusals:
        reasons[refused.reason] = reasons.get(refused.reason, 0) + refused.count
    yield _counter("nmoe_not_admitted", "Attempts of others that were not admitted, by reason", "reason", reasons)
    yield _counter("nmoe_feature_bytes_out", "Bytes of features that left for peers, by format", "format", view.bytes_out)
    yield CounterMetricFamily("nmoe_rows_served", "Rows computed for peers", view.rows_served)
    yield CounterMetricFamily("nmoe_log_errors", "Lines of the request log that could not be written", view.log_errors)
    for name, text, value in (
        ("nmoe_up_seconds", "Since the node's start", view.uptime_s),
        ("nmoe_ready", "1 when it takes requests", float(view.ready)),
        ("nmoe_draining", "1 while it leaves", float(view.draining)),
        ("nmoe_in_progress", "Infer requests now", view.in_progress),
        ("nmoe_queue_rows", "Rows that wait now", view.queue_rows),
        ("nmoe_requests_per_second", "Infer requests, over about ten seconds", view.requests_per_s),
        ("nmoe_neighbours", "Neighbours, those without series of their own too", len(view.links)),
    ):
        yield GaugeMetricFamily(name, text, value)
    times = GaugeMetricFamily("nmoe_latency_seconds", "Of infer requests, over about the last thousand", labels=("quantile",))
    for quantile, seconds in (("0.5", view.p50_s), ("0.99", view.p99_s)):
        if seconds is not None:
            times.add_metric((quantile,), seconds)
    yield times
    info = GaugeMetricFamily("nmoe_info", "1", labels=("node", "mesh", "version", "bundle"))
    info.add_metric((view.node, view.mesh, view.version, view.bundle), 1)
    yield info


def _link_metrics(links: list[LinkView]) -> Iterator[Metric]:
    for name, text, counts in (
        ("nmoe_link_asked", "Expert requests sent", [link.asked for link in links]),
        ("nmoe_link_answered", "Expert requests answered in time", [link.answered for link in links]),
        ("nmoe_link_hedged", "Expert requests sent as hedges", [link.hedged for link in links]),
        ("nmoe_link_rows", "Rows sent", [link.rows for link in links]),
        ("nmoe_link_sent_bytes", "Whole messages sent", [link.bytes_sent for link in links]),
        ("nmoe_link_received_bytes", "Whole messages received", [link.bytes_received for link in links]),
        ("nmoe_link_snr_clamped", "Reported signal-to-noise ratios beyond -20 to 40 dB", [link.snr_clamped for link in links]),
    ):
        counter = CounterMetricFamily(name, text, labels=("peer",))
        for link, count in zip(links, counts, strict=True):
            counter.add_metric((link.peer,), count)
        yield counter
    failed = CounterMetricFamily("nmoe_link_failed", "Expert requests that failed, by reason", labels=("peer", "reason"))
    state = GaugeMetricFamily("nmoe_link_state", "1 for the state the link is in", labels=("peer", "state"))
    for link in links:
        for reason, count in _bounded(link.failed).items():
            failed.add_metric((link.peer, reason), count)
        for word in LINK_STATES:
            state.add_metric((link.peer, word), float(link.state == word))
    yield failed
    yield state
    yield from _link_gauges(links)


def _link_gauges(links: list[LinkView]) -> Iterator[Metric]:
    for name, text, values in (
        ("nmoe_link_rtt_seconds", "Smoothed round trip", [link.rtt_s for link in links]),
        ("nmoe_link_p50_seconds", "Of whole expert requests", [link.p50_s for link in links]),
        ("nmoe_link_p95_seconds", "Of whole expert requests", [link.p95_s for link in links]),
        ("nmoe_link_goodput_bits_per_second", "Smoothed payload rate", [link.goodput_bps for link in links]),
        ("nmoe_link_loss_ratio", "Smoothed share of requests without an answer in time", [link.loss for link in links]),
        ("nmoe_link_snr_db", "Signal-to-noise ratio, where it is known", [link.snr_db for link in links]),
        ("nmoe_link_snr_age_seconds", "Since the signal-to-noise ratio was measured", [link.snr_age_s for link in links]),
        ("nmoe_link_format_bits", "Bits per feature in the last message", [link.format_bits for link in links]),
        ("nmoe_link_queue_rows", "Rows that waited there when it last answered", [link.queue_rows for link in links]),
    ):
        gauge = GaugeMetricFamily(name, text, labels=("peer",))
        for link, value in zip(links, values, strict=True):
            if value is not None:
                gauge.add_metric((link.peer,), value)
        yield gauge


def _expert_metrics(experts: list[ExpertView]) -> Iterator[Metric]:
    chosen = CounterMetricFamily("nmoe_expert_rows_chosen", "Rows the gate chose an expert for", labels=("expert",))
    answered = CounterMetricFamily("nmoe_expert_rows_answered", "Of those, rows it answered", labels=("expert",))
    for expert in experts:
        chosen.add_metric((expert.expert,), expert.rows_chosen)
        answered.add_metric((expert.expert,), expert.rows_answered)
    yield chosen
    yield answered


def _counter(name: str, text: str, label: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    counter = CounterMetricFamily(name, text, labels=(label,))
    for word, count in _bounded(counts).items():
        counter.add_metric((word,), count)
    return counter


def _bounded(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the counts with the rarer words, where there are too many, as one. Reasons may hold what strangers wrote."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kept = dict(ranked[:MAX_WORDS])
    if rest := sum(count for _, count in ranked[MAX_WORDS:]):
        kept["other"] = kept.get("other", 0) + rest
    return kept
