"""Portrait: a node's view of itself, put together from what its parts count."""

import asyncio
import math
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

from nmoe.channel.estimate import LinkState
from nmoe.core.errors import MessageError
from nmoe.node.links import MIN_SAMPLES, Circuit, Link
from nmoe.node.messages import BITS, StatusReply, StatusRequest, decode_as, encode
from nmoe.node.transport.base import Service, Silence, Transport
from nmoe.node.view import ExpertView, LinkView, NodeView, RefusedView

if TYPE_CHECKING:
    from nmoe.node.runner import NodeRunner

VERSION = version("nmoe")


def portrait(node: "NodeRunner") -> NodeView:
    """Return a node's view of itself and its neighbours."""
    dispatcher, answers, card = node.dispatcher, node.answers, node.card
    with dispatcher.lock:
        origin = dispatcher.origin
        now_s, quality = time.monotonic(), node.desk.quality
        links = tuple(
            link_view(link, dispatcher.bytes_sent[link.peer], quality.state(link, now_s))
            for link in sorted(origin.links.values(), key=lambda one: one.peer)
        )
        experts = tuple(
            ExpertView(
                expert=name,
                nodes=tuple(origin.servers.get(index, ())) if name != node.expert else (node.name, *origin.servers.get(index, ())),
                rows_chosen=origin.chosen_rows.get(index, 0),
                rows_answered=origin.answered_rows.get(index, 0),
            )
            for index, name in enumerate(origin.experts)
        )
    refusals = tuple(
        RefusedView(who=who, reason=reason, count=count, last_s=dispatcher.introductions.refused_at_s[who, reason] - node.started_s)
        for (who, reason), count in sorted(dispatcher.introductions.refusals.items())
    )
    return NodeView(
        node=node.name,
        mesh=node.mesh,
        endpoint=node.transport.endpoint,
        http=node.http,
        version=VERSION,
        bundle=node.version,
        ready=node.ready,
        draining=node.draining,
        uptime_s=time.monotonic() - node.started_s,
        k=card.k,
        num_classes=card.num_classes,
        classes=card.classes_seen,
        image_shape=card.image_shape,
        answered=answers.answered,
        degraded=answers.degraded,
        refused=dict(answers.refused),
        in_progress=len(answers),
        requests_per_s=answers.per_second(),
        p50_s=answers.percentile(0.5),
        p99_s=answers.percentile(0.99),
        rows_served=node.server.rows_served,
        queue_rows=node.queue_rows(),
        malformed=dict(node.malformed),
        log_errors=node.log_errors,
        bytes_out=dict(dispatcher.bytes_out),
        links=links,
        experts=experts,
        refusals=refusals,
    )


def link_view(link: Link, bytes_sent: int, state: LinkState) -> LinkView:
    """Return what is shown of a link, of which ``state`` is known."""
    measured = link.p50.count >= MIN_SAMPLES
    return LinkView(
        peer=link.peer,
        state=_state(link),
        experts=() if link.card is None else link.card.experts,
        rtt_s=link.rtt_s,
        goodput_bps=None if link.goodput_bytes_s is None else 8 * link.goodput_bytes_s,
        loss=link.loss,
        queue_rows=round(link.queue_rows),
        p50_s=link.p50.value if measured else None,
        p95_s=link.p95.value if measured else None,
        asked=link.asked,
        answered=link.answered,
        hedged=link.hedged,
        rows=link.rows,
        failed={why.value: count for why, count in link.failed.items()},
        bytes_sent=bytes_sent,
        bytes_received=link.bytes_received,
        format=link.format.value,
        format_bits=BITS[link.format],
        snr_db=state.snr_db,
        snr_source=state.source.value,
        snr_age_s=None if math.isinf(state.age_s) else state.age_s,
        snr_clamped=state.clamped,
    )


def _state(link: Link) -> str:
    if link.rejected is not None:
        return "refused"
    if not link.up:
        return "down"
    if link.draining:
        return "draining"
    return "up" if link.circuit is Circuit.CLOSED else link.circuit.value


async def ask_status(transport: Transport, peer: str, timeout_s: float) -> NodeView | None:
    """Return a peer's view, None when it does not answer in time or says nonsense."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bytes | Silence] = loop.create_future()

    def replied(reply: bytes | Silence) -> None:
        loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(reply))

    transport.ask(peer, Service.STATUS, encode(StatusRequest()), timeout_s=timeout_s, on_reply=replied)
    try:
        reply = await asyncio.wait_for(future, timeout_s + 0.1)
        if isinstance(reply, Silence):
            return None
        message = decode_as(reply, StatusReply)
    except (TimeoutError, MessageError):
        return None
    return message.view if isinstance(message, StatusReply) else None
