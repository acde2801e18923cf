"""Expert client: a member of a mesh that has no expert of its own and asks those of others, for many callers at once."""

import asyncio
import itertools
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from nmoe.core.errors import MeshError
from nmoe.node.coalescer import Coalescer
from nmoe.node.dispatcher import Cargo, Dispatcher, Hooks, all_finite, fill
from nmoe.node.events import Finish, InferArrived, Refuse
from nmoe.node.messages import MAX_MESSAGE_BYTES, MAX_ROWS, RefusalCode, TensorFormat
from nmoe.node.plan import Routing
from nmoe.node.protocol import Origin, Rules
from nmoe.node.timers import Timer, Timers
from nmoe.node.transport.base import Transport

FORMATS = (TensorFormat.FLOAT32,)
MAX_CALLS_WAITING = 4096
ROOM_BYTES = 1 << 16  # for headers and row numbers
MAX_K = 8  # experts per sample for which a reply of the largest call surely fits a message


class Answer(NamedTuple):
    """What a call gets: outputs [rows, k, out], experts [rows, k], weights [rows, k]; and the mixture [rows, out] if it brought a gate."""

    outputs: np.ndarray
    experts: np.ndarray
    weights: np.ndarray
    mixed: np.ndarray | None


Deliver = Callable[[Answer | Exception], None]


@dataclass(slots=True, kw_only=True, eq=False)
class Call:
    """One caller's samples, with their scores or the gate that scores them.

    The answer goes once to ``deliver``, on any thread, or into ``future`` on its loop's.
    """

    features: np.ndarray
    scores: np.ndarray | None
    gate: nn.Module | None
    k: int
    due_s: float
    deliver: Deliver = lambda _: None
    future: "asyncio.Future[Answer | Exception] | None" = None
    timer: Timer | None = None


