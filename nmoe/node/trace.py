"""Tracing: W3C trace context in and out, and spans through OpenTelemetry's interface wherever its user has configured an SDK.

Without an SDK nothing is made or sent: what came in goes out. Malformed contexts are ignored, as W3C Trace Context (2021), 3.2.2 asks.
"""

import re
from collections.abc import Mapping
from types import TracebackType

from opentelemetry import trace

_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_ATTRIBUTES: Mapping[str, str | int | float | bool] = {}


class Span:
    """One piece of work. As a context manager it gives the ``traceparent`` to pass along, and ends with its block.

    Attributes:
        traceparent: of this piece of work, or of the one around it when nothing is recorded; empty for none.
    """

    __slots__ = ("_span", "traceparent")

    def __init__(self, traceparent: str, span: trace.Span | None = None) -> None:
        self.traceparent = traceparent
        self._span = span

    def end(self, failure: str = "") -> None:
        """End it, as a failure when there is one to name. The first end counts."""
        if self._span is not None:
            if failure:
                self._span.set_status(trace.StatusCode.ERROR, failure)
            self._span.end()
            self._span = None

    def __enter__(self) -> str:
        return self.traceparent

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.end("" if error is None else f"{type(error).__name__}: {error}")


_NOTHING = Span("")


def request_span(traceparent: str, name: str, attributes: Mapping[str, str | int | float | bool] = _NO_ATTRIBUTES) -> Span:
    """Start the span of a request that came in.

    Args:
        traceparent: what came with it; empty for none.
        name: such as ``infer``.
        attributes: to record.
    """
    return _start(traceparent, name, attributes, trace.SpanKind.SERVER)


def dispatch_span(traceparent: str, name: str, attributes: Mapping[str, str | int | float | bool] = _NO_ATTRIBUTES) -> Span:
    """Start the span of a message to a peer, whose answer ends it; arguments as for ``request_span``."""
    return _start(traceparent, name, attributes, trace.SpanKind.CLIENT)


def _start(traceparent: str, name: str, attributes: Mapping[str, str | int | float | bool], kind: trace.SpanKind) -> Span:
    provider = trace.get_tracer_provider()
    parent = _parent(traceparent) if traceparent else None
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return _NOTHING if parent is None else Span(_written(parent))
    context = trace.set_span_in_context(trace.INVALID_SPAN if parent is None else trace.NonRecordingSpan(parent))
    span = provider.get_tracer("nmoe").start_span(name, context, kind, attributes)
    inner = span.get_span_context()
    return Span(_written(inner) if inner.is_valid else "", span)


def _parent(traceparent: str) -> trace.SpanContext | None:
    """Return the context in a ``traceparent``, or None when it is malformed."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None or (found[1] == "00" and found[5]):
        return None
    flags = trace.TraceFlags(int(found[4], 16) & trace.TraceFlags.SAMPLED)
    return trace.SpanContext(int(found[2], 16), int(found[3], 16), is_remote=True, trace_flags=flags)


def _written(context: trace.SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
