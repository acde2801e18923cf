"""World: carries out in virtual time what the runner, the dispatcher, the workers and the expert server carry out over a network.

What decides is the same: one ``Origin`` and one ``Batcher`` per node. What is modelled: delays of messages (a measured round-trip matrix,
jitter, the goodput of the thinner line), losses, computing times, nodes that vanish, freeze, leave and return. What is not: messages that
share a line do not slow each other, and a lost message is lost, where the transport of the wire would send it again, later.
"""

import gc
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nmoe.core.seeds import numpy_generator
from nmoe.node.batcher import Batch, Job, Line
from nmoe.node.events import (
    ComputeFailed,
    Effect,
    Event,
    Failure,
    FetchCard,
    Finish,
    InferArrived,
    OwnAnswered,
    PeerAnswered,
    PeerFailed,
    Probe,
    Queue,
    Refuse,
    RunOwn,
    Scored,
    Send,
    SetProbe,
    SetTimer,
    TimerFired,
)
from nmoe.node.messages import RefusalCode, TensorFormat, reply_format, tensor_bytes
from nmoe.node.plan import OVERHEAD_BYTES
from nmoe.node.world.cast import Cast
from nmoe.node.world.clock import Clock, Node
from nmoe.node.world.membership import Membership
from nmoe.node.world.network import Network
from nmoe.node.world.recording import Step
from nmoe.node.world.scene import Gates, Layout, Offered, Service, WorldOptions
from nmoe.node.world.tally import Outcome, Tally

ANSWER_MARGIN_S = 0.05  # as in desk.py, which imports torch
DRAWS = 1 << 16  # of each kind, used in turn
REFUSAL_BYTES = 96
_INFER, _EXPERT = Line.INFER, Line.EXPERT


class _Message:
    """An expert request on its way."""

    __slots__ = ("node", "rows", "send", "sent_s")

    def __init__(self, node: Node, send: Send, rows: int, sent_s: float) -> None:
        self.node = node
        self.send = send
        self.rows = rows
        self.sent_s = sent_s


