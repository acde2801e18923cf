"""Dispatcher: carries out what ``protocol.Origin`` decides, over a transport.

Whoever brings an event, a worker or the transport, takes the lock, steps, and carries the effects out after giving the lock back; so an
answer needs no thread of its own between the workers and the network. Deadlines and hedges come from one timer thread.
"""

import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from nmoe.core.errors import MessageError
from nmoe.node.events import (
    Effect,
    Event,
    ExpertGroup,
    Failure,
    FetchCard,
    Finish,
    InferArrived,
    PeerAnswered,
    PeerDown,
    PeerFailed,
    PeerUp,
    Probe,
    Probed,
    ProbeDue,
    Queue,
    Refuse,
    RunOwn,
    Scored,
    Send,
    SetProbe,
    SetTimer,
    TimerFired,
)
from nmoe.node.introductions import Examine, Introductions
from nmoe.node.messages import (
    ExpertReply,
    ExpertRequest,
    ExpertRows,
    PingReply,
    PingRequest,
    Refusal,
    RefusalCode,
    decode_as,
    encode,
)
from nmoe.node.protocol import Origin
from nmoe.node.radio import Air
from nmoe.node.timers import Timers
from nmoe.node.tracing import span_of_message
from nmoe.node.transport.base import OnReply, Service, Silence, Transport

MAX_DISPATCHES = 4096  # of one flight; no peer is asked twice
_SILENCE = {Silence.GONE: Failure.GONE, Silence.TIMEOUT: Failure.TIMEOUT, Silence.FULL: Failure.FULL}
_REFUSAL = {RefusalCode.BUSY: Failure.BUSY, RefusalCode.LATE: Failure.LATE, RefusalCode.LEAVING: Failure.LEAVING}


