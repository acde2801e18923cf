"""Runner: one serving node. Puts together what answers (``desk.py``), what computes (``workers.py``) and what serves peers."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jaxtyping import Shaped
from torch import Tensor

from nmoe.core.bundle import Bundle, BundleCard, read_bundle
from nmoe.core.errors import BundleError, MessageError
from nmoe.node.answers import Answers, RequestLog
from nmoe.node.bank import NodeCompute
from nmoe.node.batcher import Batch, Batcher, Line
from nmoe.node.desk import Desk
from nmoe.node.expert_server import ExpertServer
from nmoe.node.messages import (
    CardReply,
    CardRequest,
    InferReply,
    InferRequest,
    Message,
    Refusal,
    RefusalCode,
    StatusReply,
    StatusRequest,
    decode_as,
    encode,
    refusal,
)
from nmoe.node.newcomers import Newcomers
from nmoe.node.options import NodeOptions
from nmoe.node.portrait import ask_status, portrait
from nmoe.node.service import Learned, NodeService
from nmoe.node.timers import Timers
from nmoe.node.tracing import span_of_request
from nmoe.node.transport.base import Respond, Service, Transport
from nmoe.node.view import NodeView
from nmoe.node.workers import Workers

DRAIN_S, SAY_S = 5.0, 0.3  # to finish what is in progress; for a card or a farewell to be heard everywhere
FROZEN_S = 0.7  # a process that did not run for longer may have lost its links: the lease is 1 s, and a sign of life may be 0.25 s old


class NodeRunner(NodeService):
    """One serving node. Use as a context manager, or ``start`` and ``stop``; it owns its transport.

    Args:
        bundle: what to serve.
        transport: the node's door to its mesh, not yet announced.
        folder: where the bundle lies, for ``reload``; None for nowhere.
        options: how to serve.

    Raises:
        BundleError: when the bundle's parts do not fit its card.
        BadFile: when the options ask for a wireless report and there is none.
        OSError: when the log cannot be opened.
    """

    def __init__(self, bundle: Bundle, transport: Transport, *, folder: Path | None = None, options: NodeOptions | None = None) -> None:
        self.options = options = NodeOptions() if options is None else options
        self.expert = bundle.card.node
        self.name = bundle.card.node if options.node is None else options.node
        self.transport = transport
        self.http = ""
        self._folder = folder
        self._reloading = threading.Lock()
        self._bundle = bundle
        self._compute = NodeCompute(bundle)
        self._log = None if options.log is None else RequestLog(options.log)
        self.answers = Answers(self._log)
        self.started_s = time.monotonic()
        self.draining = False
        self.malformed: Counter[str] = Counter()
        compute = self._compute
        batcher: Batcher[Any] = Batcher(workers=options.workers, max_rows=options.max_rows, max_linger_s=options.max_linger_s)
        self._workers = Workers(batcher, self._run_batch, name=f"nmoe-worker-{self.name}", cpus=options.cpus)
        self._timers = Timers(f"nmoe-timers-{self.name}", on_gap=self._was_frozen, gap_s=FROZEN_S)
        self.newcomers = Newcomers(bundle, compute, name=self.name, ask=transport.ask, later=self._later)
        self.desk = Desk(
            name=self.name,
            compute=compute,
            newcomers=self.newcomers,
            answers=self.answers,
            transport=transport,
            timers=self._timers,
            submit=self._workers.submit,
            options=options,
        )
        self.dispatcher = self.desk.dispatcher
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
        return self.desk.open and not self.draining and self.transport.joined

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
            self.transport.watch_refusals(self.dispatcher.introductions.note)
            self.dispatcher.watch()
            self.server.serve()
            self.transport.serve(Service.CARD, self._asked_card)
            self.transport.serve(Service.STATUS, self._asked_status)
            self.transport.serve(Service.INFER, self._asked_infer)
            self.desk.open = True
            self.transport.announce()
        except BaseException:
            self.stop()
            raise

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
        self._wait(self._idle, until_s - time.monotonic(), give_up)
        self.transport.withdraw()
        self._wait(lambda: False, min(SAY_S, until_s - time.monotonic()), give_up)  # what was on its way when the others heard
        self.server.closed, self.desk.open = True, False
        self._wait(self._idle, until_s - time.monotonic(), give_up)

    def _idle(self) -> bool:
        return not self.server.in_progress and not len(self.answers)

    def _wait(self, done: Callable[[], bool], timeout_s: float, give_up: Callable[[], bool]) -> None:
        until_s = time.monotonic() + timeout_s
        while not done() and not give_up() and time.monotonic() < until_s:
            time.sleep(0.01)

    def stop(self) -> None:
        """Refuse what is in progress, leave the mesh, end the threads. A second call does nothing."""
        self.desk.open = False
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
        with self._reloading:
            try:
                return self._reload(self._folder)
            except BundleError as error:
                return str(error)
            except (OSError, RuntimeError, ValueError) as error:  # a file, or torch: the old version goes on
                return f"{type(error).__name__}: {error}"

    def _reload(self, folder: Path) -> str | None:
        """Change nothing before everything of the new version is there."""
        bundle = read_bundle(folder)
        compute = NodeCompute(bundle)
        now, before = bundle.card, self._bundle.card
        if now.extractor_fingerprint != before.extractor_fingerprint:
            return "its extractor is another one: start it as a node of its own"
        if _promises(now) != _promises(before):
            return "its name, experts, k, classes or image shape changed: start it as a node of its own"
        compute.warm_up()
        self.newcomers.replace(bundle, compute)
        self._bundle, self._compute = bundle, compute
        self.desk.replace(compute)
        self.server.replace(compute.bank)
        self.transport.announce()
        return None

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._timers.at(time.monotonic() + seconds, call)

    def _was_frozen(self, seconds: float) -> None:
        self.dispatcher.introductions.note(self.name, f"did not run for {seconds:.1f} s: rejoined the mesh")
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
        return await self.desk.infer(InferRequest(images=images, deadline_s=deadline_s, k=k, identity=identity, trace=trace))

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
        span = span_of_request(request.trace, "infer", len(request.images))

        def done(said: InferReply | Refusal) -> None:
            if span is not None:
                span.end(said.reason if isinstance(said, Refusal) else "")
            respond(encode(said))

        self.desk.take(request if span is None else replace(request, trace=span.traceparent), done, arrived_s)

    def _unreadable(self, error: MessageError) -> Refusal:
        self._count_malformed(error.fault)
        return refusal(RefusalCode.BAD_SHAPE, str(error))

    def _count_malformed(self, fault: str) -> None:
        self.malformed[fault] += 1

    # On a worker

    def _run_batch(self, batch: Batch[Any]) -> None:
        if batch.line is Line.EXPERT:
            self.server.compute(batch)
        elif batch.jobs:
            self.desk.score([job.item for job in batch.jobs])

    # Answers

    def feedback(self, identity: str, labels: Sequence[int]) -> tuple[Learned, str]:
        """See ``NodeService``."""
        return self.desk.feedback(identity, labels)

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


def _promises(card: BundleCard) -> tuple[object, ...]:
    """Return what a node promised when it joined; another version of its bundle must keep it."""
    return (card.node, card.experts, card.k, card.num_classes, card.class_names, card.image_shape)
