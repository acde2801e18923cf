"""Expert server: a bank's experts, computed for peers (and for the node itself) in batches.

What arrives is read and checked before it may join a batch, so a bad request fails alone. A request of few rows is one job, and jobs for
any of the bank's experts share a batch; a larger one is one job per expert, so that several workers compute it together.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from nmoe.core.errors import MessageError
from nmoe.node.bank import ExpertBank
from nmoe.node.batcher import Batch, Job, Line
from nmoe.node.messages import (
    MAX_MESSAGE_BYTES,
    ExpertReply,
    ExpertRequest,
    GradientReply,
    GradientRequest,
    Message,
    PingReply,
    PingRequest,
    Refusal,
    RefusalCode,
    decode_as,
    encode,
    refusal,
    reply_format,
)
from nmoe.node.tracing import span_of_request
from nmoe.node.transport.base import Respond, Service, Transport

if TYPE_CHECKING:
    from nmoe.node.trace import Span

SMALL_ROWS = 64  # up to here a request is computed in one piece, unless a worker is free besides
WORTH_ROWS = 16  # from here on it is worth waking another worker
MAX_OLD_BANKS = 2
HEADER_BYTES = 4096  # of a reply's room, for what stands before its numbers


@dataclass(slots=True)
class ExpertWork:
    """Rows for one bank's experts, and who waits for the outputs: a list in the order of ``parts``, or what went wrong."""

    bank: ExpertBank
    parts: list[tuple[str, np.ndarray]]
    done: Callable[[list[np.ndarray] | Exception, float], None]
    arrived_s: float


@dataclass(slots=True)
class Task:
    """Something else for a worker, alone in its batch: ``run`` gets whether its deadline has passed, and must not raise."""

    run: Callable[[bool], None]


