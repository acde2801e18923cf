"""Decisions where something is lost for good: the own expert fails, and peers leave while their circuit is open."""

import random

import numpy as np

from nmoe.node import events as e
from nmoe.node import protocol as p
from nmoe.node.links import Circuit
from nmoe.node.messages import ExpertCard, RefusalCode, TensorFormat

RULES = p.Rules(name="a", experts=("a", "b"), own=0, k=1, in_dim=8, out_dim=3)


def with_peer() -> p.Origin:
    node = p.Origin(RULES, random.Random(0))
    node.step(e.PeerUp("b"), 0.0)
    card = ExpertCard(
        node="b",
        version="1",
        experts=("b",),
        classes=(),
        class_list="digits",
        num_classes=3,
        in_dim=8,
        out_dim=3,
        formats=tuple(TensorFormat),
        max_rows=1024,
        rows_per_s=1e4,
        gradients=False,
        draining=False,
    )
    node.step(e.CardArrived("b", card, 0.001), 0.0)
    return node


def fly(node: p.Origin, chosen: str) -> e.Send | None:
    """Let one request a sample fly together, each with the expert named; return what is sent to b."""
    rows = np.array([[5, -5] if expert == "a" else [-5, 5] for expert in chosen], dtype=np.float32)
    for number in range(len(chosen)):
        node.step(e.InferArrived(number, 1, 1.0), 0.0)
    effects = node.step(e.Scored(7, tuple((number, number) for number in range(len(chosen))), rows), 0.0)
    return next((effect for effect in effects if isinstance(effect, e.Send)), None)


def answered(send: e.Send) -> e.PeerAnswered:
    return e.PeerAnswered(send.flight, send.dispatch, 1e-4, 1e-4, 0, 100)


def test_what_peers_answer_is_answered_though_the_own_expert_fails() -> None:
    node = with_peer()
    send = fly(node, "bab")
    assert send is not None
    assert node.step(e.OwnFailed(7, "NaN"), 0.1) == [], "the peer may still answer"
    finish, refuse = node.step(answered(send), 0.2)
    assert isinstance(finish, e.Finish)
    assert finish.requests == ((0, 0), (2, 2))
    assert finish.experts[[0, 2]].tolist() == [[1], [1]]
    assert not finish.own
    assert refuse == e.Refuse(1, RefusalCode.FAILED, "NaN")
    assert not node.requests
    assert not node.flights


def test_an_own_expert_that_fails_with_nobody_else_refuses_at_once() -> None:
    node = p.Origin(RULES, random.Random(0))
    assert fly(node, "a") is None
    assert node.step(e.OwnFailed(7, "NaN"), 0.1) == [e.Refuse(0, RefusalCode.FAILED, "NaN")]
    assert (node.requests, node.flights, node.rows_in_progress) == ({}, {}, 0)


def test_at_the_deadline_what_is_there_is_answered_and_the_silent_peer_blamed() -> None:
    node = with_peer()
    assert fly(node, "ab") is not None
    node.step(e.OwnFailed(7, "NaN"), 0.1)
    effects = node.step(e.TimerFired(0), 1.0)
    assert [effect for effect in effects if isinstance(effect, e.Refuse)] == [e.Refuse(n, RefusalCode.FAILED, "NaN") for n in (0, 1)]
    assert node.links["b"].failed == {e.Failure.TIMEOUT: 1}
    assert node.links["b"].rows_in_flight == 0


def test_one_that_left_is_not_probed_until_it_comes_back() -> None:
    node = with_peer()
    send = fly(node, "b")
    assert send is not None
    effects = node.step(e.PeerFailed(7, send.dispatch, e.Failure.NOT_FINITE), 0.1)
    (probe,) = (effect for effect in effects if isinstance(effect, e.SetProbe))
    node.step(e.PeerDown("b"), 0.2)
    assert node.step(e.ProbeDue("b"), probe.at_s) == []
    (fetch, again) = node.step(e.PeerUp("b"), 900.0)
    assert fetch == e.FetchCard("b")
    assert again == e.SetProbe("b", 900.0 + node.links["b"].pause_s)
    assert node.step(e.PeerUp("b"), 901.0) == [e.FetchCard("b")], "its probe is due already"
    assert node.step(e.ProbeDue("b"), again.at_s) == [e.Probe("b")]
    assert node.links["b"].circuit is Circuit.PROBING
