"""Views: what a node says of itself and its neighbours, for its status service, its metrics, its dashboard and ``nmoe top``.

Counts run from the node's start. Times are seconds, rates bits or requests per second, as the node measured them; None where it has not.
"""

import msgspec


class LinkView(msgspec.Struct, frozen=True, kw_only=True):
    """One neighbour as this node sees it.

    Attributes:
        peer: its name.
        state: ``up``, ``down``, ``draining`` (is leaving), ``open`` (circuit breaker, not asked), ``probing`` or ``refused`` (not
        admitted). experts: the experts it serves, as its card says.
        rtt_s: smoothed round trip of small messages, the peer's own time taken off.
        goodput_bps: smoothed payload rate of larger messages.
        loss: smoothed share of requests without an answer in time.
        queue_rows: rows that waited there when it last answered.
        p50_s, p95_s: of whole expert requests.
        asked, answered, hedged: expert requests sent, answered in time, and sent as hedges.
        rows: rows sent.
        failed: expert requests that failed, by reason.
        bytes_sent, bytes_received: whole messages.
        format: how features last left for it: ``float32``, ``float16``, ``int8`` or ``int4``; format_bits: bits per number in it.
        snr_db: signal-to-noise ratio; None where it was not measured, or too long ago.
        snr_source: who says so: ``simulated``, ``trace``, ``wireless``, ``goodput`` or ``none``; snr_age_s: how long ago it was measured;
        snr_clamped: reports so far that were beyond the range of -20 to 40 dB.
    """

    peer: str
    state: str
    experts: tuple[str, ...] = ()
    rtt_s: float | None = None
    goodput_bps: float | None = None
    loss: float = 0.0
    queue_rows: int = 0
    p50_s: float | None = None
    p95_s: float | None = None
    asked: int = 0
    answered: int = 0
    hedged: int = 0
    rows: int = 0
    failed: dict[str, int] = {}
    bytes_sent: int = 0
    bytes_received: int = 0
    format: str = "float32"
    format_bits: int = 32
    snr_db: float | None = None
    snr_source: str = "none"
    snr_age_s: float | None = None
    snr_clamped: int = 0


class ExpertView(msgspec.Struct, frozen=True, kw_only=True):
    """One expert as this node's gate uses it: rows it was chosen for, and of those how many it answered."""

    expert: str
    nodes: tuple[str, ...]
    rows_chosen: int
    rows_answered: int


class RefusedView(msgspec.Struct, frozen=True, kw_only=True):
    """Something this node did not admit: who (as far as is known), why, how often, and when last (seconds since the node's start)."""

    who: str
    reason: str
    count: int
    last_s: float


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """One node.

    Attributes:
        node, mesh, endpoint, http: its name, mesh, mesh endpoint and HTTP address (empty without one).
        version: of nmoe; ``bundle`` is the version of what it serves.
        ready: whether it takes requests; ``draining`` while it leaves.
        uptime_s: since its start.
        k, num_classes, classes, image_shape: from its card; ``classes`` are those its expert has seen.
        answered, degraded: infer requests answered; and those of them without some chosen expert.
        refused: infer requests refused, by code.
        in_progress: infer requests now.
        requests_per_s: over about the last ten seconds.
        p50_s, p99_s: of infer requests, over about the last thousand.
        rows_served: rows computed for peers; ``queue_rows`` wait now.
        malformed: messages that could not be read, by kind of fault.
        log_errors: lines of the request log that could not be written.
        bytes_out: feature bytes that left for peers, by format; images never leave.
        links: neighbours; experts: whom the gate uses; refusals: who was not admitted.
    """

    node: str
    mesh: str
    endpoint: str
    http: str
    version: str
    bundle: str
    ready: bool
    draining: bool
    uptime_s: float
    k: int
    num_classes: int
    classes: tuple[int, ...]
    image_shape: tuple[int, int, int]
    answered: int
    degraded: int
    refused: dict[str, int]
    in_progress: int
    requests_per_s: float
    p50_s: float | None
    p99_s: float | None
    rows_served: int
    queue_rows: int
    malformed: dict[str, int]
    log_errors: int
    bytes_out: dict[str, int]
    links: tuple[LinkView, ...]
    experts: tuple[ExpertView, ...]
    refusals: tuple[RefusedView, ...]