@dataclass(slots=True)
class _Call:
    """A peer's request being computed, in one job or several."""

    request: ExpertRequest
    respond: Respond
    arrived_s: float
    missing: int
    outputs: list[np.ndarray | None]
    started_s: float = 0.0
    failed: Exception | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class ExpertServer:
    """The expert's side of a node.

    Args:
        name: of the node.
        bank: the experts.
        transport: where it is asked.
        submit: queues a job for a worker, or says why not; ``compute`` must be called with the batches of ``Line.EXPERT``.
        queue_rows: returns the expert rows that wait for a worker.
        workers: how many compute.
        gradients: whether peers may ask for derivatives.
        malformed: told the fault of every message that could not be read.
    """

    def __init__(
        self,
        *,
        name: str,
        bank: ExpertBank,
        transport: Transport,
        submit: Callable[[Job[ExpertWork | Task]], str | None],
        queue_rows: Callable[[], int],
        workers: int,
        gradients: bool,
        malformed: Callable[[str], None],
    ) -> None:
        self.name = name
        self.bank = bank
        self.gradients = gradients
        self.draining = False  # said in every reply
        self.closed = False  # refuses
        self.rows_served = 0
        self.in_progress = 0
        self._old: list[ExpertBank] = []
        self._transport = transport
        self._submit = submit
        self._queue_rows = queue_rows
        self._workers = workers
        self._malformed = malformed

    def serve(self) -> None:
        """Begin to answer peers."""
        self._transport.serve(Service.EXPERT, self._asked)
        self._transport.serve(Service.PING, self._pinged)
        self._transport.serve(Service.GRADIENT, self._asked_gradient)

    def replace(self, bank: ExpertBank) -> None:
        """Serve another version from now on; requests that name the one before are still answered by it."""
        self._old = [self.bank, *self._old][:MAX_OLD_BANKS]
        self.bank = bank

    def compute(self, batch: Batch[ExpertWork | Task]) -> None:
        """Compute a batch; called by a worker."""
        works = []
        for job, late in [*((job, True) for job in batch.late), *((job, False) for job in batch.jobs)]:
            if isinstance(job.item, Task):
                job.item.run(late)
            elif late:
                job.item.done(_LateError(), job.arrived_s)
            else:
                works.append(job.item)
        if works:
            self._compute(works)

    # On the transport's threads

    def _asked(self, data: bytes, respond: Respond) -> None:
        arrived_s, number = time.monotonic(), 0
        try:
            request = self._read(data, ExpertRequest)
            number = request.request
            bank = self._find(request)
            _check_room(request.num_pairs, bank.out_dim)
        except MessageError as error:
            respond(encode(self._unreadable(error, number)))
            return
        if self.closed:
            respond(encode(refusal(RefusalCode.LEAVING, f"{self.name} is leaving", request=number)))
            return
        if not request.deadline_s:
            respond(encode(_refused(self.name, _LateError(), number)))
            return
        parts = [(rows.expert, _gather(request.features, rows.rows)) for rows in request.experts]
        if (span := span_of_request(request.trace, "compute", request.num_pairs)) is not None:
            respond = _ending(span, respond)
        pieces = self._pieces([len(rows) for _, rows in parts])
        self.in_progress += 1
        call = _Call(request, respond, arrived_s, len(pieces), [None] * len(parts))
        for place, piece in enumerate(pieces):
            done = self._piece_done(call, piece)
            work = ExpertWork(bank, [parts[index] for index in piece], done, arrived_s)
            rows = sum(len(part) for _, part in work.parts)
            key = (id(bank), parts[piece[0]][0] if len(piece) == 1 < len(pieces) else None)
            job: Job[ExpertWork | Task] = Job(Line.EXPERT, key, rows, len(data), arrived_s + request.deadline_s, work, admitted=place > 0)
            refused = self._submit(job)
            if refused is not None:
                said = refusal(RefusalCode.BUSY, f"{self.name}: {refused}", request=number, queue_rows=self._queue_rows())
                self.in_progress -= 1
                respond(encode(said))
                return

    def _pieces(self, counts: Sequence[int]) -> list[list[int]]:
        """Divide a request's experts, given by their rows, among jobs: one while it is small or others wait, else several."""
        everything = list(range(len(counts)))
        total = sum(counts)
        if len(counts) == 1 or self._workers == 1 or total < WORTH_ROWS:
            return [everything]
        if total > SMALL_ROWS:
            return [[number] for number in everything]
        if self._queue_rows():
            return [everything]
        pieces: list[list[int]] = [[] for _ in range(min(self._workers, len(counts)))]
        loads = [0] * len(pieces)
        for number in sorted(everything, key=counts.__getitem__, reverse=True):  # the longest first, to whoever has least
            least = loads.index(min(loads))
            pieces[least].append(number)
            loads[least] += counts[number]
        return pieces

    def _read(self, data: bytes, kind: type[ExpertRequest]) -> ExpertRequest:
        request = decode_as(data, kind)
        if isinstance(request, Refusal):
            raise MessageError(f"{kind.__name__} wanted, Refusal came", fault="kind")
        return request

    def _find(self, request: ExpertRequest, *, exact: bool = False) -> ExpertBank:
        """Return the bank a request is for; the one served now if the version it names is not known, unless it must be ``exact``."""
        version = request.experts[0].version
        banks = (self.bank, *self._old)
        bank = self.bank if not version else next((bank for bank in banks if bank.version == version), self.bank)
        if exact and version and bank.version != version:
            raise MessageError(f"{self.name} serves version {bank.version}, {version} was asked for", fault="name")
        for rows in request.experts:
            if rows.expert not in bank.experts:
                raise MessageError(f"{self.name} serves {', '.join(bank.experts)}, {rows.expert} was asked for", fault="name")
        if request.features.shape[1] != bank.in_dim:
            raise MessageError(f"features of {bank.in_dim} numbers wanted, {request.features.shape[1]} came", fault="shape")
        return bank

    def _unreadable(self, error: MessageError, request: int = 0) -> Refusal:
        self._malformed(error.fault)
        return refusal(RefusalCode.BAD_SHAPE, str(error), request=request)

    def _pinged(self, data: bytes, respond: Respond) -> None:
        try:
            decode_as(data, PingRequest)
        except MessageError as error:
            respond(encode(self._unreadable(error)))
            return
        respond(encode(PingReply(queue_rows=self._queue_rows())))

    def _asked_gradient(self, data: bytes, respond: Respond) -> None:
        arrived_s = time.monotonic()
        if not self.gradients:
            respond(encode(refusal(RefusalCode.FORBIDDEN, f"{self.name} gives no gradients: it was started without them")))
            return
        try:
            request = decode_as(data, GradientRequest)
            if isinstance(request, Refusal):
                raise MessageError("GradientRequest wanted, Refusal came", fault="kind")
            bank = self._find(request.forward, exact=True)
            _check_room(len(request.forward.features), bank.in_dim)
            if request.gradients.shape[1] != bank.out_dim:
                raise MessageError(f"gradients of {bank.out_dim} numbers wanted, {request.gradients.shape[1]} came", fault="shape")
        except MessageError as error:
            respond(encode(self._unreadable(error)))
            return

        number = request.forward.request

        def run(late: bool) -> None:
            try:
                if late:
                    raise _LateError
                derivative = _gradients(bank, request)
            except Exception as error:  # noqa: BLE001  # a served module may raise anything; its words are the peer's answer
                respond(encode(_refused(self.name, error, number)))
                return
            respond(_encoded(self.name, GradientReply(request=number, gradients=derivative), number))

        job: Job[ExpertWork | Task] = Job(
            Line.EXPERT, run, len(request.gradients), len(data), arrived_s + request.forward.deadline_s, Task(run)
        )
        if (refused := self._submit(job)) is not None:
            respond(encode(refusal(RefusalCode.BUSY, f"{self.name}: {refused}", request=number)))

    # On a worker

    def _compute(self, works: Sequence[ExpertWork]) -> None:
        began_s = time.monotonic()
        bank = works[0].bank
        try:
            outputs = bank.compute(_merged(works))
        except Exception as error:  # noqa: BLE001  # a served module may raise anything; its words are the answer of whom it concerns
            if len(works) == 1:
                works[0].done(error, began_s)
                return
            for work in works:  # each alone: the innocent ones are answered
                self._compute([work])
            return
        self.rows_served += sum(len(rows) for rows in outputs)
        if len(works) == 1:
            works[0].done(outputs, began_s)
            return
        names = list(dict.fromkeys(name for work in works for name, _ in work.parts))
        places = dict.fromkeys(names, 0)
        for work in works:
            mine = []
            for name, rows in work.parts:
                start = places[name]
                places[name] = start + len(rows)
                mine.append(outputs[names.index(name)][start : places[name]])
            work.done(mine, began_s)

    def _piece_done(self, call: _Call, piece: Sequence[int]) -> Callable[[list[np.ndarray] | Exception, float], None]:
        def done(outputs: list[np.ndarray] | Exception, began_s: float) -> None:
            with call.lock:
                call.started_s = call.started_s or began_s
                if isinstance(outputs, Exception):
                    call.failed = outputs
                else:
                    for index, rows in zip(piece, outputs, strict=True):
                        call.outputs[index] = rows
                call.missing -= 1
                if call.missing:
                    return
            self.in_progress -= 1
            self._answer(call)

        return done

    def _answer(self, call: _Call) -> None:
        number = call.request.request
        if call.failed is not None:
            call.respond(encode(_refused(self.name, call.failed, number)))
            return
        outputs = [rows for rows in call.outputs if rows is not None]
        now_s = time.monotonic()
        reply = ExpertReply(
            request=number,
            format=reply_format(call.request.format),
            outputs=outputs[0] if len(outputs) == 1 else np.concatenate(outputs),
            wait_s=max(0.0, call.started_s - call.arrived_s),
            compute_s=max(0.0, now_s - call.started_s),
            queue_rows=self._queue_rows(),
            draining=self.draining,
        )
        call.respond(_encoded(self.name, reply, number))


