"""Tracing: contexts pass along untouched without an SDK, and link parents to children with one."""

import subprocess
import sys

import pytest

from nmoe.node.trace import dispatch_span, request_span

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
LINKED = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from nmoe.node.trace import dispatch_span, request_span
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
with request_span("%s", "infer", {"rows": 4}) as outer:
    first = dispatch_span(outer, "dispatch", {"peer": "node-1"})
    first.end()
    first.end("counts once")
    second = dispatch_span(outer, "dispatch")
    second.end("late")
with request_span("damaged", "alone") as root:
    assert root
try:
    with request_span("", "failing"):
        raise RuntimeError("why")
except RuntimeError:
    pass
one, two, infer, alone, failing = exporter.get_finished_spans()
assert infer.context.trace_id == one.context.trace_id == two.context.trace_id == 0x0af7651916cd43dd8448eb211c80319c
assert infer.parent.span_id == 0xb7ad6b7169203331 and infer.parent.is_remote
assert one.parent.span_id == two.parent.span_id == infer.context.span_id
assert outer == f"00-0af7651916cd43dd8448eb211c80319c-{infer.context.span_id:016x}-01"
assert first.traceparent.split("-")[2] == f"{one.context.span_id:016x}"
assert dict(infer.attributes) == {"rows": 4} and dict(one.attributes) == {"peer": "node-1"}
assert (one.kind.name, infer.kind.name) == ("CLIENT", "SERVER")
assert one.status.is_unset and two.status.description == "late" and failing.status.description == "RuntimeError: why"
assert alone.parent is None and alone.context.trace_id != infer.context.trace_id
print("linked")
"""


def test_spans_link_where_an_sdk_is_configured():
    pytest.importorskip("opentelemetry.sdk")
    run = subprocess.run([sys.executable, "-c", LINKED % GOOD], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "linked", run.stderr


def test_without_an_sdk_what_comes_in_goes_out():
    with request_span(GOOD, "infer") as traceparent:
        assert traceparent == GOOD
        assert dispatch_span(traceparent, "dispatch").traceparent == GOOD
    with request_span("", "infer") as traceparent:
        assert traceparent == ""


@pytest.mark.parametrize(
    "malformed",
    [
        "x",
        GOOD[:-1],
        GOOD + "0",
        GOOD + "-more",
        GOOD.upper(),
        "ff" + GOOD[2:],
        GOOD.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        GOOD.replace("b7ad6b7169203331", "0" * 16),
        GOOD + "\n",
        "00-" + "0" * 1000,
    ],
)
def test_a_malformed_context_is_ignored(malformed):
    with request_span(malformed, "infer") as traceparent:
        assert traceparent == ""


def test_a_later_version_is_read_as_far_as_it_is_known():
    with request_span("cc" + GOOD[2:] + "-what-the-future-holds", "infer") as traceparent:
        assert traceparent == GOOD
