"""Strangers: nodes that do not fit, lie or talk nonsense are refused and counted, and the rest of the mesh goes on."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nmoe.core.bundle import Bundle, read_bundle
from nmoe.core.errors import MeshError
from nmoe.node import MemoryHub, MeshClient, NodeOptions, NodeRunner
from nmoe.node.bank import NodeCompute
from nmoe.node.messages import ExpertReply, ExpertRequest, RefusalCode, TensorFormat, decode, encode, refusal
from nmoe.node.service import Learned
from nmoe.node.transport.base import Service

CLASSES = {"node-0": (0, 1), "node-1": (2, 3), "node-2": (4, 5), "new": (6, 7)}
KNOWN = ("node-0", "node-1", "node-2")
OPTIONS = NodeOptions(formats=(TensorFormat.FLOAT32,))


@pytest.fixture(scope="module")
def taught(teach: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return teach(tmp_path_factory.mktemp("taught"), CLASSES, experts=KNOWN)


def answer(outputs: Callable[[ExpertRequest], np.ndarray], *, request: int | None = None) -> Callable[..., None]:
    """A handler of expert requests that replies whatever it likes."""

    def on_query(data: bytes, respond: Callable[[bytes], None]) -> None:
        asked = decode(data)
        assert isinstance(asked, ExpertRequest)
        number = asked.request if request is None else request
        respond(
            encode(
                ExpertReply(request=number, format=TensorFormat.FLOAT32, outputs=outputs(asked), wait_s=0.0, compute_s=1e-4, queue_rows=0)
            )
        )

    return on_query


def zeros(asked: ExpertRequest) -> np.ndarray:
    return np.zeros((asked.num_pairs, 10), np.float32)


def once_right(bundle: Bundle, then: Callable[..., None]) -> Callable[..., None]:
    """A handler that does well in its examination, the first request, and then something else."""
    bank = NodeCompute(bundle).bank
    numbers = itertools.count()
    right = answer(lambda asked: bank.compute([(bundle.card.node, asked.features)])[0])
    return lambda data, respond: (then if next(numbers) else right)(data, respond)


def all_classes(taught: Any, *, each: int = 4) -> Tensor:
    return torch.cat([taught.images(label, each) for label in range(6)])


def asked_of(view: Any, peer: str) -> Any:
    return next(link for link in view.links if link.peer == peer)


NONSENSE: dict[str, tuple[Any, str]] = {
    "NaN": (answer(lambda asked: np.full((asked.num_pairs, 10), np.nan, np.float32)), "not finite"),
    "infinite": (answer(lambda asked: np.full((asked.num_pairs, 10), np.inf, np.float32)), "not finite"),
    "too wide": (answer(lambda asked: np.zeros((asked.num_pairs, 11), np.float32)), "bad shape"),
    "too few rows": (answer(lambda asked: np.zeros((asked.num_pairs - 1, 10), np.float32)), "bad shape"),
    "to no request": (answer(zeros, request=12345), "unreadable"),
    "no message": (lambda data, respond: respond(b"nonsense"), "unreadable"),
    "another kind": (lambda data, respond: respond(data), "unreadable"),
    "cut off": (lambda data, respond: answer(zeros)(data, lambda reply: respond(reply[:-3])), "unreadable"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_from_an_admitted_node_is_refused_counted_and_not_asked_for_again(
    taught: Any, pose: Any, eventually: Any, peers: Any, name: str
) -> None:
    then, why = NONSENSE[name]
    with (
        MemoryHub() as hub,
        NodeRunner(taught.bundles[0], hub.transport("node-0"), options=OPTIONS) as runner,
        NodeRunner(taught.bundles[1], hub.transport("node-1"), options=OPTIONS),
        hub.transport("node-2") as hostile,
        MeshClient(hub.transport("client")) as client,
    ):
        pose(hostile, taught.bundles[2], once_right(taught.bundles[2], then))
        eventually(lambda: peers(runner.view()) == ("node-1", "node-2"))
        images = all_classes(taught)
        reply = client.infer("node-0", images, deadline_s=5)
        assert not (reply.experts == 2).any()
        assert reply.probabilities.isfinite().all()
        assert torch.equal(reply.labels[:16], torch.arange(4).repeat_interleave(4)), "the others answer as well as ever"
        view = runner.view()
        link = asked_of(view, "node-2")
        assert link.failed == {why: 1}
        assert link.state == "open", "one nonsensical reply is enough"
        assert [(one.who, one.reason, one.count) for one in view.refusals] == [("node-2", f"reply {why}", 1)]
        for _ in range(5):
            client.infer("node-0", images, deadline_s=5)
        assert asked_of(runner.view(), "node-2").asked == 1
        assert view.refused == {}


def test_replies_twice_or_to_somebody_else_are_ignored(taught: Any, pose: Any, eventually: Any, peers: Any) -> None:
    def twice(data: bytes, respond: Callable[[bytes], None]) -> None:
        bank_reply = answer(zeros)
        bank_reply(data, respond)
        bank_reply(data, respond)

    with (
        MemoryHub() as hub,
        NodeRunner(taught.bundles[0], hub.transport("node-0")) as runner,
        hub.transport("node-2") as chatty,
        MeshClient(hub.transport("client")) as client,
    ):
        pose(chatty, taught.bundles[2], once_right(taught.bundles[2], twice))
        eventually(lambda: peers(runner.view()) == ("node-2",))
        for _ in range(10):
            client.infer("node-0", all_classes(taught), deadline_s=5)
        view = runner.view()
        assert (view.answered, view.in_progress) == (10, 0)
        link = asked_of(view, "node-2")
        assert link.asked == link.answered == 10


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"node": "node-1"}, "its card is another node's: node-1"),
        ({"in_dim": 64}, "its experts have other widths: 64 to 10 numbers, 128 to 10 wanted"),
        ({"out_dim": 11}, "its experts have other widths: 128 to 11 numbers, 128 to 10 wanted"),
        ({"class_list": "another"}, "its list of classes is another one: 10 classes, another"),
        ({"num_classes": 11}, "its list of classes is another one: 11 classes, "),
    ],
)
def test_a_card_that_does_not_fit_is_refused(taught: Any, pose: Any, eventually: Any, changes: dict[str, object], reason: str) -> None:
    with (
        MemoryHub() as hub,
        NodeRunner(taught.bundles[0], hub.transport("node-0")) as runner,
        hub.transport("node-2") as other,
        MeshClient(hub.transport("client")) as client,
    ):
        asked: list[bytes] = []
        pose(other, taught.bundles[2], lambda data, respond: asked.append(data), **changes)
        eventually(lambda: runner.view().refusals)
        (refused,) = runner.view().refusals
        assert refused.who == "node-2"
        assert refused.reason.startswith(reason)
        assert asked_of(runner.view(), "node-2").state == "refused"
        reply = client.infer("node-0", all_classes(taught), deadline_s=5)
        assert set(reply.experts.flatten().tolist()) == {0, -1}
        assert not asked, "no feature left for it"


@pytest.mark.parametrize("card", [b"", b"nonsense", encode(refusal(RefusalCode.FAILED, "no")), None])
def test_a_node_that_does_not_say_what_it_serves_is_refused_and_looked_at_again(
    taught: Any, pose: Any, eventually: Any, peers: Any, monkeypatch: pytest.MonkeyPatch, card: bytes | None
) -> None:
    monkeypatch.setattr("nmoe.node.introductions.CARD_PAUSE_S", 0.01)
    monkeypatch.setattr("nmoe.node.introductions.CARD_TIMEOUT_S", 0.05)
    monkeypatch.setattr("nmoe.node.introductions.AGAIN_S", 0.5)
    with (
        MemoryHub() as hub,
        NodeRunner(taught.bundles[0], hub.transport("node-0")) as runner,
        hub.transport("node-2") as other,
    ):
        other.serve(Service.CARD, lambda _, respond: None if card is None else respond(card))
        other.announce()
        eventually(lambda: runner.view().refusals)
        assert asked_of(runner.view(), "node-2").state == "refused"
        pose(other, taught.bundles[2], once_right(taught.bundles[2], answer(zeros)))
        eventually(lambda: peers(runner.view()) == ("node-2",))


def test_a_lying_card_is_found_out(taught: Any, pose: Any, eventually: Any, peers: Any) -> None:
    with (
        MemoryHub() as hub,
        NodeRunner(taught.bundles[0], hub.transport("node-0")) as runner,
        NodeRunner(taught.bundles[1], hub.transport("node-1")),
        hub.transport("node-2") as liar,
        MeshClient(hub.transport("client")) as client,
    ):
        eventually(lambda: peers(runner.view()) == ("node-1",))
        pose(liar, taught.bundles[2], answer(zeros))  # claims classes 4 and 5, and calls everything 0
        eventually(lambda: runner.view().refusals)
        (refused,) = runner.view().refusals
        assert (refused.who, refused.count) == ("node-2", 1)
        assert refused.reason == "a lying card: it claims classes 4, 5 and labels 0% of their means right"
        assert asked_of(runner.view(), "node-2").state == "refused"
        reply = client.infer("node-0", all_classes(taught), deadline_s=5)
        assert not (reply.experts == 2).any()
        assert torch.equal(reply.labels[:16], torch.arange(4).repeat_interleave(4))


def test_a_node_busy_during_its_examination_is_no_liar(
    taught: Any, pose: Any, eventually: Any, peers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nmoe.node.introductions.AGAIN_S", 0.2)
    numbers = itertools.count()
    right = once_right(taught.bundles[2], answer(zeros))

    def busy(data: bytes, respond: Callable[[bytes], None]) -> None:
        if next(numbers) < 4:
            respond(encode(refusal(RefusalCode.BUSY, "later")))
        else:
            right(data, respond)

    with (
        MemoryHub() as hub,
        NodeRunner(taught.bundles[0], hub.transport("node-0")) as runner,
        hub.transport("node-2") as other,
    ):
        pose(other, taught.bundles[2], busy)
        eventually(lambda: peers(runner.view()) == ("node-2",))
        assert [(one.who, one.reason) for one in runner.view().refusals] == [("node-2", "it does not answer")]


def test_a_card_that_claims_what_it_cannot_show_is_refused(taught: Any, pose: Any, eventually: Any) -> None:
    with MemoryHub() as hub, NodeRunner(taught.bundles[0], hub.transport("node-0")) as runner, hub.transport("node-2") as other:
        pose(other, taught.bundles[2], answer(zeros), classes=(4, 4))
        eventually(lambda: runner.view().refusals)
        assert asked_of(runner.view(), "node-2").state == "refused"


def test_a_newcomer_is_used_without_retraining_and_feedback_teaches(
    taught: Any, eventually: Any, peers: Any, teach: Any, tmp_path: Path
) -> None:
    with (
        MemoryHub() as hub,
        NodeRunner(taught.bundles[0], hub.transport("node-0")) as runner,
        NodeRunner(taught.bundles[1], hub.transport("node-1")),
        NodeRunner(taught.bundles[2], hub.transport("node-2")),
        MeshClient(hub.transport("client")) as client,
    ):
        eventually(lambda: len(peers(runner.view())) == 2)
        news = torch.cat([taught.images(6, 10), taught.images(7, 10)])
        labels = [6] * 10 + [7] * 10
        before = client.infer("node-0", news, deadline_s=5)
        assert before.names == KNOWN
        assert not set(before.labels.tolist()) & {6, 7}, "nobody knows these classes"
        with NodeRunner(taught.bundles[3], hub.transport("new")):
            eventually(lambda: "new" in peers(runner.view()))
            after = client.infer("node-0", news, deadline_s=5, identity="first")
            assert after.names == (*KNOWN, "new")
            assert (after.experts == 3).any(dim=1).all()
            assert (after.labels == torch.tensor(labels)).float().mean() > 0.9
            old = client.infer("node-0", all_classes(taught), deadline_s=5)
            assert (old.labels == torch.arange(6).repeat_interleave(4)).float().mean() > 0.9
            assert runner.feedback("first", [0]) == (Learned.UNFIT, "20 labels wanted, one per image, 1 came")
            assert runner.feedback("first", [10] * 20) == (Learned.UNFIT, "labels must be between 0 and 9")
            assert runner.feedback("first", labels) == (Learned.YES, "")
            for unknown in ("first", "unheard of"):
                said = f"no recent request has the id {unknown!r}, or it was learnt from already"
                assert runner.feedback(unknown, labels) == (Learned.UNKNOWN, said)
        gone = client.infer("node-0", news, deadline_s=5)
        assert not (gone.experts == 3).any()


def test_wrong_labels_take_a_liars_newcomer_out(taught: Any, eventually: Any, peers: Any) -> None:
    with (
        MemoryHub() as hub,
        NodeRunner(taught.bundles[0], hub.transport("node-0")) as runner,
        NodeRunner(taught.bundles[1], hub.transport("node-1")),
        NodeRunner(taught.bundles[3], hub.transport("new")),
        MeshClient(hub.transport("client")) as client,
    ):
        eventually(lambda: peers(runner.view()) == ("new", "node-1"))
        news = taught.images(6, 20)
        weight = client.infer("node-0", news, deadline_s=5)
        share = weight.weights[weight.experts == 3].mean()
        for number in range(30):  # the truth, say these labels, is that all of them are of class 2, which node-1 knows
            client.infer("node-0", news, deadline_s=5, identity=f"n-{number}", k=3)
            assert runner.feedback(f"n-{number}", [2] * 20) == (Learned.YES, "")
        later = client.infer("node-0", news, deadline_s=5)
        assert (later.weights[later.experts == 3].mean() if (later.experts == 3).any() else 0) < share


def test_an_expert_that_nobody_knows_and_that_shows_nothing_is_refused(mesh: Any, new_mesh: Any, eventually: Any, tmp_path: Path) -> None:
    (folder,) = new_mesh(tmp_path, 1, experts=("unknown",))
    with (
        MemoryHub() as hub,
        NodeRunner(mesh.bundles[0], hub.transport("node-0")) as runner,
        NodeRunner(read_bundle(folder), hub.transport("unknown")),
    ):
        eventually(lambda: runner.view().refusals)
        (refused,) = runner.view().refusals
        assert refused.reason == "its card shows no class prototypes, and the gate does not know it: unknown"


def test_own_expert_with_nan_is_said_so(taught: Any, eventually: Any) -> None:
    with (
        MemoryHub() as hub,
        NodeRunner(taught.bundles[0], hub.transport("node-0")) as runner,
        MeshClient(hub.transport("client")) as client,
    ):
        expert = runner._compute.model.expert
        with torch.no_grad():
            expert.output.bias[0] = torch.nan
        with pytest.raises(MeshError, match="the own expert's outputs are not finite"):
            client.infer("node-0", all_classes(taught), deadline_s=1)
        assert runner.running