class World:
    """A mesh in virtual time.

    Args:
        options: what holds for every node.
        layout: who knows whom.
        network: how long messages take.
        gates: what the gates say.
        seed: of every draw.
        wrap: see ``Cast``; for recording.
        finished: told of every answer, with the node's number.

    Attributes:
        clock: the time.
        cast: the nodes in their lives.
        members: who is there.
    """

    def __init__(
        self,
        options: WorldOptions,
        layout: Layout,
        network: Network,
        gates: Gates,
        *,
        seed: int,
        wrap: Callable[[int, int, Step], Step] | None = None,
        finished: Callable[[int, Finish], None] | None = None,
    ) -> None:
        self.options, self.layout, self.network, self.gates = options, layout, network, gates
        self._finished = finished
        self.tally = Tally(0, options.deadline_s)
        self._offered_s: Sequence[float] = ()
        self._flights = itertools.count(1)
        generator = numpy_generator(seed, "world")
        self._tail: Callable[[], float] = itertools.cycle(options.tail.multipliers(generator, DRAWS).tolist()).__next__
        jitter = generator.lognormal(-(options.jitter**2) / 2, options.jitter, DRAWS + 1)  # one more: the cycles shift against each other
        self._jitter: Callable[[], float] = itertools.cycle(jitter.tolist()).__next__
        self._chance: Callable[[], float] = itertools.cycle(generator.random(DRAWS + 3).tolist()).__next__
        self.cast = Cast(options, layout, network, seed=seed, wrap=wrap)
        self.clock = Clock(self._lost)
        self.members = Membership(
            self.clock,
            layout,
            make=self.cast.node,
            delay=self._delay,
            happen=self._happen,
            retired=self._retire,
            card=self.cast.card,
            lease_s=options.lease_s,
        )
        self._rare: dict[type, Callable[[Node, Any], None]] = {
            FetchCard: self.members.fetch_card,
            Probe: self.members.probe,
            SetProbe: self.members.set_probe,
        }

    def run(self, offered: Offered) -> Tally:
        """Offer a load and return what became of it; once per world. Ends two deadlines after the last arrival."""
        assert not self.tally.offered, "a world runs once"
        self.tally = Tally(len(offered.times_s), self.options.deadline_s)
        self._offered_s = offered.times_s
        self.members.boot()
        picks = offered.picks
        end_s = (offered.times_s[-1] if len(offered.times_s) else 0.0) + 2 * self.options.deadline_s
        collecting = gc.isenabled()
        gc.freeze()  # nothing here is in cycles; the collector would only look at it again and again
        gc.disable()
        try:
            self.clock.run(offered.times_s, lambda number: self._arrive(number, picks[number]), end_s)
        finally:
            if collecting:
                gc.enable()
            gc.unfreeze()
        for node in self.members.nodes:
            self._retire(node)
        self.tally.events = self.clock.events
        self.tally.node_s = len(self.layout.names) * self.options.workers * end_s
        return self.tally

    # Nodes

    def _retire(self, node: Node) -> None:
        """Keep what a node has counted."""
        tally, origin = self.tally, node.origin
        for link in origin.links.values():
            tally.hedges += link.hedged
            for why, count in link.failed.items():
                tally.failures[why.value] += count
        for expert, rows in origin.chosen_rows.items():
            tally.chosen_rows[origin.experts[expert]] += rows
        node.open.clear()

    # Requests

    def _arrive(self, number: int, pick: float) -> None:
        takers = self.members.takers
        if not takers:
            self.tally.outcome[number] = Outcome.NOWHERE
            return
        node = takers[int(pick * len(takers))]
        if node.away:
            node.held.append((self._take, number))
        else:
            self._take(node, number)

    def _take(self, node: Node, number: int) -> None:
        scores = node.open[number] = self.gates.scores(node.index, number)
        now_s, deadline_s = self.clock.now_s, self.options.deadline_s
        due_s = now_s + deadline_s - min(ANSWER_MARGIN_S, deadline_s / 10)
        self._carry_out(node, node.step(InferArrived(number, len(scores), due_s, None), now_s))

    def _happen(self, node: Node, event: Event) -> None:
        self._carry_out(node, node.step(event, self.clock.now_s))

    def _timer(self, node: Node, number: int) -> None:
        if number in node.origin.requests:  # most are over by then
            self._carry_out(node, node.step(TimerFired(number), self.clock.now_s))

    def _carry_out(self, node: Node, effects: list[Effect]) -> None:
        for effect in effects:
            kind = type(effect)
            if kind is Send:
                self._send(node, effect)  # type: ignore[arg-type]
            elif kind is SetTimer:
                self.clock.timer(effect.at_s, self._timer, node, effect.request)  # type: ignore[union-attr]
            elif kind is Finish:
                self._finish(node, effect)  # type: ignore[arg-type]
            elif kind is RunOwn:
                node.run_own = effect.flight  # type: ignore[union-attr]  # by the worker that scored it
            elif kind is Queue:
                self._queue(node, effect.request)  # type: ignore[union-attr]
            elif kind is Refuse:
                self._refuse(node, effect)  # type: ignore[arg-type]
            else:
                self._rare[kind](node, effect)

    def _finish(self, node: Node, finish: Finish) -> None:
        tally, now_s = self.tally, self.clock.now_s
        outcome = Outcome.DEGRADED if finish.degraded else Outcome.ANSWERED
        for number, _ in finish.requests:
            if node.open.pop(number, None) is not None:
                tally.outcome[number] = outcome
                tally.latency_s[number] = now_s - self._offered_s[number]
        if self._finished is not None:
            self._finished(node.index, finish)

    def _refuse(self, node: Node, refuse: Refuse) -> None:
        if node.open.pop(refuse.request, None) is not None:
            self.tally.outcome[refuse.request] = Outcome.REFUSED
            self.tally.refused[refuse.code] += 1

    # Workers

    def _queue(self, node: Node, number: int) -> None:
        now_s, due_s = self.clock.now_s, node.origin.requests[number].deadline_s
        rows = len(node.open[number])
        job = Job(_INFER, math.frexp(max(1e-3, due_s - now_s))[1], rows, rows, due_s, number)
        refused = node.batcher.offer(job, now_s)
        if refused is not None:
            self._happen(node, ComputeFailed((number,), f"{node.name}: {refused}", RefusalCode.BUSY))
        elif node.free:
            self._work(node)

    def _work(self, node: Node) -> None:
        """Let free workers take what waits."""
        clock, batcher = self.clock, node.batcher
        while node.free:
            batch = batcher.take(clock.now_s)
            if batch is None:
                return
            if isinstance(batch, float):
                node.free -= 1
                clock.later(clock.now_s + batch, self._lingered, node, None)
                return
            if batch.line is _INFER:
                self._score(node, batch)
            else:
                self._compute(node, batch)

    def _lingered(self, node: Node, _: None) -> None:
        node.free += 1
        self._work(node)

    def _seconds(self, node: Node, service: Service, rows: int) -> float:
        seconds = node.pace * self._tail() * (service.batch_s + service.row_s * rows)
        self.tally.busy_s += seconds
        return seconds

    def _score(self, node: Node, batch: Batch[Any]) -> None:
        numbers = [job.item for job in batch.jobs if job.item in node.open]
        if not numbers:
            node.batcher.done(batch.line, batch.rows, 0.0)
            return
        node.free -= 1
        now_s = self.clock.now_s
        rows = sum([len(node.open[number]) for number in numbers]) if len(numbers) > 1 else len(node.open[numbers[0]])
        self.clock.later(now_s + self._seconds(node, self.options.infer, rows), self._scored, node, (batch, now_s, numbers))

    def _scored(self, node: Node, item: tuple[Batch[Any], float, list[int]]) -> None:
        batch, began_s, numbers = item
        found = [(number, scores) for number in numbers if (scores := node.open.get(number)) is not None]
        if found:
            if len(found) == 1:
                scores, pairs = found[0][1], ((found[0][0], 0),)
            else:
                scores = np.concatenate([scores for _, scores in found])
                starts = itertools.accumulate([len(scores) for _, scores in found], initial=0)
                pairs = tuple((number, start) for (number, _), start in zip(found, starts, strict=False))  # type: ignore[assignment]
            flight = next(self._flights)
            node.run_own = -1
            self._carry_out(node, node.step(Scored(flight, pairs, scores), self.clock.now_s))
            if node.run_own == flight:
                seconds = self._seconds(node, self.options.expert, len(scores))
                self.clock.later(self.clock.now_s + seconds, self._own_done, node, (batch, began_s, flight))
                return
        self._done(node, batch, began_s)

    def _own_done(self, node: Node, item: tuple[Batch[Any], float, int]) -> None:
        batch, began_s, flight = item
        self._carry_out(node, node.step(OwnAnswered(flight), self.clock.now_s))
        self._done(node, batch, began_s)

    def _done(self, node: Node, batch: Batch[Any], began_s: float) -> None:
        node.batcher.done(batch.line, batch.rows, self.clock.now_s - began_s)
        node.free += 1
        self._work(node)

    # Expert requests

    def _delay(self, sender: Node, receiver: Node) -> float:
        return self.network.half_s[sender.row + receiver.place] * self._jitter()

    def _travel(self, sender: Node, receiver: Node, size: int, call: Callable[[Node, Any], None], item: Any) -> None:
        """Let a message arrive, if it does."""
        tally, loss = self.tally, self.options.loss
        tally.bytes += size
        if sender.loss or receiver.loss:
            loss = 1 - (1 - loss) * (1 - sender.loss) * (1 - receiver.loss)
        if loss and self._chance() < loss:
            tally.lost_messages += 1  # the deadline's timer tells the origin, or the peer's node is not told at all
            return
        byte_s = sender.byte_s if sender.byte_s > receiver.byte_s else receiver.byte_s
        delay_s = self.network.half_s[sender.row + receiver.place] * self._jitter() + size * byte_s
        self.clock.later(self.clock.now_s + delay_s, call, receiver, item)

    def _send(self, node: Node, send: Send) -> None:
        groups = send.groups
        if len(groups) == 1:
            rows = unique = len(groups[0].rows)
        else:
            rows = sum([len(group.rows) for group in groups])
            unique = len({int(row) for group in groups for row in group.rows})
        self.tally.messages += 1
        message = _Message(node, send, rows, self.clock.now_s)
        self._travel(node, self.members.node(send.peer), self._size(unique, self.options.in_dim, send.format), self._asked, message)

    def _size(self, rows: int, width: int, form: TensorFormat) -> int:
        return OVERHEAD_BYTES // 2 + tensor_bytes(rows, width, form)

    def _asked(self, node: Node, message: _Message) -> None:
        now_s, send = self.clock.now_s, message.send
        job = Job(_EXPERT, None, message.rows, message.rows, now_s + send.deadline_s - message.sent_s, message)
        if node.batcher.offer(job, now_s) is not None:
            self._decline(node, message, Failure.BUSY)
        elif node.free:
            self._work(node)

    def _compute(self, node: Node, batch: Batch[Any]) -> None:
        for job in batch.late:
            self._decline(node, job.item, Failure.LATE)
        if not batch.jobs:
            node.batcher.done(batch.line, batch.rows, 0.0)
            return
        node.free -= 1
        now_s = self.clock.now_s
        self.clock.later(now_s + self._seconds(node, self.options.expert, batch.rows), self._computed, node, (batch, now_s))

    def _computed(self, node: Node, item: tuple[Batch[Any], float]) -> None:
        batch, began_s = item
        compute_s, queue_rows = self.clock.now_s - began_s, node.batcher.waiting_rows()
        for job in batch.jobs:
            message: _Message = job.item
            send = message.send
            size = self._size(message.rows, self.options.out_dim, reply_format(send.format))
            reply = PeerAnswered(send.flight, send.dispatch, began_s - job.arrived_s, compute_s, queue_rows, size, node.draining)
            self._travel(node, message.node, size, self._heard, reply)
        self._done(node, batch, began_s)

    def _decline(self, node: Node, message: _Message, why: Failure) -> None:
        send = message.send
        failed = PeerFailed(send.flight, send.dispatch, why, node.batcher.waiting_rows())
        self._travel(node, message.node, REFUSAL_BYTES, self._heard, failed)

    def _heard(self, node: Node, event: Event) -> None:
        self._carry_out(node, node.step(event, self.clock.now_s))

    def _lost(self, call: Callable[[Node, Any], None], item: Any) -> None:
        """Say that a message found nobody."""
        if isinstance(item, _Message) and call == self._asked:
            send, node = item.send, item.node
            there = self.members.node(send.peer)
            self._travel(there, node, REFUSAL_BYTES, self._heard, PeerFailed(send.flight, send.dispatch, Failure.GONE))
