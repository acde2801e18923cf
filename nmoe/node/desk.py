"""Desk: where a node's infer requests come in and its answers leave.

A request is queued for a worker, which extracts and scores together all that wait, and sends the messages the protocol decides on; the
last reply to come, on the transport's thread, completes the answer. Nothing here waits: what finds no room is refused at once.
"""

import asyncio
import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from nmoe.core.bundle import BundleCard
from nmoe.moe.layer import combine
from nmoe.node.answers import Answered, Answers, Asked, Done
from nmoe.node.bank import NodeCompute
from nmoe.node.batcher import Job, Line
from nmoe.node.dispatcher import Cargo, Dispatcher, Hooks, all_finite, fill
from nmoe.node.events import ComputeFailed, Finish, InferArrived, OwnAnswered, OwnFailed, Refuse
from nmoe.node.link_quality import LinkQuality
from nmoe.node.messages import MAX_MESSAGE_BYTES, MAX_ROWS, CardReply, InferReply, InferRequest, Refusal, RefusalCode, refusal
from nmoe.node.newcomers import Newcomers
from nmoe.node.options import NodeOptions
from nmoe.node.protocol import Origin, Rules
from nmoe.node.radio import Air
from nmoe.node.service import Learned
from nmoe.node.timers import Timers
from nmoe.node.transport.base import Transport
from nmoe.node.wireless import Wireless

ANSWER_MARGIN_S = 0.05  # an answer leaves this much before its deadline, or a tenth of the deadline if that is less; our choice


