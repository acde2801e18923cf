"""Admission: examinations that cards, pauses and replicas cannot get around, and refusals that stay countable."""

import itertools
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nmoe.node import MemoryHub, NodeOptions, NodeRunner
from nmoe.node.bank import NodeCompute
from nmoe.node.introductions import MAX_REFUSALS, OTHERS, Introductions
from nmoe.node.messages import ExpertReply, ExpertRequest, RefusalCode, TensorFormat, decode, encode, refusal
from nmoe.node.newcomers import EXAM_PAUSE_S, EXAM_TRIES
from nmoe.node.protocol import Origin, Rules
from nmoe.node.timers import Timers

CLASSES = {"node-0": (0, 1), "node-1": (2, 3), "node-2": (4, 5)}


@pytest.fixture(scope="module")
def taught(teach: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return teach(tmp_path_factory.mktemp("taught"), CLASSES, experts=tuple(CLASSES))


def honest(bundle: Any, asked: list[float]) -> Callable[..., None]:
    """A handler that answers with a bundle's expert, whatever expert it is asked for, and notes when."""
    bank = NodeCompute(bundle).bank

    def on_query(data: bytes, respond: Callable[[bytes], None]) -> None:
        message = decode(data)
        assert isinstance(message, ExpertRequest)
        asked.append(time.monotonic())
        (outputs,) = bank.compute([(bundle.card.node, message.features)])
        number = message.request
        respond(encode(ExpertReply(request=number, format=TensorFormat.FLOAT32, outputs=outputs, wait_s=0.0, compute_s=1e-4, queue_rows=0)))

    return on_query


def test_a_card_that_claims_nothing_is_not_let_in_unexamined(taught: Any, pose: Any, eventually: Any) -> None:
    asked: list[float] = []
    with MemoryHub() as hub, NodeRunner(taught.bundles[0], hub.transport("node-0")) as runner, hub.transport("node-2") as liar:
        pose(liar, taught.bundles[2], honest(taught.bundles[2], asked), classes=(), prototypes=np.zeros((0, 128), np.float32))
        eventually(lambda: runner.view().refusals)
        assert [(one.who, one.reason) for one in runner.view().refusals] == [("node-2", "its card shows no class prototypes")]
        assert not asked


def test_every_expert_on_a_card_is_examined(taught: Any, pose: Any, eventually: Any) -> None:
    with (
        MemoryHub() as hub,
        NodeRunner(taught.bundles[0], hub.transport("node-0")) as runner,
        hub.transport("node-2") as liar,
    ):
        right = honest(taught.bundles[2], [])

        def on_query(data: bytes, respond: Callable[[bytes], None]) -> None:
            message = decode(data)
            assert isinstance(message, ExpertRequest)
            if message.experts[0].expert == "node-2":
                right(data, respond)
            else:
                respond(encode(refusal(RefusalCode.BAD_SHAPE, "no such expert")))

        pose(liar, taught.bundles[2], on_query, experts=("node-2", "node-1"))
        eventually(lambda: runner.view().refusals)
        assert [one.reason for one in runner.view().refusals] == ["its answers cannot be read"]


@pytest.mark.parametrize("original", ["node-0", "node-1"])
def test_a_replica_must_know_what_the_original_knows(taught: Any, pose: Any, eventually: Any, peers: Any, original: str) -> None:
    with (
        MemoryHub() as hub,
        NodeRunner(taught.bundles[0], hub.transport("node-0")) as runner,
        NodeRunner(taught.bundles[1], hub.transport("node-1")),
        hub.transport("spare") as liar,
    ):
        eventually(lambda: peers(runner.view()) == ("node-1",))
        pose(liar, taught.bundles[2], honest(taught.bundles[2], []), node="spare", experts=(original,))
        eventually(lambda: runner.view().refusals)
        (refused,) = runner.view().refusals
        claims = ", ".join(map(str, CLASSES[original]))
        assert (refused.who, refused.reason.split(" and ")[0]) == ("spare", f"a lying card: it claims classes {claims}")
        assert peers(runner.view()) == ("node-1",)


def test_an_honest_replica_is_let_in(taught: Any, eventually: Any, peers: Any) -> None:
    with (
        MemoryHub() as hub,
        NodeRunner(taught.bundles[0], hub.transport("node-0")) as runner,
        NodeRunner(taught.bundles[1], hub.transport("node-1")),
        NodeRunner(taught.bundles[1], hub.transport("spare"), options=NodeOptions(node="spare")),
    ):
        eventually(lambda: peers(runner.view()) == ("node-1", "spare"))
        assert not runner.view().refusals


def test_it_is_examined_once_for_one_card_and_anew_for_another(taught: Any, pose: Any, eventually: Any, peers: Any) -> None:
    asked: list[float] = []
    with MemoryHub() as hub, NodeRunner(taught.bundles[0], hub.transport("node-0")) as runner, hub.transport("node-2") as other:
        pose(other, taught.bundles[2], honest(taught.bundles[2], asked))
        eventually(lambda: peers(runner.view()) == ("node-2",))
        for draining in (True, False):
            pose(other, taught.bundles[2], honest(taught.bundles[2], asked), draining=draining)
            eventually(lambda draining=draining: runner.dispatcher.introductions.cards["node-2"].card.draining is draining)
        assert len(asked) == 1
        pose(other, taught.bundles[2], honest(taught.bundles[2], asked), version="2")
        eventually(lambda: runner.dispatcher.introductions.version("node-2") == "2")
        assert len(asked) == 2


def test_a_busy_candidate_is_given_time_between_tries(taught: Any, pose: Any, eventually: Any) -> None:
    asked: list[float] = []

    def busy(data: bytes, respond: Callable[[bytes], None]) -> None:
        asked.append(time.monotonic())
        respond(encode(refusal(RefusalCode.BUSY, "later")))

    with MemoryHub() as hub, NodeRunner(taught.bundles[0], hub.transport("node-0")) as runner, hub.transport("node-2") as other:
        pose(other, taught.bundles[2], busy)
        eventually(lambda: runner.view().refusals)
        assert len(asked) == EXAM_TRIES
        assert all(later - sooner >= 0.9 * EXAM_PAUSE_S for sooner, later in itertools.pairwise(asked))


def test_refusals_are_counted_whoever_floods_them() -> None:
    origin = Origin(Rules(name="a", experts=("a",), own=0, k=1, in_dim=1, out_dim=1), random.Random(0))
    lock, timers = threading.Lock(), Timers("never started")
    with MemoryHub() as hub, hub.transport("a") as transport:
        meet = Introductions(origin, lock, transport, timers, happen=lambda event: None, examine=lambda peer, reply, done: None)
    for number in range(10 * MAX_REFUSALS):
        meet.note(f"n-{number}", f"its card is another node's: x-{number}")
    assert meet.refusals.total() == 10 * MAX_REFUSALS
    assert meet.refusals[OTHERS, "its card is another node's"] == 9 * MAX_REFUSALS
    for number in range(10 * MAX_REFUSALS):
        meet.note("n", f"words {number}")
    assert meet.refusals.total() == 20 * MAX_REFUSALS
    assert len(meet.refusals) <= 2 * MAX_REFUSALS + 1
    assert set(meet.refused_at_s) == set(meet.refusals)
