"""Replicas: two nodes with one expert share its work, stand in for each other, and hedge each other."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from nmoe.node import MemoryHub, MeshClient, NodeOptions, NodeRunner, NodeSettings, TensorFormat, run_nodes
from nmoe.node.messages import CardReply, ExpertRequest, decode
from nmoe.node.transport.base import Service

PLAIN = (TensorFormat.FLOAT32,)


class Pair(NamedTuple):
    """A node that asks, a node and its replica, and a client of the first."""

    hub: MemoryHub
    asker: NodeRunner
    first: NodeRunner
    second: NodeRunner
    client: MeshClient


@pytest.fixture
def pair(mesh: Any, eventually: Any, peers: Any) -> Callable[..., Any]:
    @contextmanager
    def serving(**hub_arguments: Any) -> Iterator[Pair]:
        with (
            MemoryHub(**hub_arguments) as hub,
            NodeRunner(mesh.bundles[0], hub.transport("node-0"), options=NodeOptions(formats=PLAIN)) as asker,
            NodeRunner(mesh.bundles[1], hub.transport("node-1")) as first,
            NodeRunner(mesh.bundles[1], hub.transport("spare"), options=NodeOptions(node="spare")) as second,
            MeshClient(hub.transport("client")) as client,
        ):
            eventually(lambda: peers(asker.view()) == ("node-1", "spare"))
            yield Pair(hub, asker, first, second, client)

    return serving


def links(runner: NodeRunner) -> dict[str, Any]:
    return {link.peer: link for link in runner.view().links}


def slowed(runner: NodeRunner, delay_s: Callable[[], float]) -> None:
    """Let a node's expert take longer."""
    answer = runner.server._asked

    def later(data: bytes, respond: Callable[[bytes], None]) -> None:
        wait_s = delay_s()
        if wait_s:
            threading.Timer(wait_s, lambda: answer(data, respond)).start()
        else:
            answer(data, respond)

    runner.transport.serve(Service.EXPERT, later)


def test_a_replica_says_whose_expert_it_serves_and_answers_alike(mesh: Any, images: Tensor, pair: Any) -> None:
    with pair() as served:
        view = served.asker.view()
        assert [(one.expert, set(one.nodes)) for one in view.experts[:2]] == [("node-0", {"node-0"}), ("node-1", {"node-1", "spare"})]
        assert served.second.view().node == "spare"
        reference = mesh.reference(0, images, k=2, up={0, 1}).probabilities
        for _ in range(20):
            reply = served.client.infer("node-0", images, deadline_s=5)
            assert torch.allclose(reply.probabilities, reference, atol=1e-5)
        own = served.client.infer("spare", images, deadline_s=5)  # the replica answers requests too, with its own gate and expert
        assert torch.allclose(own.probabilities, mesh.reference(1, images, k=2, up={0, 1}).probabilities, atol=1e-5)


def test_replicas_share_the_work(images: Tensor, pair: Any) -> None:
    with pair() as served:
        for _ in range(200):
            served.client.infer("node-0", images[:1], deadline_s=5)
        asked = {name: link.asked for name, link in links(served.asker).items()}
        assert min(asked.values()) >= 1, asked  # one that was slow once is measured again


def killed_when_asked(served: Pair, faulty: NodeRunner) -> Callable[[bytes, Callable[[bytes], None]], None]:
    """Return an expert service that dies as it is asked for a request; the other replica's examination is answered."""
    answer = faulty.server._asked

    def ask(data: bytes, respond: Callable[[bytes], None]) -> None:
        request = decode(data)
        assert isinstance(request, ExpertRequest)
        if request.origin == served.asker.name:
            served.hub.kill(faulty.name)
        else:
            answer(data, respond)

    return ask


def noticed(link: Any, fault: str) -> bool:
    """Say whether a fault was met; that somebody has left the mesh may be heard before the silence of who was asked."""
    return bool(link.failed) or (fault == "killed" and link.state == "down")


@pytest.mark.parametrize("fault", ["busy", "killed", "nonsense"])
def test_a_replica_stands_in_at_once(mesh: Any, images: Tensor, pair: Any, eventually: Any, fault: str) -> None:
    with pair(lease_s=None) as served:
        reference = mesh.reference(0, images, k=2, up={0, 1}).probabilities
        served.client.infer("node-0", images, deadline_s=5)
        faulty, other = sorted(
            (served.first, served.second), key=lambda runner: -links(served.asker)[runner.name].asked
        )  # it is asked again
        if fault == "busy":
            served.hub.busy(faulty.name)
        elif fault == "nonsense":
            faulty.transport.serve(Service.EXPERT, lambda data, respond: respond(b"nonsense"))
        else:
            faulty.transport.serve(Service.EXPERT, killed_when_asked(served, faulty))
        for _ in range(300):  # until the faulty one has been asked
            reply = served.client.infer("node-0", images, deadline_s=5)
            assert torch.allclose(reply.probabilities, reference, atol=1e-5)
            assert reply.seconds < 1
            if noticed(links(served.asker)[faulty.name], fault):
                break
        assert served.asker.view().degraded == 0
        assert noticed(links(served.asker)[faulty.name], fault)
        assert links(served.asker)[other.name].answered >= 1