class Desk:
    """A node's side towards those who ask it.

    Args:
        name: of the node.
        compute: its bundle's modules.
        newcomers: its gate, and who is let in.
        answers: who waits for what.
        transport: asks peers.
        timers: calls at deadlines.
        submit: queues a job for a worker, or says why not.
        options: how to serve.

    Attributes:
        open: whether it takes requests.
        expert: the name of the node's own expert.
        quality: what is known of its links.

    Raises:
        BadFile: when the options ask for a wireless report and there is none.
    """

    def __init__(
        self,
        *,
        name: str,
        compute: NodeCompute,
        newcomers: Newcomers,
        answers: Answers,
        transport: Transport,
        timers: Timers,
        submit: Callable[[Job[Any]], str | None],
        options: NodeOptions,
    ) -> None:
        self.open = False
        card = compute.card
        self.expert = card.node
        self._name = name
        self._compute = compute
        self._newcomers = newcomers
        self._answers = answers
        self._submit = submit
        self._numbers = itertools.count(1)
        bytes_per_row = max(4 * compute.feature_dim, 4 * card.num_classes + 8 + 12 * len(card.experts))
        self._max_batch = min(MAX_ROWS, (MAX_MESSAGE_BYTES - 4096) // bytes_per_row)  # so that every message about it can be sent
        rules = Rules(
            name=name,
            experts=card.experts,
            own=card.experts.index(self.expert) if self.expert in card.experts else None,
            k=card.k,
            in_dim=compute.feature_dim,
            out_dim=card.num_classes,
            max_requests=options.max_requests,
            max_rows=2 * options.max_rows,
            formats=options.formats,
            routing=options.routing,
        )
        hooks = Hooks(queue=self._queue, run_own=self._run_own, finished=self._finished, refused=self._refused, examine=self._examine)
        origin = Origin(rules, random.Random(options.seed))
        air = None if options.radio is None else Air(options.radio, node=name, started_s=time.monotonic())
        self.dispatcher = Dispatcher(origin, transport, timers, hooks, air=air)
        wireless = Wireless(bandwidth_hz=options.bandwidth_hz) if options.wireless else None
        self.quality = LinkQuality(origin, self.dispatcher.lock, air=air, wireless=wireless, bandwidth_hz=options.bandwidth_hz)

    @property
    def _card(self) -> BundleCard:
        return self._compute.card

    def replace(self, compute: NodeCompute) -> None:
        """Compute with another version of the bundle from now on."""
        self._compute = compute

    async def infer(self, request: InferRequest) -> InferReply | Refusal:
        """Take a request in and wait for its answer."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[InferReply | Refusal] = loop.create_future()

        def done(said: InferReply | Refusal) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(said))

        self.take(request, done, time.monotonic())
        return await future

    def take(self, request: InferRequest, done: Done, arrived_s: float) -> None:
        """Take a request in; called on whatever thread brought it. ``done`` is called once, on any thread, and must not raise."""
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
            self._answers.refuse_unread(asked, refused)
            return
        number = next(self._numbers)
        self._answers.open(number, asked)
        self.dispatcher.happen(InferArrived(number, len(request.images), due_s, request.k))

    def _unfit(self, request: InferRequest) -> Refusal | None:
        shape = tuple(request.images.shape[1:])
        if not self.open:
            return refusal(RefusalCode.LEAVING, f"{self._name} is not serving")
        if shape != self._card.image_shape:
            return refusal(RefusalCode.BAD_SHAPE, f"images of {self._card.image_shape} wanted, {shape} came")
        if len(request.images) > self._max_batch:
            return refusal(RefusalCode.BAD_SHAPE, f"at most {self._max_batch} images at once, {len(request.images)} came")
        return None

    def _queue(self, number: int) -> None:
        asked = self._answers.get(number)
        if asked is None:
            return
        left_s = max(1e-3, asked.due_s - time.monotonic())
        key = (asked.k, asked.images.dtype, math.frexp(left_s)[1])  # deadlines within a factor of two fly together
        job = Job(Line.INFER, key, len(asked.images), asked.images.numel(), asked.due_s, number)
        if (refused := self._submit(job)) is not None:
            self.dispatcher.happen(ComputeFailed((number,), f"{self._name}: {refused}", RefusalCode.BUSY))

    # On a worker

    def score(self, numbers: Sequence[int]) -> None:
        """Extract and score requests together; each alone when that fails."""
        found = [(number, asked) for number in numbers if (asked := self._answers.get(number)) is not None]
        if not found:
            return
        try:
            images = found[0][1].images if len(found) == 1 else torch.cat([asked.images for _, asked in found])
            features = self._compute.features(images)
            if not all_finite(features.numpy()):
                raise ValueError("the extractor's features are not finite")
            block = self.quality.block()
            scores = self._newcomers.scores(features, self._told(features.numpy(), block, [asked for _, asked in found]))
        except Exception as error:  # noqa: BLE001  # a module may raise anything; its words refuse these requests, and the worker goes on
            if len(found) > 1:
                for number, _ in found:
                    self.score([number])
            else:
                self.dispatcher.happen(ComputeFailed((found[0][0],), f"{type(error).__name__}: {error}"))
            return
        starts = itertools.accumulate((len(asked.images) for _, asked in found), initial=0)
        requests = [(number, start) for (number, _), start in zip(found, starts, strict=False)]
        trace = next((asked.trace for _, asked in found if asked.trace), "")  # what flies together is one span's child: the first's
        self.dispatcher.scored(requests, scores, Cargo(features.numpy(), trace=trace, block=block))

    def _told(self, features: np.ndarray, block: dict[str, float] | None, flying: Sequence[Asked]) -> list[float] | None:
        """Return what the gate is told of links; None for a gate that does not look at them, so that it costs nothing."""
        if not self._newcomers.sees_links:
            return None
        return self.quality.told(features, block, k=flying[0].k, deadline_s=min(asked.due_s for asked in flying))

    def _run_own(self, flight: int, cargo: Cargo) -> None:
        try:
            (own,) = self._compute.bank.compute([(self.expert, cargo.features)])
            if not all_finite(own):
                raise ValueError("the own expert's outputs are not finite")
        except Exception as error:  # noqa: BLE001  # an expert may raise anything; peers may still answer, else its words refuse the requests
            self.dispatcher.happen(OwnFailed(flight, f"{type(error).__name__}: {error}"))
            return
        cargo.own = own
        self.dispatcher.happen(OwnAnswered(flight))

    # Answers

    def _finished(self, finish: Finish, cargo: Cargo) -> None:
        origin = self.dispatcher.origin
        logits = fill(finish, cargo, origin.rules.out_dim, origin.rules.own)
        probabilities = combine(torch.from_numpy(logits), torch.from_numpy(finish.weights), mix=self._compute.model.mix)
        names = tuple(origin.experts)
        experts, weights, labels = torch.from_numpy(finish.experts), torch.from_numpy(finish.weights), probabilities.argmax(dim=1)
        now_s = time.monotonic()
        for number, start in finish.requests:
            asked = self._answers.get(number)
            if asked is None:
                continue
            rows = slice(start, start + len(asked.images))
            share = len(asked.images) / finish.rows
            if asked.identity:
                parts = (cargo.features, finish.experts, logits)
                kept = Answered(*(part[rows].copy() for part in parts))  # a view would hold the whole flight
                self._answers.remember(asked.identity, kept)
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
            self._answers.answer(number, reply)

    def _refused(self, effect: Refuse) -> None:
        self._answers.refuse(effect.request, refusal(effect.code, effect.reason, request=effect.request))

    def feedback(self, identity: str, labels: Sequence[int]) -> tuple[Learned, str]:
        """Learn from the true labels of an earlier request; return whether, and why not."""
        if any(not 0 <= label < self._card.num_classes for label in labels):
            return Learned.UNFIT, f"labels must be between 0 and {self._card.num_classes - 1}"
        answered = self._answers.recall(identity)
        if answered is None:
            return Learned.UNKNOWN, f"no recent request has the id {identity!r}, or it was learnt from already"
        if len(labels) != len(answered.features):
            self._answers.remember(identity, answered)
            return Learned.UNFIT, f"{len(answered.features)} labels wanted, one per image, {len(labels)} came"
        reason = self._newcomers.learn(answered, labels)
        return (Learned.YES, "") if reason is None else (Learned.UNFIT, reason)

    # Who is let in

    def _examine(self, peer: str, reply: CardReply, done: Callable[[str | None], None]) -> None:
        if (reason := self._newcomers.unfit(reply)) is not None:
            done(reason)
            return
        self._newcomers.examine(peer, reply, lambda said: done(said) if said else self._admit(reply, done))

    def _admit(self, reply: CardReply, done: Callable[[str | None], None]) -> None:
        """Give experts that the gate does not know their columns, before their node is asked for them."""
        said: str | None = None
        with self.dispatcher.lock:
            for name in reply.card.experts:
                if said is None and self.dispatcher.origin.expert_index(name) is None:
                    said = self._newcomers.add(name, reply)
                    if said is None:
                        self.dispatcher.origin.add_expert(name)
        done(said)
