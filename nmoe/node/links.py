"""Links: what a node knows of the way to each neighbour, and whether to trust it with the next request. Pure: the clock is an argument.

A whole expert request takes: the peer's own time (waiting and computing, which its reply states) and the network's. The network's part is
modelled as ``rtt + bytes / goodput``: small messages teach the first, large ones the second. Loss is a smoothed share of requests without
an answer in time. What is unknown is None: the planner takes it as average, not as perfect.

Circuit breaker: after ``FAILURES_TO_OPEN`` failures in a row, or one nonsensical reply, a peer is left alone; then one small probe decides.
The pause doubles with every opening up to ``MAX_PAUSE_S`` and starts anew after an answer.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from nmoe.node.events import HONEST, Failure
from nmoe.node.messages import ExpertCard, TensorFormat

SMALL_BYTES, LARGE_BYTES = 4096, 16384
GAIN = 0.2  # weight of the newest measurement in rtt, goodput and service time; our choice
LOSS_GAIN = 0.1
QUEUE_HALF_LIFE_S = 0.1  # what a peer said of its queue is worth half after this long
FAILURES_TO_OPEN = 3
FIRST_PAUSE_S, NONSENSE_PAUSE_S, MAX_PAUSE_S = 0.25, 2.0, 30.0
MIN_PROBE_S, MAX_PROBE_S, PROBE_ROUND_TRIPS = 0.25, 2.0, 4.0
MIN_SAMPLES = 8  # before percentiles mean anything


class Circuit(StrEnum):
    """Whether a peer may be asked."""

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


_CLOSED = Circuit.CLOSED  # in Python 3.11 finding a member takes ten times as long as finding a name


@dataclass(slots=True)
class Percentile:
    """A running percentile in constant memory: a step up or down per sample, sized by the samples' mean.

    Source: stochastic approximation of a quantile (Robbins and Monro, 1951). Within a few percent after some hundred samples; exact enough
    for a hedge's timer.
    """

    share: float
    value: float = 0.0
    mean: float = 0.0
    count: int = 0

    def add(self, sample: float) -> None:
        """Learn from one sample."""
        self.count += 1
        if self.count == 1:
            self.value = self.mean = sample
            return
        self.mean += (sample - self.mean) * (1 / self.count if self.count < 20 else 0.05)
        step = self.mean * (1 / self.count if self.count < 50 else 0.02)
        self.value += step * self.share if sample > self.value else -step * (1 - self.share)


@dataclass(slots=True)
class Link:
    """One neighbour, seen from here. Counters run from the node's start; see ``view.LinkView`` for their meaning."""

    peer: str
    up: bool = False
    card: ExpertCard | None = None
    rejected: str | None = None
    draining: bool = False
    rtt_s: float | None = None
    goodput_bytes_s: float | None = None
    goodput_at_s: float = -math.inf
    loss: float = 0.0
    row_s: float | None = None
    queue_rows: float = 0.0
    queue_at_s: float = 0.0
    rows_in_flight: int = 0
    circuit: Circuit = Circuit.CLOSED
    failures_in_row: int = 0
    pause_s: float = 0.0
    p50: Percentile = field(default_factory=lambda: Percentile(0.5))
    p95: Percentile = field(default_factory=lambda: Percentile(0.95))
    asked: int = 0
    answered: int = 0
    hedged: int = 0
    rows: int = 0
    bytes_received: int = 0
    failed: dict[Failure, int] = field(default_factory=dict)
    format: TensorFormat = TensorFormat.FLOAT32
    unprobed: bool = False  # a probe was due while it was away

    @property
    def usable(self) -> bool:
        """Whether it may be asked now."""
        return self.up and self.card is not None and self.rejected is None and not self.draining and self.circuit is _CLOSED

    def appeared(self) -> None:
        """It has announced itself, maybe for another time: what is remembered against it is forgotten, unless it talked nonsense."""
        if not self.up and self.pause_s < NONSENSE_PAUSE_S:
            self.circuit, self.failures_in_row, self.pause_s, self.loss = Circuit.CLOSED, 0, 0.0, 0.0
        self.up, self.draining, self.rejected = True, False, None

    def sent(self, rows: int, form: TensorFormat) -> None:
        """A request of this many rows is on its way."""
        self.asked += 1
        self.rows += rows
        self.rows_in_flight += rows
        self.format = form

    def heard(self, round_trip_s: float) -> None:
        """A small message went there and back."""
        self.rtt_s = round_trip_s if self.rtt_s is None else self.rtt_s + GAIN * (round_trip_s - self.rtt_s)

    def answered_in(self, total_s: float, *, wait_s: float, compute_s: float, queue_rows: int, rows: int, size: int, now_s: float) -> None:
        """A request was answered.

        Args:
            total_s: from sending to the reply.
            wait_s: of that, what the peer says it waited there.
            compute_s: and what it computed.
            queue_rows: rows that wait there.
            rows: rows of the request.
            size: bytes of request and reply.
            now_s: the time.
        """
        self.answered += 1
        self.rows_in_flight -= rows
        self.loss -= LOSS_GAIN * self.loss
        self.failures_in_row, self.pause_s = 0, 0.0
        self.queue_rows, self.queue_at_s = queue_rows, now_s
        self.p50.add(total_s)
        self.p95.add(total_s)
        per_row_s = compute_s / rows
        self.row_s = per_row_s if self.row_s is None else self.row_s + GAIN * (per_row_s - self.row_s)
        network_s = total_s - wait_s - compute_s
        if network_s < 0:
            network_s = 0.0
        if size <= SMALL_BYTES or self.rtt_s is None:
            self.heard(network_s)
        elif size >= LARGE_BYTES:
            rate = size / max(network_s - self.rtt_s, 0.05 * network_s, 1e-6)
            self.goodput_at_s = now_s
            self.goodput_bytes_s = rate if self.goodput_bytes_s is None else self.goodput_bytes_s + GAIN * (rate - self.goodput_bytes_s)

    def failed_with(self, why: Failure, *, rows: int, queue_rows: int, now_s: float) -> bool:
        """A request failed; return whether that opened the circuit."""
        self.failed[why] = self.failed.get(why, 0) + 1
        self.rows_in_flight -= rows
        if why in (Failure.BUSY, Failure.LATE):  # alive, but loaded
            self.queue_rows, self.queue_at_s = max(queue_rows, self.queue_rows, rows), now_s
            return False
        if why is Failure.LEAVING:
            self.draining = True
            return False
        if why is Failure.FULL:
            return False
        self.loss += LOSS_GAIN * (1 - self.loss)
        self.failures_in_row += 1
        if self.circuit is not Circuit.CLOSED or (self.failures_in_row < FAILURES_TO_OPEN and why in HONEST):
            return False
        self._open(FIRST_PAUSE_S if why in HONEST else NONSENSE_PAUSE_S)
        return True

    @property
    def probe_timeout_s(self) -> float:
        """How long a probe may take: several round trips, as far as they are known."""
        return min(MAX_PROBE_S, max(MIN_PROBE_S, PROBE_ROUND_TRIPS * (self.rtt_s or 0.0)))

    def probed(self, *, alive: bool) -> bool:
        """A probe came back or not; return whether another is to follow after ``pause_s``."""
        if self.circuit is Circuit.CLOSED:
            return False
        if alive:
            self.circuit, self.failures_in_row, self.loss = Circuit.CLOSED, 0, self.loss / 2
            return False
        self._open(FIRST_PAUSE_S)
        return True

    def _open(self, first_pause_s: float) -> None:
        self.circuit = Circuit.OPEN
        self.pause_s = min(MAX_PAUSE_S, max(first_pause_s, 2 * self.pause_s))

    def predict_s(self, rows: int, size: int, now_s: float) -> float | None:
        """Return the expected seconds of a request of this many rows and bytes (there and back); None for a link never measured."""
        if self.rtt_s is None:
            return None
        ahead = self.queue_rows * math.exp2((self.queue_at_s - now_s) / QUEUE_HALF_LIFE_S) if self.queue_rows else 0.0
        work = (ahead + self.rows_in_flight + rows) * self.row_s if self.row_s is not None else 0.0
        return self.rtt_s + work + (size / self.goodput_bytes_s if self.goodput_bytes_s is not None else 0.0)

    def spread_s(self, predicted_s: float) -> float:
        """Return how far a prediction may be off: a scale for a logistic."""
        tail = (
            (self.p95.value - self.p50.value) / 3 if self.p95.count >= MIN_SAMPLES else 0.0
        )  # a logistic's 95th percentile is 3 scales up
        return max(tail, 0.1 * predicted_s, 1e-4)

    def arrival(self, left_s: float, predicted_s: float) -> float:
        """Return the probability that an answer arrives within ``left_s``: not lost, and in time by a logistic law."""
        z = (left_s - predicted_s) / self.spread_s(predicted_s)
        return (1 - self.loss) / (1 + math.exp(-z)) if z > -50 else 0.0