def test_a_slow_node_is_hedged_by_its_replica_and_the_first_answer_counts(mesh: Any, images: Tensor, pair: Any) -> None:
    slow = threading.Event()
    with pair() as served:
        reference = mesh.reference(0, images, k=2, up={0, 1}).probabilities
        for _ in range(60):  # until both are known well
            served.client.infer("node-0", images, deadline_s=5)
        found = links(served.asker)
        favourite = served.first if found["node-1"].asked > found["spare"].asked else served.second
        slowed(favourite, lambda: 1.0 if slow.is_set() else 0.0)
        slow.set()
        hedged = {name: link.hedged for name, link in links(served.asker).items()}

        def hedges() -> bool:
            return any(link.hedged > hedged[name] for name, link in links(served.asker).items())

        seconds: list[float] = []
        while len(seconds) < 300 and not hedges():  # until the slow one is asked, and the credit for hedges allows
            reply = served.client.infer("node-0", images, deadline_s=5)
            assert torch.allclose(reply.probabilities, reference, atol=1e-5)
            seconds.append(reply.seconds)
        assert hedges()
        assert seconds[-1] < 0.5, "a hedge answered long before the slow node"
        assert served.asker.view().degraded == 0


def test_hedges_are_at_most_a_tenth(mesh: Any, images: Tensor, pair: Any) -> None:
    with pair() as served:
        slowed(served.first, iter_delays())
        slowed(served.second, iter_delays())
        for _ in range(300):
            served.client.infer("node-0", images[:1], deadline_s=1)
        found = links(served.asker).values()
        asked, hedged = sum(link.asked for link in found), sum(link.hedged for link in found)
        assert hedged <= 0.1 * asked + 10


def iter_delays() -> Callable[[], float]:
    """Every tenth answer is late: a node worth hedging."""
    count = 0

    def delay_s() -> float:
        nonlocal count
        count += 1
        return 0.03 if count % 10 == 0 else 0.0

    return delay_s


def test_without_a_replica_the_next_best_expert_stands_by(mesh: Any, images: Tensor, eventually: Any, peers: Any, serve: Any) -> None:
    with serve(mesh, options=NodeOptions(formats=PLAIN)) as (_, client, runners):
        chosen = mesh.reference(0, images, k=2).routing.experts
        row = next(row for row in range(len(images)) if 2 in chosen[row] and 0 not in chosen[row])
        one = images[row : row + 1]
        for _ in range(40):
            client.infer("node-0", one, deadline_s=1.0)
        slowed(runners[2], lambda: 1.5)
        reply = client.infer("node-0", one, deadline_s=1.0)
        assert reply.seconds < 1
        assert reply.degraded
        best = mesh.reference(0, one, k=4).routing.experts[0].tolist()
        third = next(expert for expert in best if expert not in chosen[row].tolist())
        assert sorted(reply.experts[0].tolist()) == sorted([*(set(chosen[row].tolist()) - {2}), third])


def test_one_name_is_for_one_bundle(mesh: Any) -> None:
    settings = NodeSettings(mesh="m", listen="tcp/127.0.0.1:1", options=NodeOptions(node="spare"))
    with pytest.raises(ValueError, match="one name is for one bundle, got 2 bundles to serve as spare"):
        run_nodes(mesh.folders[:2], settings, listen=["tcp/127.0.0.1:1", "tcp/127.0.0.1:2"])


def test_a_card_of_a_replica_names_its_expert(mesh: Any, pair: Any) -> None:
    with pair() as served:
        card = served.second.expert_card()
        assert isinstance(card, CardReply)
        assert (card.card.node, card.card.experts) == ("spare", ("node-1",))
        asked: list[ExpertRequest] = []
        answer = served.second.server._asked
        served.second.transport.serve(Service.EXPERT, lambda data, respond: (asked.append(decode(data)), answer(data, respond))[1])
        until_s = time.monotonic() + 10
        while not asked:
            served.client.infer("node-0", torch.zeros(8, 8, 8, 1, dtype=torch.uint8), deadline_s=5)
            assert time.monotonic() < until_s
        assert asked[0].experts[0].expert == "node-1"
