"""Protocol: what a node decides for the requests it answers, without clock, network or computation.

``Origin.step(event, now_s) -> effects``: ``runner.py`` carries the effects out over a transport, ``world.py`` in virtual time.

Source: NMoE (arXiv 2511.01743): h = F(x); the gate picks k experts; h goes to their owners; y' = sum_j G(h)_j H_j(h).

Departures (the source is silent about networks and failure):
- Requests that wait together are scored together and fly together: one message per peer carries all their rows (a flight).
- Who is asked is decided by gate and links together, see ``plan.py``.
- A peer that fails before the deadline is replaced, once per sample and slot, by another node with the same expert or else by the next best
  expert, if that can still arrive; otherwise the weights of those that answered are renormalised. A sample that nobody answered is answered
  by the node's own expert, which runs for every row beside the network. Where that fails, requests are answered as far as peers do.
- A peer slower than its own 95th percentile is hedged: the same rows go to another node with the same expert, and the first answer counts;
  without one, to the next best expert, which counts only if the chosen one does not answer in time. At most one dispatch in ten is a hedge.
- A plan has at most one message per peer. A peer of the plan may be asked once more, to stand in for one that failed.
- Every request is answered exactly once, at the latest at its deadline.

| paper | here |
|---|---|
| G(h) | Scored.scores; Finish.experts, Finish.weights |
| H_j(h) | PeerAnswered, OwnAnswered |
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nmoe.node.events import (
    CardArrived,
    ComputeFailed,
    Effect,
    Event,
    ExpertGroup,
    Failure,
    InferArrived,
    OwnAnswered,
    OwnFailed,
    PeerAnswered,
    PeerDown,
    PeerFailed,
    PeerRejected,
    PeerUp,
    Probed,
    ProbeDue,
    Queue,
    Refuse,
    RunOwn,
    Scored,
    SetProbe,
    SetTimer,
    TimerFired,
)
from nmoe.node.flight import Dispatch, Flight, Request, Role, State
from nmoe.node.messages import RefusalCode, TensorFormat
from nmoe.node.neighbours import Neighbours
from nmoe.node.plan import Routing
from nmoe.node.reach import Reach

# in Python 3.11 finding a member takes ten times as long as finding a name
_WAITING, _ANSWERED, _STANDBY, _CHOSEN = State.WAITING, State.ANSWERED, Role.STANDBY, Role.CHOSEN
HEDGE_SHARE, MAX_HEDGE_CREDIT = 0.1, 10.0
EARLY_S = 1e-4  # timers this close to now are taken as due


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a node decides by.

    Attributes:
        name: this node, or client.
        experts: names of the gate's outputs, in order.
        own: the index among them of this node's own expert; None for a client that has none.
        k: experts per sample unless the request says otherwise.
        in_dim, out_dim: numbers per feature vector and per expert output.
        max_requests, max_rows: requests and samples in progress; more are refused as busy. A larger request is taken when it is alone.
        routing: what decides who is asked.
        formats: tensor formats that may be used, most precise first.
        hedge: whether slow peers are hedged.
        neighbours: the only peers that may be asked; None for everybody who serves a known expert.
    """

    name: str
    experts: tuple[str, ...]
    own: int | None
    k: int
    in_dim: int
    out_dim: int
    max_requests: int = 64
    max_rows: int = 16384
    routing: Routing = Routing.BOTH
    formats: tuple[TensorFormat, ...] = tuple(TensorFormat)
    hedge: bool = True
    neighbours: frozenset[str] | None = None


