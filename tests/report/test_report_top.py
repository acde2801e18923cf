"""The tables of ``nmoe top``: what they say, and that names out of the network cannot break or dress them up."""

import io
import re

import msgspec
import pytest
from rich.console import Console

from nmoe.node.view import LinkView, NodeView, RefusedView
from nmoe.report.top import MAX_LINKS, mesh_tables

LINK = LinkView(
    peer="node-1", state="up", experts=("node-1",), rtt_s=0.0004, goodput_bps=2e8, loss=0.25, queue_rows=3, p50_s=0.0021, p95_s=0.0052,
    asked=4000, answered=3980, hedged=12, rows=8000, failed={"late": 20}, bytes_sent=1, bytes_received=1, format="int8",
    format_bits=8, snr_db=-3.25, snr_source="trace", snr_age_s=2.0,
)  # fmt: skip
VIEW = NodeView(
    node="node-0", mesh="lab", endpoint="tcp/127.0.0.1:7447", http="", version="0.1.0", bundle="abc", ready=True, draining=False,
    uptime_s=1.0, k=2, num_classes=10, classes=(0, 1), image_shape=(4, 4, 1), answered=5210, degraded=14, refused={"busy": 21},
    in_progress=2, requests_per_s=41.5, p50_s=0.0041, p99_s=None, rows_served=9001, queue_rows=4, malformed={}, log_errors=0,
    bytes_out={"float16": 5_200_000}, links=(LINK,), experts=(), refusals=(),
)  # fmt: skip


def shown(*views: NodeView, silent: tuple[str, ...] = ()) -> str:
    """Return what a terminal of 200 columns gets, control characters included."""
    file = io.StringIO()
    Console(file=file, width=200, force_terminal=True, color_system="truecolor").print(mesh_tables(views, silent))
    return file.getvalue()


def test_nodes_links_and_what_is_wrong_are_shown():
    text = shown(
        msgspec.structs.replace(VIEW, refusals=(RefusedView(who="node-9", reason="other extractor", count=7, last_s=1.0),)),
        silent=("node-3",),
    )
    for wanted in (
        "mesh lab: 1 nodes",
        "node-0",
        "41.5",
        "4.1 ms",
        "5,210",
        "float16",
        "-3.2 dB (trace, 2 s",
        "int8, 8",
        "25%",
        "100%",
        "4,000",
        "node-9",
        "other extractor",
        "silent",
    ):
        assert wanted in text


@pytest.mark.parametrize(
    "name", ["[red]node[/red]", "[/]", "[link=http://192.0.2.1]here[/link]", "a\x1b[2Jb", "a\x1b]0;title\x07b", "two\nlines", "\u202egnp"]
)
def test_hostile_names_are_shown_as_they_are_and_do_nothing(name):
    view = msgspec.structs.replace(
        VIEW,
        node=name,
        mesh=name,
        bytes_out={name: 1},
        links=(msgspec.structs.replace(LINK, peer=name, state=name, format=name),),
        refusals=(RefusedView(who=name, reason=name, count=1, last_s=0.0),),
    )
    text = shown(view, silent=(name,))
    assert not re.sub(r"\x1b\[[0-9;]*m", "", text).count("\x1b"), "no escape but the table's own colours"
    assert "\x07" not in text
    assert "\u202e" not in text
    if name.startswith("["):
        assert text.count(name) >= 6


def test_a_mesh_of_many_links_shows_those_that_are_wrong():
    links = tuple(msgspec.structs.replace(LINK, peer=f"peer-{index}", state="open" if index == 99 else "up") for index in range(100))
    text = shown(msgspec.structs.replace(VIEW, links=links))
    assert "peer-99" in text
    assert f"{100 - MAX_LINKS} more links" in text


def test_a_mesh_of_no_nodes_is_a_table_too():
    assert "mesh : 0 nodes" in shown()
