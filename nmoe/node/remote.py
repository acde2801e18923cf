"""Remote experts: the experts of a mesh as a torch module, asked by gate scores, with deadlines, failover and shared messages.

``RemoteExperts`` has the interface of the in-process ``LocalExperts``. Gradients are off unless asked for: then outputs carry an autograd
node whose backward pass asks the same nodes for derivatives with respect to the features. Weights of remote experts are never changed.
"""

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from nmoe.core.errors import MeshError
from nmoe.moe.layer import ExpertOutputs, TopKExperts
from nmoe.node.coalescer import Coalescer
from nmoe.node.dispatcher import Cargo, Dispatcher, Hooks, fill
from nmoe.node.events import Finish, InferArrived, Refuse
from nmoe.node.messages import RefusalCode, TensorFormat
from nmoe.node.plan import Routing
from nmoe.node.protocol import Origin, Rules
from nmoe.node.timers import Timers
from nmoe.node.transport.base import Transport

FORMATS = (TensorFormat.FLOAT32,)


class _Answer(NamedTuple):
    """What a call gets: outputs [rows, k, out], experts [rows, k], weights [rows, k]."""

    outputs: np.ndarray
    experts: np.ndarray
    weights: np.ndarray


@dataclass(slots=True, kw_only=True, eq=False)
class _Call:
    """One caller's samples; ``deliver`` is called once, on any thread."""

    features: np.ndarray
    scores: np.ndarray
    k: int
    due_s: float
    deliver: Callable[[_Answer | Exception], None]


@dataclass(slots=True)
class _Journey:
    """Calls that travel together."""

    calls: list[_Call]


class ExpertClient:
    """A member of a mesh that has no expert of its own and asks those of others. Use as a context manager; it owns its transport.

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
        self._journeys: dict[int, _Journey] = {}
        self._coalescer: Coalescer[_Call] = Coalescer(
            self._launch, lambda call: len(call.features), max_flights=max_flights, max_rows=max_rows, max_waiting=4096
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

    def submit(self, call: _Call) -> None:
        """Send a call off; its ``deliver`` follows."""
        if not self._coalescer.submit(call):
            call.deliver(MeshError("too many calls wait for the experts already"))

    def close(self) -> None:
        """Leave the mesh; calls in progress end with an error."""
        for call in self._coalescer.close():
            call.deliver(MeshError("the client was closed"))
        self.timers.close()
        self.dispatcher.abandon(RefusalCode.FAILED, "the client was closed")
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _launch(self, calls: list[_Call]) -> None:
        number = next(self._numbers)
        first = calls[0]
        alike = [call for call in calls if call.k == first.k]
        if len(alike) < len(calls):  # those that ask for another number of experts travel apart
            others = [call for call in calls if call.k != first.k]
            self._coalescer.borrow()
            self._launch(others)
        features = first.features if len(alike) == 1 else np.concatenate([call.features for call in alike])
        scores = first.scores if len(alike) == 1 else np.concatenate([call.scores for call in alike])
        due_s = min(call.due_s for call in alike)
        self._journeys[number] = _Journey(alike)
        self.dispatcher.begin(InferArrived(number, len(features), due_s, first.k), scores, Cargo(features))

    def _finished(self, finish: Finish, cargo: Cargo) -> None:
        ((number, _),) = finish.requests
        journey = self._journeys.pop(number)
        self._coalescer.landed()
        outputs = fill(finish, cargo, self.out_dim, None)
        start = 0
        for call in journey.calls:
            stop = start + len(call.features)
            call.deliver(_answer(outputs[start:stop], finish.experts[start:stop], finish.weights[start:stop]))
            start = stop

    def _refused(self, effect: Refuse) -> None:
        journey = self._journeys.pop(effect.request, None)
        if journey is None:
            return
        self._coalescer.landed()
        for call in journey.calls:
            call.deliver(MeshError(f"the experts could not be asked ({effect.code.value}): {effect.reason}"))


def _answer(outputs: np.ndarray, experts: np.ndarray, weights: np.ndarray) -> _Answer | Exception:
    nobody = int((experts < 0).all(axis=1).sum())
    if nobody:
        return MeshError(f"no expert answered in time for {nobody} of {len(experts)} samples")
    return _Answer(outputs, experts, weights)


class RemoteExperts(TopKExperts):
    """The experts of a mesh, with the interface of ``LocalExperts``.

    Args:
        client: asks them; not owned.
        deadline_s: what a call may take.
        gradients: let outputs carry gradients back to the features; the nodes must have been started with gradients allowed.
    """

    def __init__(self, client: ExpertClient, *, deadline_s: float = 1.0, gradients: bool = False) -> None:
        super().__init__()
        self.client = client
        self.deadline_s = deadline_s
        self.gradients = gradients

    def forward(self, features: Float[Tensor, "batch dim"], scores: Float[Tensor, "batch expert"], *, k: int) -> ExpertOutputs:
        """Ask the k best experts of each sample; see ``TopKExperts``.

        Weights are differentiable with respect to the scores.

        Raises:
            MeshError: when some sample got no answer in time.
        """
        done = threading.Lock()
        done.acquire()
        said: list[_Answer | Exception] = []

        def deliver(answer: _Answer | Exception) -> None:
            said.append(answer)
            done.release()

        self.client.submit(self._call(features, scores, k, deliver))
        done.acquire()
        return self._outputs(said[0], features, scores)

    async def ask(self, features: Float[Tensor, "batch dim"], scores: Float[Tensor, "batch expert"], *, k: int) -> ExpertOutputs:
        """Do as ``forward`` without blocking the event loop.

        Raises:
            MeshError: when some sample got no answer in time.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Answer | Exception] = loop.create_future()

        def deliver(answer: _Answer | Exception) -> None:
            loop.call_soon_threadsafe(_settle, future, answer)

        self.client.submit(self._call(features, scores, k, deliver))
        return self._outputs(await future, features, scores)

    def _call(self, features: Tensor, scores: Tensor, k: int, deliver: Callable[[_Answer | Exception], None]) -> _Call:
        if features.ndim != 2 or scores.ndim != 2 or len(features) != len(scores) or not len(features):
            raise ValueError(
                f"features [batch, dim] and scores [batch, expert] wanted, got {list(features.shape)} and {list(scores.shape)}"
            )
        return _Call(
            features=features.detach().contiguous().numpy(),
            scores=scores.detach().numpy(),
            k=k,
            due_s=time.monotonic() + self.deadline_s,
            deliver=deliver,
        )

    def _outputs(self, said: _Answer | Exception, features: Tensor, scores: Tensor) -> ExpertOutputs:
        if isinstance(said, Exception):
            raise said
        outputs, experts, weights = (torch.from_numpy(part) for part in said)
        if scores.requires_grad and torch.is_grad_enabled():
            chosen = scores.gather(1, experts.clamp(min=0)).masked_fill(experts < 0, -torch.inf)
            weights = chosen.softmax(dim=1)
        if self.gradients and features.requires_grad and torch.is_grad_enabled():
            outputs = _Remote.apply(features, outputs, experts, self)  # type: ignore[no-untyped-call]  # torch's
        return ExpertOutputs(outputs=outputs, experts=experts, weights=weights)


