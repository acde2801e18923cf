"""The picture of ``nmoe top``: a mesh as two tables, its nodes and its links, for a terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nmoe.node.view import LinkView, NodeView

_COLOURS = {"up": "green", "draining": "yellow", "probing": "yellow", "open": "red", "down": "red", "refused": "red"}
MAX_LINKS = 40  # what a terminal can show


def mesh_tables(views: Sequence[NodeView], silent: Sequence[str]) -> RenderableType:
    """Return the tables of a mesh.

    Args:
        views: what its nodes say of themselves.
        silent: nodes that are announced but did not answer.
    """
    return Group(_nodes(views, silent), Text(), _links(views), _refusals(views))


def _nodes(views: Sequence[NodeView], silent: Sequence[str]) -> Table:
    table = Table(title=_plain(f"mesh {views[0].mesh if views else ''}: {len(views)} nodes"), title_justify="left", expand=False)
    for heading in ("node", "state", "req/s", "p50", "p99", "answered", "degraded", "refused", "served rows", "queue", "bytes out"):
        table.add_column(heading, justify="left" if heading in ("node", "state") else "right")
    for view in sorted(views, key=lambda one: one.node):
        state = Text("draining", "yellow") if view.draining else Text("ready", "green") if view.ready else Text("starting", "yellow")
        numbers = (view.answered, view.degraded, sum(view.refused.values()), view.rows_served, view.queue_rows)
        table.add_row(
            _plain(view.node),
            state,
            f"{view.requests_per_s:.1f}",
            milliseconds(view.p50_s),
            milliseconds(view.p99_s),
            *(f"{number:,}" for number in numbers),
            _plain(" ".join(f"{form} {size(count)}" for form, count in sorted(view.bytes_out.items())) or "none"),
        )
    for name in sorted(silent):
        table.add_row(_plain(name), Text("silent", "red"), *[""] * 9)
    return table


def _links(views: Sequence[NodeView]) -> Table:
    table = Table(title="links", title_justify="left")
    for heading in ("from", "to", "state", "rtt", "p50", "p95", "loss", "queue", "share", "asked", "failed", "hedged", "SNR", "format"):
        table.add_column(heading, justify="left" if heading in ("from", "to", "state", "format") else "right")
    pairs = [(view, link) for view in sorted(views, key=lambda one: one.node) for link in view.links]
    pairs.sort(key=lambda pair: pair[1].state == "up")  # what is wrong comes first
    for view, link in pairs[:MAX_LINKS]:
        table.add_row(_plain(view.node), _plain(link.peer), _plain(link.state, _COLOURS.get(link.state, "")), *_numbers(view, link))
    if len(pairs) > MAX_LINKS:
        table.caption = f"{len(pairs) - MAX_LINKS} more links, all of them up or less wrong"
    return table


def _numbers(view: NodeView, link: LinkView) -> list[str | Text]:
    asked = sum(other.rows for other in view.links)
    return [
        milliseconds(link.rtt_s),
        milliseconds(link.p50_s),
        milliseconds(link.p95_s),
        f"{link.loss:.0%}",
        str(link.queue_rows),
        f"{link.rows / asked:.0%}" if asked else "",
        f"{link.asked:,}",
        f"{sum(link.failed.values()):,}",
        f"{link.hedged:,}",
        _snr(link),
        _plain(f"{link.format}, {link.format_bits} bit"),
    ]


def _snr(link: LinkView) -> str | Text:
    """Return a link's signal-to-noise ratio with its source and age; what was never measured says so."""
    if link.snr_db is None:
        return "not measured"
    age = "" if link.snr_age_s is None else f", {link.snr_age_s:.0f} s ago"
    clamped = f", {link.snr_clamped:,} clamped" if link.snr_clamped else ""
    return _plain(f"{link.snr_db:.1f} dB ({link.snr_source}{age}{clamped})")


def _refusals(views: Sequence[NodeView]) -> RenderableType:
    table = Table(title="not admitted", title_justify="left")
    for heading in ("at", "who", "why", "times"):
        table.add_column(heading, justify="right" if heading == "times" else "left")
    for view in sorted(views, key=lambda one: one.node):
        for refusal in view.refusals:
            table.add_row(_plain(view.node), _plain(refusal.who), _plain(refusal.reason), str(refusal.count))
    return table if table.row_count else Text()


def _plain(words: str, style: str = "") -> Text:
    """Return what another node said as text that cannot move the cursor or colour the screen."""
    return Text("".join(letter if letter.isprintable() else "?" for letter in words), style)


def milliseconds(seconds: float | None) -> str:
    """Return a time for a table; nothing where it is not known."""
    return "" if seconds is None else f"{1000 * seconds:.1f} ms"


def size(count: int) -> str:
    """Return a number of bytes for a table."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count} B"
