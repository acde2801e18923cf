"""Runner: carries out what ``protocol.step`` decides, over any transport.

Two threads a node. The event thread owns the state: it takes what happened out of one queue, steps, and carries the effects out; it never
computes and never waits for a link, so it keeps deadlines. The compute thread runs extractor, gate and expert, for this node's requests and
for its peers'. The transport's callbacks only put into queues; what waits there is bounded, and what finds no room is refused at once.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from nmoe.core.bundle import Bundle
from nmoe.core.errors import MessageError
from nmoe.node.admission import Admission
from nmoe.node.events import (
    Answer,
    ComputeExpert,
    ComputeFailed,
    ComputeRouting,
    DeadlinePassed,
    Effect,
    Event,
    InferArrived,
    LocalAnswered,
    PeerAnswered,
    PeerDown,
    PeerGone,
    PeerRefused,
    PeerUp,
    Refuse,
    Routed,
    SendExpertRequest,
    SetTimer,
)
from nmoe.node.messages import (
    MAX_MESSAGE_BYTES,
    MAX_ROWS,
    ExpertReply,
    ExpertRequest,
    InferReply,
    InferRequest,
    Message,
    RefusalCode,
    StatusReply,
    StatusRequest,
    decode_as,
    encode,
    refusal,
)
from nmoe.node.model import NodeCompute
from nmoe.node.protocol import NodeRules, NodeState, step
from nmoe.node.transport.base import Respond, Service, Silence, Transport

ANSWER_MARGIN_S = 0.05  # an answer leaves this much before its deadline, or a tenth of the deadline if that is less; our choice


@dataclass(slots=True, kw_only=True)
class _Job:
    """What the runner keeps of a request in progress."""

    respond: Respond
    images: Tensor
    arrived_s: float
    bytes_sent: int = 0
    bytes_received: int = 0


class NodeRunner:
    """One serving node. Use as a context manager, or ``start`` and ``stop``; it owns its transport.

    Args:
        bundle: what to serve.
        transport: the node's door to its mesh, not yet announced.
        max_requests: infer requests in progress.
        max_jobs: peers' requests waiting to be computed, and requests waiting to be read.
        max_job_bytes: bytes of them.

    Raises:
        BundleError: when the bundle's parts do not fit its card.
    """

    def __init__(
        self, bundle: Bundle, transport: Transport, *, max_requests: int = 64, max_jobs: int = 128, max_job_bytes: int = 64 << 20
    ) -> None:
        self.card = bundle.card
        self.name = bundle.card.node
        self.transport = transport
        self._compute = NodeCompute(bundle)
        self._state = NodeState(
            rules=NodeRules(
                name=self.card.node,
                experts=self.card.experts,
                neighbours=frozenset(self.card.neighbours) - {self.card.node},
                k=self.card.k,
                num_classes=self.card.num_classes,
                mix=self._compute.model.mix,
                max_requests=max_requests,
            )
        )
        bytes_per_row = max(4 * self._compute.feature_dim, 4 * self.card.num_classes + 8 + 12 * len(self.card.experts))
        self._max_batch = min(MAX_ROWS, (MAX_MESSAGE_BYTES - 1024) // bytes_per_row)  # so that every message about it can be sent
        self._arrivals = Admission(max_items=max_jobs, max_bytes=max_job_bytes)
        self._expert_jobs = Admission(max_items=max_jobs, max_bytes=max_job_bytes)
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._timers: list[tuple[float, int]] = []
        self._jobs: dict[int, _Job] = {}
        self._numbers = itertools.count(1)
        self._counts = StatusReply(node=self.name, peers=(), answered=0, degraded=0, refused=0, experts_served=0)
        self._rows_served = 0
        self._threads = [
            threading.Thread(target=self._run_events, name=f"nmoe-events-{self.name}"),
            threading.Thread(target=self._run_work, name=f"nmoe-compute-{self.name}"),
        ]

    @property
    def running(self) -> bool:
        """Whether both threads are alive."""
        return all(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        """Start serving; the first answers follow at once."""
        self._warm_up()
        for thread in self._threads:
            thread.start()
        try:
            self._join_mesh()
        except BaseException:
            self.stop()
            raise

    def _join_mesh(self) -> None:
        self.transport.watch(lambda peer, alive: self._inbox.put(lambda: self._happen(PeerUp(peer) if alive else PeerDown(peer))))
        self.transport.serve(Service.EXPERT, self._expert_arrived)
        self.transport.serve(Service.INFER, lambda data, respond: self._arrived(data, respond, self._read_infer))
        self.transport.serve(Service.STATUS, lambda data, respond: self._arrived(data, respond, self._read_status))
        self.transport.announce()

    def stop(self) -> None:
        """Refuse what is in progress, leave the mesh, end both threads. A second call does nothing."""
        self._inbox.put(None)
        self._work.put(None)
        for thread in self._threads:
            if thread.ident is not None:  # was started
                thread.join()
        self.transport.close()

    def status(self) -> StatusReply:
        """Return whom this node sees and what it has done."""
        return replace(self._counts, peers=tuple(sorted(self._state.up)), experts_served=self._rows_served)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    # On the transport's threads: only hand on

    def _arrived(self, data: bytes, respond: Respond, read: Callable[[bytes, Respond, float], None]) -> None:
        if not self._arrivals.enter(len(data)):
            respond(encode(refusal(RefusalCode.BUSY, f"{self.name} has too many requests waiting to be read")))
            return
        arrived_s = time.monotonic()

        def take() -> None:
            self._arrivals.leave(len(data))
            try:
                read(data, respond, arrived_s)
            except MessageError as error:
                respond(encode(refusal(RefusalCode.BAD_SHAPE, str(error))))

        self._inbox.put(take)

    def _expert_arrived(self, data: bytes, respond: Respond) -> None:
        if not self._expert_jobs.enter(len(data)):
            respond(encode(refusal(RefusalCode.BUSY, f"{self.name} has too many expert requests waiting")))
            return
        arrived_s = time.monotonic()

        def work() -> None:
            self._expert_jobs.leave(len(data))
            respond(self._serve_expert(data, arrived_s))

        self._work.put(work)

    # On the event thread

    def _run_events(self) -> None:
        try:
            while True:
                take = self._next()
                if take is None:
                    return
                take()
        finally:  # also when a bug ended this thread: nobody is left waiting
            for number in list(self._jobs):
                self._respond(number, refusal(RefusalCode.FAILED, f"{self.name} is stopping", request=number))

    def _next(self) -> Callable[[], None] | None:
        """Wait for what happens next: a message in the queue, or a timer."""
        while True:
            if not self._timers:
                return self._inbox.get()
            left_s = self._timers[0][0] - time.monotonic()
            if left_s <= 0:
                number = heapq.heappop(self._timers)[1]
                return lambda: self._happen(DeadlinePassed(number))
            try:
                return self._inbox.get(timeout=left_s)
            except Empty:
                continue

    def _happen(self, event: Event) -> None:
        self._state, effects = step(self._state, event)
        for effect in effects:
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case SetTimer():
                self._set_timer(effect)
            case ComputeRouting():
                images = self._jobs[effect.request].images
                self._submit(effect.request, lambda: self._route(effect, images))
            case ComputeExpert():
                self._submit(
                    effect.request,
                    lambda: LocalAnswered(request=effect.request, logits=self._compute.expert(effect.features)),
                )
            case SendExpertRequest():
                self._send(effect)
            case Answer():
                self._answer(effect)
            case Refuse():
                self._counts = replace(self._counts, refused=self._counts.refused + 1)
                self._respond(effect.request, refusal(effect.code, effect.reason, request=effect.request))

    def _read_infer(self, data: bytes, respond: Respond, arrived_s: float) -> None:
        message = decode_as(data, InferRequest)
        if not isinstance(message, InferRequest):
            raise MessageError("InferRequest wanted, Refusal came")
        if tuple(message.images.shape[1:]) != self.card.image_shape:
            raise MessageError(f"images of {self.card.image_shape} wanted, {tuple(message.images.shape[1:])} came")
        if len(message.images) > self._max_batch:
            raise MessageError(f"at most {self._max_batch} images at once, {len(message.images)} came")
        number = next(self._numbers)
        self._jobs[number] = _Job(respond=respond, images=message.images, arrived_s=arrived_s)
        due_s = arrived_s + message.deadline_s - min(ANSWER_MARGIN_S, message.deadline_s / 10)
        self._happen(InferArrived(request=number, num_rows=len(message.images), deadline_s=due_s, k=message.k))

    def _read_status(self, data: bytes, respond: Respond, _: float) -> None:
        decode_as(data, StatusRequest)
        respond(encode(self.status()))

    def _set_timer(self, effect: SetTimer) -> None:
        heapq.heappush(self._timers, (effect.at_s, effect.request))
        if len(self._timers) > 64 + 2 * len(self._jobs):  # timers of answered requests: forget them now and then
            self._timers = [timer for timer in self._timers if timer[1] in self._jobs]
            heapq.heapify(self._timers)

    def _send(self, effect: SendExpertRequest) -> None:
        job = self._jobs[effect.request]
        left_s = max(0.0, effect.deadline_s - time.monotonic())
        data = encode(ExpertRequest(request=effect.request, origin=self.name, features=effect.features, deadline_s=left_s))
        job.bytes_sent += len(data)
        self.transport.ask(
            effect.peer,
            Service.EXPERT,
            data,
            timeout_s=left_s,
            on_reply=lambda reply: self._inbox.put(lambda: self._replied(effect.request, effect.peer, reply, len(data))),
        )

    def _replied(self, number: int, peer: str, reply: bytes | Silence, sent: int) -> None:
        job = self._jobs.get(number)
        if job is None:
            return
        if isinstance(reply, Silence):
            job.bytes_sent -= sent if reply is Silence.FULL else 0  # never left
            self._happen(PeerGone(request=number, peer=peer))
            return
        job.bytes_received += len(reply)
        try:
            message = decode_as(reply, ExpertReply)
        except MessageError:  # a peer that talks nonsense counts as one that refuses
            message = refusal(RefusalCode.FAILED, "its reply could not be read")
        if isinstance(message, ExpertReply) and message.request == number:
            self._happen(PeerAnswered(request=number, peer=peer, logits=message.logits))
        else:
            self._happen(PeerRefused(request=number, peer=peer))

    def _answer(self, effect: Answer) -> None:
        job = self._jobs[effect.request]
        self._counts = replace(self._counts, answered=self._counts.answered + 1, degraded=self._counts.degraded + int(effect.degraded))
        reply = InferReply(
            probabilities=effect.probabilities,
            labels=effect.probabilities.argmax(dim=1),
            experts=effect.experts,
            weights=effect.weights,
            bytes_sent=job.bytes_sent,
            bytes_received=job.bytes_received,
            seconds=time.monotonic() - job.arrived_s,
        )
        self._respond(effect.request, reply)

    def _respond(self, number: int, message: Message) -> None:
        self._jobs.pop(number).respond(encode(message))

    # On the compute thread

    def _submit(self, number: int, compute: Callable[[], Event]) -> None:
        def work() -> None:
            if number not in self._jobs:  # answered meanwhile: at its deadline
                return
            try:
                event = compute()
            except Exception as error:  # noqa: BLE001  # whatever torch raises ends one request, not the node
                event = ComputeFailed(request=number, reason=f"{type(error).__name__}: {error}")
            self._inbox.put(lambda: self._happen(event))

        self._work.put(work)

    def _run_work(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _route(self, effect: ComputeRouting, images: Tensor) -> Routed:
        features, routing = self._compute.route(images, mask=effect.mask, k=effect.k)
        return Routed(request=effect.request, features=features, experts=routing.experts, weights=routing.weights)

    def _serve_expert(self, data: bytes, arrived_s: float) -> bytes:
        number = 0
        try:
            message = decode_as(data, ExpertRequest)
            number = message.request
            if not isinstance(message, ExpertRequest):
                raise MessageError("ExpertRequest wanted, Refusal came")
            if message.features.shape[1] != self._compute.feature_dim:
                raise MessageError(f"features of {self._compute.feature_dim} numbers wanted, {message.features.shape[1]} came")
            started_s = time.monotonic()
            if started_s > arrived_s + message.deadline_s:
                return encode(refusal(RefusalCode.LATE, f"{self.name} came to it after its deadline", request=number))
            logits = self._compute.expert(message.features)
            reply = encode(ExpertReply(request=number, logits=logits, compute_s=time.monotonic() - started_s))
        except MessageError as error:
            return encode(refusal(RefusalCode.BAD_SHAPE, str(error), request=number))
        except Exception as error:  # noqa: BLE001  # whatever torch raises fails this request alone
            return encode(refusal(RefusalCode.FAILED, f"{type(error).__name__}: {error}", request=number))
        self._rows_served += len(logits)
        return reply

    def _warm_up(self) -> None:
        """Let torch do once what it does only once, so that the first request is not the slowest."""
        height, width, channels = self.card.image_shape
        images = torch.zeros(1, height, width, channels, dtype=torch.uint8)
        features, _ = self._compute.route(images, mask=[True] * len(self.card.experts), k=1)
        self._compute.expert(features)