class _LateError(Exception):
    """Its deadline passed while it waited."""


def _check_room(rows: int, width: int) -> None:
    """Check that a reply of so many float32 numbers can be sent: a lean format's request may be small where its reply is not."""
    if 4 * rows * width > MAX_MESSAGE_BYTES - HEADER_BYTES:
        raise MessageError(f"a reply of {rows} x {width} numbers does not fit into a message", fault="shape")


def _encoded(name: str, reply: Message, number: int) -> bytes:
    """Return a reply as it is sent; a refusal where it cannot be."""
    try:
        return encode(reply)
    except (ValueError, TypeError) as error:  # too large, or not of the shape or type that a module promised
        return encode(_refused(name, error, number))


def _ending(span: "Span", respond: Respond) -> Respond:
    """Return what ends a span when the request is answered."""

    def answer(data: bytes) -> None:
        span.end()
        respond(data)

    return answer


def _gather(features: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    return features if rows is None else features[rows]


def _merged(works: Sequence[ExpertWork]) -> list[tuple[str, np.ndarray]]:
    """Return every expert's rows over all works, in order."""
    if len(works) == 1:
        return works[0].parts
    rows: dict[str, list[np.ndarray]] = {}
    for work in works:
        for name, part in work.parts:
            rows.setdefault(name, []).append(part)
    return [(name, parts[0] if len(parts) == 1 else np.concatenate(parts)) for name, parts in rows.items()]


def _gradients(bank: ExpertBank, request: GradientRequest) -> np.ndarray:
    """Return the derivative with respect to every feature row: the sum over the experts it went to."""
    forward = request.forward
    total = np.zeros_like(forward.features)
    start = 0
    for part in forward.experts:
        rows = np.arange(len(forward.features)) if part.rows is None else part.rows
        stop = start + len(rows)
        total[rows] += bank.gradient(part.expert, forward.features[rows], request.gradients[start:stop])
        start = stop
    return total


def _refused(name: str, error: Exception, number: int) -> Refusal:
    if isinstance(error, _LateError):
        return refusal(RefusalCode.LATE, f"{name} came to it after its deadline", request=number)
    return refusal(RefusalCode.FAILED, f"{type(error).__name__}: {error}", request=number)