class Origin:
    """A node as the origin of requests: its links, its requests in progress and its decisions.

    Args:
        rules: what it decides by.
        draw: for the choice between replicas.
    """

    def __init__(self, rules: Rules, draw: random.Random) -> None:
        self.rules = rules
        self.neighbours = Neighbours(rules)
        self.experts, self.links, self.servers = self.neighbours.experts, self.neighbours.links, self.neighbours.servers
        self.requests: dict[int, Request] = {}
        self.flights: dict[int, Flight] = {}
        self.rows_in_progress = 0
        self.chosen_rows: dict[int, int] = {}
        self.answered_rows: dict[int, int] = {}
        self.reach = Reach(rules, self.links, self.servers, draw)
        self._hedge_credit = 1.0

    def step(self, event: Event, now_s: float) -> list[Effect]:
        """Decide what follows from one event.

        Args:
            event: what happened. Events about flights and requests that are over change nothing but what is known of a link.
            now_s: the time, never less than at the step before.

        Returns:
            What is to be done, in order.
        """
        return _HANDLERS[type(event)](self, event, now_s)

    # Membership

    def expert_index(self, name: str) -> int | None:
        """Return the gate's output for an expert, None if it has none."""
        return self.neighbours.expert_index(name)

    def add_expert(self, name: str) -> int:
        """Give the gate one more output (its scores must have it from now on); return its index."""
        return self.neighbours.add_expert(name)

    def _peer_down(self, event: PeerDown, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        if not self.neighbours.peer_down(event):
            return effects
        for flight in list(self.flights.values()):
            for dispatch in flight.dispatches:
                if dispatch.peer == event.peer and dispatch.state is _WAITING:
                    effects += self._fail(flight, dispatch, Failure.GONE, 0, now_s)
                    break  # a peer is asked once about a flight
        return effects

    # Requests

    def _infer_arrived(self, event: InferArrived, now_s: float) -> list[Effect]:
        rules = self.rules
        if event.request in self.requests:
            return []
        if len(self.requests) >= rules.max_requests or (self.requests and self.rows_in_progress + event.rows > rules.max_rows):
            reason = f"{rules.name} has {len(self.requests)} requests with {self.rows_in_progress} samples in progress"
            return [Refuse(event.request, RefusalCode.BUSY, reason)]
        k = rules.k if event.k is None else event.k
        if not 1 <= k <= len(self.experts):
            return [Refuse(event.request, RefusalCode.BAD_SHAPE, f"k must be between 1 and the {len(self.experts)} experts, got {k}")]
        self.requests[event.request] = Request(event.request, event.rows, event.deadline_s, k)
        self.rows_in_progress += event.rows
        return [SetTimer(event.request, event.deadline_s), Queue(event.request)]

    def _scored(self, event: Scored, now_s: float) -> list[Effect]:
        requests = [self.requests.get(number) for number, _ in event.requests]
        open_requests = [request for request in requests if request is not None]
        if not open_requests:  # all of them were late
            return []
        flight = Flight(event.flight, event.requests, open_requests, event.scores)
        self.flights[flight.number] = flight
        for request in open_requests:
            request.flight = flight.number
        effects: list[Effect] = []
        for peer, groups in self.reach.choose(flight, now_s).items():
            for group in groups:
                self.chosen_rows[group.expert] = self.chosen_rows.get(group.expert, 0) + len(group.rows)
            if peer is not None:
                effects.append(self._dispatch(flight, peer, tuple(groups), _CHOSEN, now_s))
        self._hedge_credit = min(MAX_HEDGE_CREDIT, self._hedge_credit + HEDGE_SHARE * len(effects))
        if self.rules.own is not None:
            effects.append(RunOwn(flight.number))
        if flight.waiting:
            effects += self._next_timer(flight, now_s)
        return effects + self._progress(flight)

    def _dispatch(self, flight: Flight, peer: str, groups: tuple[ExpertGroup, ...], role: Role, now_s: float) -> Effect:
        dispatch = Dispatch(len(flight.dispatches), peer, groups, role, now_s)
        flight.dispatches.append(dispatch)
        (flight.barred if peer in flight.asked else flight.asked).add(peer)
        flight.waiting += role is not _STANDBY
        send = self.reach.send(flight, dispatch, now_s)
        self.links[peer].sent(dispatch.rows, send.format)
        return send

    def _own_answered(self, event: OwnAnswered, now_s: float) -> list[Effect]:
        flight = self.flights.get(event.flight)
        if flight is None:
            return []
        flight.own_done = True
        return self._progress(flight)

    def _own_failed(self, event: OwnFailed, now_s: float) -> list[Effect]:
        flight = self.flights.get(event.flight)
        if flight is None or flight.own_done:
            return []
        flight.own_failed = event.reason
        return self._progress(flight)

    def _compute_failed(self, event: ComputeFailed, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for number in event.requests:
            request = self.requests.get(number)
            if request is not None:
                effects.append(self._refuse(request, event.code, event.reason))
        return effects

    def _peer_answered(self, event: PeerAnswered, now_s: float) -> list[Effect]:
        flight = self.flights.get(event.flight)
        if flight is None:
            return []
        dispatch = flight.dispatches[event.dispatch]
        if dispatch.state is not _WAITING:
            return []
        link = self.links[dispatch.peer]
        link.answered_in(
            now_s - dispatch.sent_s,
            wait_s=event.wait_s,
            compute_s=event.compute_s,
            queue_rows=event.queue_rows,
            rows=dispatch.rows,
            size=self.reach.size(dispatch.rows, link.format),
            now_s=now_s,
        )
        link.bytes_received += event.bytes_received
        link.draining = event.draining
        dispatch.state = _ANSWERED
        for group in dispatch.groups:
            self.answered_rows[group.expert] = self.answered_rows.get(group.expert, 0) + len(group.rows)
        flight.waiting -= dispatch.role is not _STANDBY
        if dispatch.twin is not None:  # the same rows went to a node with the same expert: the first answer counts
            twin = flight.dispatches[dispatch.twin]
            if twin.state is _WAITING:
                twin.state = State.OVERTAKEN
                flight.waiting -= 1
                self.links[twin.peer].rows_in_flight -= twin.rows
        return self._progress(flight)

    def _peer_failed(self, event: PeerFailed, now_s: float) -> list[Effect]:
        flight = self.flights.get(event.flight)
        if flight is None or flight.dispatches[event.dispatch].state is not _WAITING:
            return []
        return self._fail(flight, flight.dispatches[event.dispatch], event.why, event.queue_rows, now_s)

    def _fail(self, flight: Flight, dispatch: Dispatch, why: Failure, queue_rows: int, now_s: float) -> list[Effect]:
        dispatch.state = State.FAILED
        flight.waiting -= dispatch.role is not _STANDBY
        effects = self._link_failed(dispatch, why, queue_rows, now_s)
        twin = None if dispatch.twin is None else flight.dispatches[dispatch.twin]
        if flight.number not in self.flights:
            return effects
        flight.barred.add(dispatch.peer)
        if dispatch.role in (_CHOSEN, Role.REPLICA) and (twin is None or twin.state is State.FAILED) and now_s < flight.deadline_s:
            for peer, groups, same in self.reach.instead(flight, dispatch, flight.barred, now_s):
                if peer is None:
                    flight.own_fill += groups
                else:
                    effects.append(self._dispatch(flight, peer, groups, _CHOSEN if same else Role.SUBSTITUTE, now_s))
        return effects + self._progress(flight)

    def _link_failed(self, dispatch: Dispatch, why: Failure, queue_rows: int, now_s: float) -> list[Effect]:
        link = self.links[dispatch.peer]
        opened = link.failed_with(why, rows=dispatch.rows, queue_rows=queue_rows, now_s=now_s)
        return [SetProbe(link.peer, now_s + link.pause_s)] if opened else []

    # Time

    def _timer_fired(self, event: TimerFired, now_s: float) -> list[Effect]:
        request = self.requests.get(event.request)
        if request is None:
            return []
        flight = None if request.flight is None else self.flights[request.flight]
        if now_s >= request.deadline_s - EARLY_S:
            return self._deadline(request, flight, now_s)
        return [] if flight is None else self._hedge(flight, now_s)

    def _deadline(self, request: Request, flight: Flight | None, now_s: float) -> list[Effect]:
        if flight is None or (flight.own_failed is None and not flight.can_answer(self.rules.own, at_deadline=True)):
            reason = f"the deadline passed before {self.rules.name} had an answer of its own"
            return [self._refuse(request, RefusalCode.LATE, reason)]
        effects: list[Effect] = []
        for dispatch in flight.dispatches:
            if dispatch.state is _WAITING:
                dispatch.state = State.FAILED
                effects += self._link_failed(dispatch, Failure.TIMEOUT, 0, now_s)
        return [*self._answer(flight), *effects]

    def _hedge(self, flight: Flight, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for dispatch in list(flight.dispatches):
            due = dispatch.state is _WAITING and dispatch.hedge_at_s is not None and dispatch.hedge_at_s <= now_s + EARLY_S
            if not due:
                continue
            dispatch.hedge_at_s = None
            if self._hedge_credit < 1:
                continue
            for peer, groups, same in self.reach.instead(flight, dispatch, flight.asked, now_s):
                if peer is None:
                    flight.own_fill += groups
                    continue
                self._hedge_credit -= 1
                self.links[peer].hedged += 1
                effects.append(self._dispatch(flight, peer, groups, Role.REPLICA if same else _STANDBY, now_s))
                if same:
                    dispatch.twin, flight.dispatches[-1].twin = len(flight.dispatches) - 1, dispatch.index
        return effects + self._next_timer(flight, now_s)

    def _next_timer(self, flight: Flight, now_s: float) -> list[Effect]:
        """Have a timer at the next hedge; the deadlines have theirs."""
        if not self.rules.hedge:
            return []
        times = [dispatch.hedge_at_s for dispatch in flight.dispatches if dispatch.hedge_at_s is not None and dispatch.state is _WAITING]
        if not times or min(times) >= flight.deadline_s:
            return []
        return [SetTimer(flight.open_requests[0].number, max(min(times), now_s))]

    # Answers

    def _progress(self, flight: Flight) -> list[Effect]:
        """Answer a flight when nothing is left to wait for."""
        if flight.number not in self.flights or flight.waiting:
            return []
        if flight.own_failed is None and not flight.can_answer(self.rules.own, at_deadline=False):
            return []
        return self._answer(flight)

    def _answer(self, flight: Flight) -> list[Effect]:
        """Answer a flight from what is there; where the own expert failed, refuse what nobody else answered."""
        if flight.own_failed is None:
            return [self._finish(flight)]
        refused = [self._refuse(request, RefusalCode.FAILED, flight.own_failed) for request in flight.unanswered()]
        return [self._finish(flight), *refused] if flight.open_requests else refused

    def _finish(self, flight: Flight) -> Effect:
        del self.flights[flight.number]
        for dispatch in flight.dispatches:  # standbys nobody waits for any more
            if dispatch.state is _WAITING:
                self.links[dispatch.peer].rows_in_flight -= dispatch.rows
        for request in flight.open_requests:
            self._forget(request)
        return flight.finish(self.rules.own)

    def _refuse(self, request: Request, code: RefusalCode, reason: str) -> Effect:
        self._forget(request)
        flight = None if request.flight is None else self.flights.get(request.flight)
        if flight is not None:
            flight.open_requests.remove(request)
            if not flight.open_requests:
                del self.flights[flight.number]
                for dispatch in flight.dispatches:
                    if dispatch.state is _WAITING:
                        self.links[dispatch.peer].rows_in_flight -= dispatch.rows
        return Refuse(request.number, code, reason)

    def _forget(self, request: Request) -> None:
        del self.requests[request.number]
        self.rows_in_progress -= request.rows


_HANDLERS: Mapping[type, Callable[..., list[Effect]]] = {
    PeerUp: lambda origin, event, now_s: origin.neighbours.peer_up(event, now_s),
    PeerDown: Origin._peer_down,
    CardArrived: lambda origin, event, _: origin.neighbours.card_arrived(event),
    PeerRejected: lambda origin, event, _: origin.neighbours.peer_rejected(event),
    InferArrived: Origin._infer_arrived,
    Scored: Origin._scored,
    OwnAnswered: Origin._own_answered,
    OwnFailed: Origin._own_failed,
    ComputeFailed: Origin._compute_failed,
    PeerAnswered: Origin._peer_answered,
    PeerFailed: Origin._peer_failed,
    TimerFired: Origin._timer_fired,
    ProbeDue: lambda origin, event, _: origin.neighbours.probe_due(event),
    Probed: lambda origin, event, now_s: origin.neighbours.probed(event, now_s),
}
