"""Runner: one serving node. Puts together what answers (``dispatcher.py``), what computes (``workers.py``) and what serves peers.

A request is queued for a worker, which extracts and scores together all that wait, and sends the messages the protocol decides on; the
last reply to come, on the transport's thread, completes the answer. Nothing here waits: what finds no room is refused at once.
"""

import asyncio
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from jaxtyping import Shaped
from torch import Tensor

from nmoe.core.bundle import Bundle, BundleCard, read_bundle
from nmoe.core.errors import BundleError, MessageError
from nmoe.moe.layer import combine
from nmoe.node.answers import Answered, Answers, Asked, Done, RequestLog
from nmoe.node.bank import NodeCompute
from nmoe.node.batcher import Batch, Batcher, Job, Line
from nmoe.node.dispatcher import Cargo, Dispatcher, Hooks, all_finite, fill
from nmoe.node.events import ComputeFailed, Finish, InferArrived, OwnAnswered, Refuse
from nmoe.node.expert_server import ExpertServer
from nmoe.node.messages import (
    MAX_MESSAGE_BYTES,
    MAX_ROWS,
    CardReply,
    CardRequest,
    InferReply,
    InferRequest,
    Message,
    Refusal,
    RefusalCode,
    StatusReply,
    StatusRequest,
    TensorFormat,
    decode_as,
    encode,
    refusal,
)
from nmoe.node.newcomers import Newcomers
from nmoe.node.portrait import ask_status, portrait
from nmoe.node.protocol import Origin, Rules
from nmoe.node.service import NodeService
from nmoe.node.timers import Timers
from nmoe.node.transport.base import Respond, Service, Transport
from nmoe.node.view import NodeView
from nmoe.node.workers import Workers

ANSWER_MARGIN_S = 0.05  # an answer leaves this much before its deadline, or a tenth of the deadline if that is less; our choice
DRAIN_S, SAY_S = 5.0, 0.3  # to finish what is in progress; for a card or a farewell to be heard everywhere
FROZEN_S = 1.0  # a process that did not run for longer has lost its links


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """How a node serves.

    Attributes:
        mesh: name of the mesh, to be shown.
        node: own name; None for the bundle's. Under another name a node is a replica: it serves the bundle's expert beside the first.
        workers: threads that compute.
        cpus: cores they may run on; None for any.
        max_requests: infer requests in progress.
        max_rows: rows that may wait for the workers, in each of their two lines.
        max_linger_s: how long a free worker may wait for company.
        formats: tensor formats that may leave this node, most precise first.
        gradients: whether peers may ask for derivatives of the expert.
        log: where a line per request is written; None for nowhere.
        seed: of the choice between replicas.
    """

    mesh: str = ""
    node: str | None = None
    workers: int = 1
    cpus: tuple[int, ...] | None = None
    max_requests: int = 64
    max_rows: int = 8192
    max_linger_s: float = 0.0005
    formats: tuple[TensorFormat, ...] = (TensorFormat.FLOAT32, TensorFormat.FLOAT16, TensorFormat.INT8)
    gradients: bool = False
    log: Path | None = None
    seed: int = 0


