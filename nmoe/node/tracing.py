"""Tracing on the hot path: spans only where somebody asked for them, and OpenTelemetry imported only then (30 ms of a node's start)."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nmoe.node.trace import Span


def span_of_message(traceparent: str, peer: str, rows: int) -> "Span | None":
    """Start the span of a message to a peer; None when nothing came with the request and this process records nothing."""
    if not _wanted(traceparent):
        return None
    from nmoe.node.trace import dispatch_span

    return dispatch_span(traceparent, "expert", {"nmoe.peer": peer, "nmoe.rows": rows})


def span_of_request(traceparent: str, name: str, rows: int) -> "Span | None":
    """Start the span of a request that came in; None as for ``span_of_message``."""
    if not _wanted(traceparent):
        return None
    from nmoe.node.trace import request_span

    return request_span(traceparent, name, {"nmoe.rows": rows})


def _wanted(traceparent: str) -> bool:
    return bool(traceparent) or "opentelemetry.sdk.trace" in sys.modules