@dataclass(slots=True)
class Cargo:
    """The tensors of a flight: its features [rows, dim], the own expert's outputs, and what the peers replied, by dispatch.

    ``block``: over a simulated radio, the SNR in dB of the link to each neighbour while this flies.
    """

    features: np.ndarray
    trace: str = ""
    block: dict[str, float] | None = None
    own: np.ndarray | None = None
    replies: dict[int, np.ndarray] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What the dispatcher leaves to its owner; called without its lock held.

    Attributes:
        queue: let a request be scored.
        run_own: run the own expert on a flight's features, then let ``OwnAnswered`` or ``OwnFailed`` happen.
        finished: answer the requests of a flight.
        refused: refuse a request.
        examine: look at a new peer's card and call back with None or a reason to reject it, from any thread.
    """

    queue: Callable[[int], None]
    run_own: Callable[[int, Cargo], None]
    finished: Callable[[Finish, Cargo], None]
    refused: Callable[[Refuse], None]
    examine: Examine


class Dispatcher:
    """An ``Origin`` at work.

    Args:
        origin: what decides; touched under this object's lock only.
        transport: asks peers.
        timers: calls at deadlines.
        hooks: the rest of the node.
        air: simulated radio links that features cross; None for none.
    """

    def __init__(self, origin: Origin, transport: Transport, timers: Timers, hooks: Hooks, *, air: Air | None = None) -> None:
        self.origin = origin
        self.lock = threading.Lock()
        self.introductions = Introductions(origin, self.lock, transport, timers, happen=self.happen, examine=hooks.examine)
        self.bytes_sent: Counter[str] = Counter()
        self.bytes_out: Counter[str] = Counter()
        self._transport = transport
        self._timers = timers
        self._hooks = hooks
        self._air = air
        self._cargo: dict[int, Cargo] = {}
        self._numbers = itertools.count(1)

    def watch(self) -> None:
        """Begin to hear of peers."""
        self._transport.watch(lambda peer, alive: self.happen(PeerUp(peer) if alive else PeerDown(peer)))

    def happen(self, event: Event) -> None:
        """Let the origin decide what follows, and do it."""
        with self.lock:
            effects = self.origin.step(event, time.monotonic())
            todo = [(effect, self._freight(effect)) for effect in effects]
        for effect, cargo in todo:
            self._carry_out(effect, cargo)

    def scored(self, requests: Sequence[tuple[int, int]], scores: np.ndarray, cargo: Cargo) -> None:
        """Requests were scored together; see ``events.Scored``."""
        self._begin((), requests, scores, cargo)

    def begin(self, arrived: InferArrived, scores: np.ndarray, cargo: Cargo) -> None:
        """A request has arrived with its scores."""
        self._begin((arrived,), ((arrived.request, 0),), scores, cargo)

    def _begin(self, first: Sequence[Event], requests: Sequence[tuple[int, int]], scores: np.ndarray, cargo: Cargo) -> None:
        number = next(self._numbers)
        with self.lock:
            now_s = time.monotonic()
            self._cargo[number] = cargo
            effects = [effect for event in (*first, Scored(number, tuple(requests), scores)) for effect in self.origin.step(event, now_s)]
            todo = [(effect, self._freight(effect)) for effect in effects]
            if number not in self.origin.flights:  # over already, or all its requests were late
                self._cargo.pop(number, None)
        for effect, freight in todo:
            self._carry_out(effect, freight)

    def ask(self, peer: str, service: Service, payload: bytes, *, timeout_s: float, on_reply: OnReply) -> None:
        """Ask a peer for something besides what the origin decides."""
        self._transport.ask(peer, service, payload, timeout_s=timeout_s, on_reply=on_reply)

    def abandon(self, code: RefusalCode, reason: str) -> None:
        """Refuse whatever is in progress: the node is stopping."""
        with self.lock:
            numbers = list(self.origin.requests)
            self.origin.requests.clear()
            self.origin.flights.clear()
            self._cargo.clear()
        for number in numbers:
            self._hooks.refused(Refuse(number, code, reason))

    # Effects

    def _freight(self, effect: Effect) -> Cargo | None:
        """Return the tensors an effect needs; those of a finished flight leave the hold."""
        match effect:
            case Finish():
                return self._cargo.pop(effect.flight)
            case Send() | RunOwn():
                return self._cargo.get(effect.flight)
            case Refuse():
                for number in [number for number in self._cargo if number not in self.origin.flights]:
                    del self._cargo[number]
        return None

    def _carry_out(self, effect: Effect, cargo: Cargo | None) -> None:
        if cargo is not None:
            self._carry_out_with(effect, cargo)
            return
        match effect:
            case SetTimer(request, at_s):
                self._timers.at(at_s, lambda: self._timer(request))
            case Queue():
                self._hooks.queue(effect.request)
            case Refuse():
                self._hooks.refused(effect)
            case FetchCard():
                self.introductions.meet(effect.peer)
            case Probe():
                self._probe(effect.peer)
            case SetProbe(peer, at_s):
                self._timers.at(at_s, lambda: self.happen(ProbeDue(peer)))

    def _carry_out_with(self, effect: Effect, cargo: Cargo) -> None:
        match effect:
            case Send():
                self._send(effect, cargo)
            case Finish():
                self._hooks.finished(effect, cargo)
            case RunOwn():
                self._hooks.run_own(effect.flight, cargo)

    def _timer(self, request: int) -> None:
        if request in self.origin.requests:  # most are over by then; looking needs no lock
            self.happen(TimerFired(request))

    def _send(self, send: Send, cargo: Cargo) -> None:
        whole = len(cargo.features)
        rows = _union(send.groups, whole)
        features = cargo.features if rows is None else cargo.features[rows]
        if self._air is not None and cargo.block is not None:
            features = self._air.send(features, cargo.block.get(send.peer, math.nan))
        version = self.introductions.version(send.peer)
        asked = tuple(
            ExpertRows(expert=self.origin.experts[group.expert], version=version, rows=_places(group.rows, rows, whole))
            for group in send.groups
        )
        left_s = max(0.0, send.deadline_s - time.monotonic())
        number = send.flight * MAX_DISPATCHES + send.dispatch
        pairs = sum(len(group.rows) for group in send.groups)
        span = span_of_message(cargo.trace, send.peer, pairs)
        request = ExpertRequest(
            request=number,
            origin=self.origin.rules.name,
            deadline_s=left_s,
            format=send.format,
            experts=asked,
            features=features,
            trace="" if span is None else span.traceparent,
        )
        data = encode(request)
        cargo.bytes_sent += len(data)
        self.bytes_sent[send.peer] += len(data)
        self.bytes_out[send.format.value] += len(data)

        def replied(reply: bytes | Silence) -> None:
            if span is not None:
                span.end(reply.value if isinstance(reply, Silence) else "")
            self._replied(send, number, pairs, cargo, reply)

        self._transport.ask(send.peer, Service.EXPERT, data, timeout_s=left_s, on_reply=replied)

    def _replied(self, send: Send, number: int, pairs: int, cargo: Cargo, reply: bytes | Silence) -> None:
        if isinstance(reply, Silence):
            self.happen(PeerFailed(send.flight, send.dispatch, _SILENCE[reply]))
            return
        cargo.bytes_received += len(reply)
        try:
            message = decode_as(reply, ExpertReply)
        except MessageError:
            self._nonsense(send, Failure.UNREADABLE)
            return
        if isinstance(message, Refusal):
            self.happen(PeerFailed(send.flight, send.dispatch, _REFUSAL.get(message.code, Failure.REFUSED), message.queue_rows))
        elif message.request != number:
            self._nonsense(send, Failure.UNREADABLE)
        elif message.outputs.shape != (pairs, self.origin.rules.out_dim):
            self._nonsense(send, Failure.BAD_SHAPE)
        elif not all_finite(message.outputs):
            self._nonsense(send, Failure.NOT_FINITE)
        else:
            cargo.replies[send.dispatch] = message.outputs
            self.happen(
                PeerAnswered(
                    send.flight, send.dispatch, message.wait_s, message.compute_s, message.queue_rows, len(reply), message.draining
                )
            )

    def _nonsense(self, send: Send, why: Failure) -> None:
        self.introductions.note(send.peer, f"reply {why.value}")
        self.happen(PeerFailed(send.flight, send.dispatch, why))

    def _probe(self, peer: str) -> None:
        with self.lock:
            timeout_s = self.origin.links[peer].probe_timeout_s

        def replied(reply: bytes | Silence) -> None:
            self.happen(Probed(peer, not isinstance(reply, Silence) and _is(reply, PingReply)))

        self._transport.ask(peer, Service.PING, encode(PingRequest()), timeout_s=timeout_s, on_reply=replied)


def all_finite(values: np.ndarray) -> bool:
    """Say whether there is neither NaN nor infinity: their sum tells, unless it overflows."""
    return math.isfinite(values.sum()) or bool(np.isfinite(values).all())


def fill(finish: Finish, cargo: Cargo, out_dim: int, own: int | None) -> np.ndarray:
    """Return the outputs [rows, k, out_dim] behind a flight's answer, zeros where nobody stands."""
    if finish.rows == 1 and len(finish.used) == 1 and not finish.degraded:
        (used,) = finish.used
        if [group.slots[0] for group in used.groups] == list(range(finish.experts.shape[1])):  # one peer had them all, in order
            return cargo.replies[used.dispatch][None].copy()  # a view of the message, which nobody may write to
    outputs = (np.zeros if finish.degraded else np.empty)((*finish.experts.shape, out_dim), dtype=np.float32)
    if finish.own and cargo.own is not None:
        rows, slots = np.nonzero(finish.experts == own)
        outputs[rows, slots] = cargo.own[rows]
    for used in finish.used:
        reply, start = cargo.replies[used.dispatch], 0
        for group in used.groups:
            stop = start + len(group.rows)
            outputs[group.rows, group.slots] = reply[start:stop]
            start = stop
    return outputs


def _is(reply: bytes, kind: type[PingReply]) -> bool:
    try:
        return isinstance(decode_as(reply, kind), kind)
    except MessageError:
        return False


def _union(groups: Sequence[ExpertGroup], whole: int) -> np.ndarray | None:
    """Return the rows that any group needs, in order; None when that is all of them."""
    if whole == 1 or any(len(group.rows) == whole for group in groups):
        return None
    needed = np.zeros(whole, dtype=bool)
    for group in groups:
        needed[group.rows] = True
    return None if needed.all() else np.nonzero(needed)[0]


def _places(rows: Sequence[int] | np.ndarray, sent: np.ndarray | None, whole: int) -> np.ndarray | None:
    """Return where a group's rows stand among those sent; None when it is all of them in order."""
    if len(rows) == (whole if sent is None else len(sent)):
        return None  # a group's rows are in order and each stands once
    places = np.asarray(rows) if sent is None else np.searchsorted(sent, np.asarray(rows))
    return places.astype(np.int32)