class NodeRunner(NodeService):
    """One serving node. Use as a context manager, or ``start`` and ``stop``; it owns its transport.

    Args:
        bundle: what to serve.
        transport: the node's door to its mesh, not yet announced.
        folder: where the bundle lies, for ``reload``; None for nowhere.
        options: how to serve.

    Raises:
        BundleError: when the bundle's parts do not fit its card.
        OSError: when the log cannot be opened.
    """

    def __init__(self, bundle: Bundle, transport: Transport, *, folder: Path | None = None, options: NodeOptions | None = None) -> None:
        self.options = options = NodeOptions() if options is None else options
        self.expert = bundle.card.node
        self.name = self.expert if options.node is None else options.node
        self.transport = transport
        self.http = ""
        self._folder = folder
        self._bundle = bundle
        self._compute = NodeCompute(bundle)
        self._log = None if options.log is None else RequestLog(options.log)
        self.answers = Answers(self._log)
        self.started_s = time.monotonic()
        self._ready = False
        self.draining = False
        self.malformed: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        card, compute = bundle.card, self._compute
        bytes_per_row = max(4 * compute.feature_dim, 4 * card.num_classes + 8 + 12 * len(card.experts))
        self._max_batch = min(MAX_ROWS, (MAX_MESSAGE_BYTES - 4096) // bytes_per_row)  # so that every message about it can be sent
        batcher: Batcher[Any] = Batcher(workers=options.workers, max_rows=options.max_rows, max_linger_s=options.max_linger_s)
        self._workers = Workers(batcher, self._run_batch, name=f"nmoe-worker-{self.name}", cpus=options.cpus)
        self._timers = Timers(f"nmoe-timers-{self.name}", on_gap=self._was_frozen)
        rules = Rules(
            name=self.name,
            experts=card.experts,
            own=card.experts.index(self.expert) if self.expert in card.experts else None,
            k=card.k,
            in_dim=compute.feature_dim,
            out_dim=card.num_classes,
            max_requests=options.max_requests,
            max_rows=2 * options.max_rows,
            formats=options.formats,
        )
        self.newcomers = Newcomers(bundle, compute, name=self.name, ask=transport.ask)
        self.dispatcher = Dispatcher(
            Origin(rules, random.Random(options.seed)),
            transport,
            self._timers,
            Hooks(queue=self._queue, run_own=self._run_own, finished=self._finished, refused=self._refused, examine=self._examine),
        )
        self.server = ExpertServer(
            name=self.name,
            bank=compute.bank,
            transport=transport,
            submit=self._workers.submit,
            queue_rows=self._workers.queue_rows,
            workers=options.workers,
            gradients=options.gradients,
            malformed=self._count_malformed,
        )

    # Life

    @property
    def card(self) -> BundleCard:
        """See ``NodeService``."""
        return self._bundle.card

    @property
    def ready(self) -> bool:
        """See ``NodeService``."""
        return self._ready and not self.draining

    @property
    def running(self) -> bool:
        """See ``NodeService``."""
        return all(thread.is_alive() for thread in (*self._workers.threads, self._timers.thread))

    def start(self) -> None:
        """Start serving; the first answers follow at once."""
        self._compute.warm_up()
        self._workers.start()
        self._timers.start()
        try:
            self.transport.watch_refusals(self.dispatcher.note_refusal)
            self.dispatcher.watch()
            self.server.serve()
            self.transport.serve(Service.CARD, self._asked_card)
            self.transport.serve(Service.STATUS, self._asked_status)
            self.transport.serve(Service.INFER, self._asked_infer)
            self.transport.announce()
        except BaseException:
            self.stop()
            raise
        self._ready = True

    def drain(self, timeout_s: float = DRAIN_S, *, give_up: Callable[[], bool] = lambda: False) -> None:
        """Leave without a failed request: say so, finish what is in progress, withdraw. Blocks.

        Args:
            timeout_s: for at most so long.
            give_up: says when to leave at once after all.
        """
        self.draining = self.server.draining = True
        self.transport.announce()  # the new card says it
        until_s = time.monotonic() + timeout_s
        self._wait(lambda: False, min(timeout_s, SAY_S), give_up)
        self._wait(lambda: not self.server.in_progress and not len(self.answers), until_s - time.monotonic(), give_up)
        self.transport.withdraw()
        self._wait(lambda: False, min(SAY_S, until_s - time.monotonic()), give_up)  # what was on its way when the others heard
        self.server.closed = True

    def _wait(self, done: Callable[[], bool], timeout_s: float, give_up: Callable[[], bool]) -> None:
        until_s = time.monotonic() + timeout_s
        while not done() and not give_up() and time.monotonic() < until_s:
            time.sleep(0.01)

    def stop(self) -> None:
        """Refuse what is in progress, leave the mesh, end the threads. A second call does nothing."""
        self._ready = False
        self._workers.close()
        self._timers.close()
        self.dispatcher.abandon(RefusalCode.FAILED, f"{self.name} is stopping")
        self.transport.close()
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def reload(self) -> str | None:
        """See ``NodeService``."""
        if self._folder is None:
            return f"{self.name} does not serve from a folder"
        try:
            bundle = read_bundle(self._folder)
            compute = NodeCompute(bundle)
        except BundleError as error:
            return str(error)
        now, before = bundle.card, self._bundle.card
        if now.extractor_fingerprint != before.extractor_fingerprint:
            return "its extractor is another one: start it as a node of its own"
        if (now.node, now.experts, now.num_classes, now.image_shape) != (
            before.node,
            before.experts,
            before.num_classes,
            before.image_shape,
        ):
            return "its name, experts, classes or image shape changed: start it as a node of its own"
        compute.warm_up()
        self.newcomers.replace(bundle, compute)
        self._bundle, self._compute = bundle, compute
        self.server.replace(compute.bank)
        self.transport.announce()
        return None

    def _was_frozen(self, seconds: float) -> None:
        if seconds > FROZEN_S:
            self.dispatcher.note_refusal(self.name, "did not run for a while: rejoined the mesh")
            self.transport.rejoin()

    # Requests

    async def infer(
        self,
        images: Shaped[Tensor, "batch height width channel"],
        *,
        deadline_s: float,
        k: int | None = None,
        identity: str = "",
        trace: str = "",
    ) -> InferReply | Refusal:
        """See ``NodeService``."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[InferReply | Refusal] = loop.create_future()

        def done(said: InferReply | Refusal) -> None:
            loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(said))

        request = InferRequest(images=images, deadline_s=deadline_s, k=k, identity=identity, trace=trace)
        self._take(request, done, time.monotonic())
        return await future

    def _asked_infer(self, data: bytes, respond: Respond) -> None:
        arrived_s = time.monotonic()
        try:
            request = decode_as(data, InferRequest)
        except MessageError as error:
            respond(encode(self._unreadable(error)))
            return
        if isinstance(request, Refusal):
            respond(encode(refusal(RefusalCode.BAD_SHAPE, "InferRequest wanted, Refusal came")))
            return
        self._take(request, lambda said: respond(encode(said)), arrived_s)

    def _take(self, request: InferRequest, done: Done, arrived_s: float) -> None:
        """Take a request in; called on whatever thread brought it."""
        due_s = arrived_s + request.deadline_s - min(ANSWER_MARGIN_S, request.deadline_s / 10)
        asked = Asked(
            images=request.images,
            done=done,
            arrived_s=arrived_s,
            due_s=due_s,
            k=request.k,
            identity=request.identity,
            trace=request.trace,
        )
        if (refused := self._unfit(request)) is not None:
            self.answers.refuse_unread(asked, refused)
            return
        number = next(self._numbers)
        self.answers.open(number, asked)
        self.dispatcher.happen(InferArrived(number, len(request.images), due_s, request.k))

    def _unfit(self, request: InferRequest) -> Refusal | None:
        shape = tuple(request.images.shape[1:])
        if not self._ready:
            return refusal(RefusalCode.LEAVING, f"{self.name} is not serving")
        if shape != self.card.image_shape:
            return refusal(RefusalCode.BAD_SHAPE, f"images of {self.card.image_shape} wanted, {shape} came")
        if len(request.images) > self._max_batch:
            return refusal(RefusalCode.BAD_SHAPE, f"at most {self._max_batch} images at once, {len(request.images)} came")
        return None

    def _unreadable(self, error: MessageError) -> Refusal:
        self._count_malformed(error.fault)
        return refusal(RefusalCode.BAD_SHAPE, str(error))

    def _count_malformed(self, fault: str) -> None:
        self.malformed[fault] += 1

    def _queue(self, number: int) -> None:
        asked = self.answers.get(number)
        if asked is None:
            return
        left_s = max(1e-3, asked.due_s - time.monotonic())
        key = (asked.k, asked.images.dtype, math.frexp(left_s)[1], asked.trace)  # deadlines within a factor of two fly together
        job = Job(Line.INFER, key, len(asked.images), asked.images.numel(), asked.due_s, number)
        if (refused := self._workers.submit(job)) is not None:
            self.dispatcher.happen(ComputeFailed((number,), f"{self.name}: {refused}", RefusalCode.BUSY))

    # On a worker

    def _run_batch(self, batch: Batch[Any]) -> None:
        if batch.line is Line.EXPERT:
            self.server.compute(batch)
        elif batch.jobs:
            self._score([job.item for job in batch.jobs])

    def _score(self, numbers: Sequence[int]) -> None:
        """Extract and score requests together; each alone when that fails."""
        found = [(number, asked) for number in numbers if (asked := self.answers.get(number)) is not None]
        if not found:
            return
        try:
            images = found[0][1].images if len(found) == 1 else torch.cat([asked.images for _, asked in found])
            features = self._compute.features(images)
            if not all_finite(features.numpy()):
                raise ValueError("the extractor's features are not finite")
            scores = self.newcomers.scores(features)
        except Exception as error:  # noqa: BLE001  # whatever torch raises ends these requests, not the node
            if len(found) > 1:
                for number, _ in found:
                    self._score([number])
            else:
                self.dispatcher.happen(ComputeFailed((found[0][0],), f"{type(error).__name__}: {error}"))
            return
        starts = itertools.accumulate((len(asked.images) for _, asked in found), initial=0)
        requests = [(number, start) for (number, _), start in zip(found, starts, strict=False)]
        self.dispatcher.scored(requests, scores, Cargo(features.numpy(), trace=found[0][1].trace))

    def _run_own(self, flight: int, cargo: Cargo) -> None:
        try:
            (cargo.own,) = self._compute.bank.compute([(self.expert, cargo.features)])
        except Exception as error:  # noqa: BLE001
            self.dispatcher.own_failed(flight, f"{type(error).__name__}: {error}")
            return
        self.dispatcher.happen(OwnAnswered(flight))

    # Answers

    def _finished(self, finish: Finish, cargo: Cargo) -> None:
        card = self.card
        own = self.dispatcher.origin.rules.own
        logits = fill(finish, cargo, card.num_classes, own)
        probabilities = combine(torch.from_numpy(logits), torch.from_numpy(finish.weights), mix=self._compute.model.mix)
        names = tuple(self.dispatcher.origin.experts)
        experts, weights, labels = torch.from_numpy(finish.experts), torch.from_numpy(finish.weights), probabilities.argmax(dim=1)
        now_s = time.monotonic()
        for number, start in finish.requests:
            asked = self.answers.get(number)
            if asked is None:
                continue
            rows = slice(start, start + len(asked.images))
            share = len(asked.images) / finish.rows
            if asked.identity:
                self.answers.remember(asked.identity, Answered(cargo.features[rows], finish.experts[rows], logits[rows]))
            reply = InferReply(
                probabilities=probabilities[rows],
                labels=labels[rows],
                experts=experts[rows],
                weights=weights[rows],
                names=names,
                degraded=finish.degraded,
                bytes_sent=round(cargo.bytes_sent * share),
                bytes_received=round(cargo.bytes_received * share),
                seconds=now_s - asked.arrived_s,
            )
            self.answers.answer(number, reply)

    def _refused(self, effect: Refuse) -> None:
        self.answers.refuse(effect.request, refusal(effect.code, effect.reason, request=effect.request))

    def feedback(self, identity: str, labels: Sequence[int]) -> str | None:
        """See ``NodeService``."""
        if any(not 0 <= label < self.card.num_classes for label in labels):
            return f"labels must be between 0 and {self.card.num_classes - 1}"
        answered = self.answers.recall(identity)
        if answered is None:
            return f"no recent request has the id {identity!r}, or it was learnt from already"
        if len(labels) != len(answered.features):
            self.answers.remember(identity, answered)
            return f"{len(answered.features)} labels wanted, one per image, {len(labels)} came"
        return self.newcomers.learn(answered, labels)

    # What it says of itself

    @property
    def mesh(self) -> str:
        """Name of the mesh."""
        return self.options.mesh

    @property
    def version(self) -> str:
        """What its expert's weights are called on the wire."""
        return self._compute.version

    @property
    def log_errors(self) -> int:
        """Lines of the log that could not be written."""
        return 0 if self._log is None else self._log.errors

    def queue_rows(self) -> int:
        """Return the rows that wait for its expert."""
        return self._workers.queue_rows()

    def expert_card(self) -> CardReply:
        """Return what peers are told."""
        options = self.options
        return self.newcomers.own_card(
            options.formats, draining=self.draining, gradients=options.gradients, rows_per_s=self._workers.rows_per_s()
        )

    def view(self) -> NodeView:
        """See ``NodeService``."""
        return portrait(self)

    async def mesh_view(self, *, timeout_s: float = 0.5) -> tuple[NodeView, ...]:
        """See ``NodeService``."""
        with self.dispatcher.lock:
            peers = [link.peer for link in self.dispatcher.origin.links.values() if link.up]
        views = await asyncio.gather(*(ask_status(self.transport, peer, timeout_s) for peer in peers))
        return (self.view(), *(view for view in views if view is not None))

    def _asked_card(self, data: bytes, respond: Respond) -> None:
        self._reply(data, respond, CardRequest, self.expert_card)

    def _asked_status(self, data: bytes, respond: Respond) -> None:
        self._reply(data, respond, StatusRequest, lambda: StatusReply(view=self.view()))

    def _reply(self, data: bytes, respond: Respond, wanted: type[CardRequest] | type[StatusRequest], reply: Callable[[], Message]) -> None:
        try:
            decode_as(data, wanted)
        except MessageError as error:
            respond(encode(self._unreadable(error)))
            return
        respond(encode(reply()))

    def _examine(self, peer: str, reply: CardReply, done: Callable[[str | None], None]) -> None:
        if (reason := self.newcomers.unfit(reply)) is not None:
            done(reason)
            return
        self.newcomers.examine(peer, reply, lambda said: done(said) if said else self._admit(reply, done))

    def _admit(self, reply: CardReply, done: Callable[[str | None], None]) -> None:
        """Give experts that the gate does not know their columns, before their node is asked for them."""
        said: str | None = None
        with self.dispatcher.lock:
            for name in reply.card.experts:
                if said is None and self.dispatcher.origin.expert_index(name) is None:
                    said = self.newcomers.add(name, reply)
                    if said is None:
                        self.dispatcher.origin.add_expert(name)
        done(said)