def _settle(future: "asyncio.Future[Any]", answer: object) -> None:
    if not future.done():  # the caller may have given up
        future.set_result(answer)


class _Remote(torch.autograd.Function):
    """Passes outputs through, and gradients back through the nodes that computed them."""

    @staticmethod
    def forward(context: Any, features: Tensor, outputs: Tensor, experts: Tensor, layer: RemoteExperts) -> Tensor:
        context.save_for_backward(features, experts)
        context.layer = layer
        return outputs.clone()

    @staticmethod
    def backward(context: Any, gradients: Tensor) -> tuple[Tensor, None, None, None]:
        features, experts = context.saved_tensors
        from nmoe.node.gradients import ask_gradients

        derivative = ask_gradients(
            context.layer.client.dispatcher, features.detach().numpy(), experts.numpy(), gradients.numpy(), context.layer.deadline_s
        )
        return torch.from_numpy(derivative), None, None, None


class RemoteMixture(nn.Module):
    """A gate here and its experts in a mesh: a mixture-of-experts layer, [batch, dim] to [batch, out].

    Args:
        gate: scores [batch, expert] of features.
        experts: asked by these scores.
        k: experts per sample.
    """

    def __init__(self, *, gate: nn.Module, experts: RemoteExperts, k: int) -> None:
        super().__init__()
        self.gate = gate
        self.experts = experts
        self.k = k

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch out"]:
        """Return the mixture's output."""
        return self.experts.forward(features, self.gate(features), k=self.k).mixed()

    async def ask(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch out"]:
        """Do as ``forward`` without blocking the event loop."""
        return (await self.experts.ask(features, self.gate(features), k=self.k)).mixed()