class ExpertClient:
    """Asks the experts of a mesh. Use as a context manager; it owns its transport.

    Args:
        transport: the door to the mesh.
        experts: names of the experts, in the order of the gate's scores.
        in_dim, out_dim: numbers per feature vector and per expert output.
        formats: tensor formats that may be used, most precise first.
        routing: what decides who is asked.
        hedge: whether slow nodes are hedged.
        max_flights, max_rows: messages under way at a time that calls share, and samples in one.
        name: in requests and logs.
        seed: of the choice between replicas.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        experts: Sequence[str],
        in_dim: int,
        out_dim: int,
        formats: Sequence[TensorFormat] = FORMATS,
        routing: Routing = Routing.BOTH,
        hedge: bool = True,
        max_flights: int = 2,
        max_rows: int = 512,
        name: str = "client",
        seed: int = 0,
    ) -> None:
        rules = Rules(
            name=name,
            experts=tuple(experts),
            own=None,
            k=1,
            in_dim=in_dim,
            out_dim=out_dim,
            formats=tuple(formats),
            routing=routing,
            hedge=hedge,
            max_rows=1 << 20,
            max_requests=1024,
        )
        self.out_dim = out_dim
        self.timers = Timers("nmoe-client-timers")
        hooks = Hooks(
            queue=lambda _: None,
            run_own=lambda _flight, _cargo: None,
            finished=self._finished,
            refused=self._refused,
            examine=lambda _peer, _reply, done: done(None),
        )
        self.dispatcher = Dispatcher(Origin(rules, random.Random(seed)), transport, self.timers, hooks)
        self._transport = transport
        self._numbers = itertools.count(1)
        self._journeys: dict[int, list[Call]] = {}  # calls that travel together
        self._gathered: dict[asyncio.AbstractEventLoop, list[Call]] = {}  # what each loop's tasks have asked in this turn
        self._coalescer: Coalescer[Call] = Coalescer(
            self._launch, lambda call: len(call.features), max_flights=max_flights, max_rows=max_rows, max_waiting=MAX_CALLS_WAITING
        )
        self.timers.start()
        self.dispatcher.watch()

    def wait_for(self, experts: Sequence[str] | None = None, *, timeout_s: float = 5.0) -> None:
        """Wait until experts can be asked: these, or all.

        Raises:
            MeshError: when some cannot be in time; the message names them.
        """
        origin = self.dispatcher.origin
        wanted = origin.experts if experts is None else experts
        until_s = time.monotonic() + timeout_s
        while True:
            with self.dispatcher.lock:
                missing = [name for name in wanted if not origin.servers.get(origin.experts.index(name))]
            if not missing:
                return
            if time.monotonic() > until_s:
                raise MeshError(f"nobody serves {', '.join(missing)} after {timeout_s:g} s")
            time.sleep(0.005)

    def check(self, features: Tensor) -> None:
        """Check samples before they share a message with others.

        Raises:
            ValueError: when they have another width or type, are too many for a message, or are not finite.
        """
        in_dim = self.dispatcher.origin.rules.in_dim
        if features.shape[1] != in_dim or features.dtype != torch.float32:
            raise ValueError(f"float32 features of {in_dim} numbers wanted, got {features.dtype} of {features.shape[1]}")
        most = min(MAX_ROWS, (MAX_MESSAGE_BYTES - ROOM_BYTES) // (4 * max(in_dim, self.out_dim * MAX_K)))
        if len(features) > most:
            raise ValueError(f"at most {most} samples a call, got {len(features)}")
        if not all_finite(features.numpy()):
            raise ValueError("features must be finite, got NaN or infinity")

    def call(self, call: Call) -> Answer:
        """Send a call off and wait for its answer.

        Raises:
            MeshError: when it got none.
        """
        done = threading.Lock()
        done.acquire()
        said: list[Answer | Exception] = []

        def deliver(answer: Answer | Exception) -> None:
            said.append(answer)
            done.release()

        call.deliver = deliver
        self._submit([call])
        done.acquire()
        return _raised(said[0])

    async def acall(self, call: Call) -> Answer:
        """Do as ``call`` without blocking the event loop.

        Raises:
            MeshError: when it got none.
        """
        loop = asyncio.get_running_loop()
        call.future = loop.create_future()
        gathered = self._gathered.setdefault(loop, [])
        gathered.append(call)
        if len(gathered) == 1:
            loop.call_soon(self._submit_gathered, loop)  # with all that other tasks ask in this turn of the loop
        return _raised(await call.future)

    def _submit_gathered(self, loop: asyncio.AbstractEventLoop) -> None:
        self._submit(self._gathered.pop(loop))

    def close(self) -> None:
        """Leave the mesh; calls in progress end with an error."""
        _deliver([(call, MeshError("the client was closed")) for call in self._coalescer.close()])
        self.timers.close()
        self.dispatcher.abandon(RefusalCode.FAILED, "the client was closed")
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _submit(self, calls: list[Call]) -> None:
        for call in calls:  # one that waits for a flight is told in time
            call.timer = self.timers.at(call.due_s, partial(self._overdue, call))
        refused = self._coalescer.submit(calls)
        if refused:
            _deliver([(call, MeshError("too many calls wait for the experts already")) for call in refused])

    def _launch(self, calls: list[Call]) -> None:
        """Send calls off together; those that ask differently, or are due much sooner or later, travel apart."""
        now_s = time.monotonic()
        sorts: dict[object, list[Call]] = {}
        for call in calls:
            left_s = max(1e-3, call.due_s - now_s)
            sorts.setdefault((call.k, id(call.gate), math.frexp(left_s)[1]), []).append(call)
        for _ in range(len(sorts) - 1):
            self._coalescer.borrow()
        for alike in sorts.values():
            self._launch_alike(alike)

    def _launch_alike(self, calls: list[Call]) -> None:
        number = next(self._numbers)
        self._journeys[number] = calls
        first = calls[0]
        try:
            features = first.features if len(calls) == 1 else np.concatenate([call.features for call in calls])
            scores = _scores(calls, features)
            due_s = min(call.due_s for call in calls)
            self.dispatcher.begin(InferArrived(number, len(features), due_s, first.k), scores, Cargo(features))
        except Exception as error:  # noqa: BLE001  # a caller's gate may raise anything: raised again where they called, else they wait for ever
            self._land(number, error)

    def _overdue(self, call: Call) -> None:
        if self._coalescer.withdraw(call):
            _deliver([(call, MeshError("no flight to the experts left in time"))])

    def _finished(self, finish: Finish, cargo: Cargo) -> None:
        ((number, _),) = finish.requests
        calls = self._journeys.pop(number, None)
        if calls is None:  # they were told that it could not leave
            return
        self._coalescer.landed()
        self._stop_timers(calls)
        outputs = fill(finish, cargo, self.out_dim, None)
        experts, weights = finish.experts, finish.weights
        mixed = None if calls[0].gate is None else np.matmul(weights[:, None, :], outputs)[:, 0]  # y' = sum_i G(h)_i H_i(h)
        if len(calls) == 1 and not finish.degraded:
            _deliver([(calls[0], Answer(outputs, experts, weights, mixed))])
            return
        said: list[tuple[Call, Answer | Exception]] = []
        start = 0
        for call in calls:
            rows = slice(start, start + len(call.features))
            start = rows.stop
            mine = Answer(outputs[rows], experts[rows], weights[rows], None if mixed is None else mixed[rows])
            said.append((call, _checked(mine) if finish.degraded else mine))
        _deliver(said)

    def _land(self, number: int, error: Exception) -> None:
        calls = self._journeys.pop(number, None)
        if calls is None:
            return
        self._coalescer.landed()
        self._stop_timers(calls)
        _deliver([(call, error) for call in calls])

    def _stop_timers(self, calls: Sequence[Call]) -> None:
        for call in calls:
            if call.timer is not None:
                self.timers.cancel(call.timer)

    def _refused(self, effect: Refuse) -> None:
        self._land(effect.request, MeshError(f"the experts could not be asked ({effect.code.value}): {effect.reason}"))


def _scores(calls: Sequence[Call], features: np.ndarray) -> np.ndarray:
    gate = calls[0].gate
    if gate is not None:
        with torch.inference_mode():
            scores: np.ndarray = gate(torch.from_numpy(features)).numpy()
        return scores
    given = [call.scores for call in calls if call.scores is not None]
    return given[0] if len(given) == 1 else np.concatenate(given)


def _checked(answer: Answer) -> Answer | Exception:
    nobody = int((answer.experts < 0).all(axis=1).sum())
    return MeshError(f"no expert answered in time for {nobody} of {len(answer.experts)} samples") if nobody else answer


def _deliver(said: Sequence[tuple[Call, Answer | Exception]]) -> None:
    """Give calls their answers; those of one event loop together, as waking it costs a system call."""
    of_loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Answer | Exception]]] = {}
    for call, answer in said:
        if call.future is None:
            call.deliver(answer)
        else:
            of_loops.setdefault(call.future.get_loop(), []).append((call.future, answer))
    for loop, pairs in of_loops.items():
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, pairs)


def _raised(said: Answer | Exception) -> Answer:
    if isinstance(said, Exception):
        raise said
    return said


def _settle(pairs: "Sequence[tuple[asyncio.Future[Any], object]]") -> None:
    for future, answer in pairs:
        if not future.done():  # the caller may have given up
            future.set_result(answer)
