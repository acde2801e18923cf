"""Laws of the protocol, whatever happens in whatever order."""

import random
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe.node import events as e
from nmoe.node import protocol as p
from nmoe.node.flight import State
from nmoe.node.links import Circuit
from nmoe.node.messages import ExpertCard, RefusalCode, TensorFormat
from nmoe.node.plan import Routing, mixture_weights

NAMES = ("a", "b", "c", "d", "e")
PEERS = ("b", "c", "d", "d2", "e")  # d2 serves d's expert too; e is no neighbour
RULES = p.Rules(
    name="a",
    experts=NAMES,
    own=0,
    k=2,
    in_dim=8,
    out_dim=3,
    max_requests=3,
    max_rows=12,
    neighbours=frozenset({"b", "c", "d", "d2"}),
)


ROOMY = replace(RULES, max_requests=999, max_rows=9999)


def card(node: str, *experts: str, draining: bool = False) -> ExpertCard:
    return ExpertCard(
        node=node,
        version="1",
        experts=experts or (node,),
        classes=(),
        class_list="digits",
        num_classes=3,
        in_dim=8,
        out_dim=3,
        formats=tuple(TensorFormat),
        max_rows=1024,
        rows_per_s=1e4,
        gradients=False,
        draining=draining,
    )


def origin(rules: p.Rules = RULES, *, up: tuple[str, ...] = ()) -> p.Origin:
    node = p.Origin(rules, random.Random(0))
    for peer in up:
        node.step(e.PeerUp(peer), 0.0)
        node.step(e.CardArrived(peer, card(peer, "d" if peer == "d2" else peer), 0.001), 0.0)
    return node


def scores(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def fly(node: p.Origin, number: int, rows: np.ndarray, *, now_s: float, deadline_s: float) -> list[e.Effect]:
    node.step(e.InferArrived(number, len(rows), deadline_s, None), now_s)
    return node.step(e.Scored(number, ((number, 0),), rows), now_s)


def answered(send: e.Send) -> e.PeerAnswered:
    return e.PeerAnswered(send.flight, send.dispatch, 1e-4, 1e-4, 0, 100)


def sends(effects: list[e.Effect]) -> list[e.Send]:
    return [effect for effect in effects if isinstance(effect, e.Send)]


def finishes(effects: list[e.Effect]) -> list[e.Finish]:
    return [effect for effect in effects if isinstance(effect, e.Finish)]


@dataclass
class World:
    """Carries effects out by collecting them; a hypothesis test picks what happens next."""

    node: p.Origin = field(default_factory=lambda: origin())
    now_s: float = 0.0
    waiting: list[e.Event] = field(default_factory=list)
    answers: dict[int, e.Finish | e.Refuse] = field(default_factory=dict)
    arrived: dict[int, tuple[int, float]] = field(default_factory=dict)
    asked: Counter[tuple[int, str]] = field(default_factory=Counter)
    replied: set[tuple[int, int]] = field(default_factory=set)

    def happen(self, event: e.Event) -> None:
        if isinstance(event, e.PeerAnswered):
            self.replied.add((event.flight, event.dispatch))
        for effect in self.node.step(event, self.now_s):
            self.carry_out(effect)
        assert len(self.node.requests) <= RULES.max_requests
        assert self.node.rows_in_progress == sum(request.rows for request in self.node.requests.values())
        assert all(link.rows_in_flight >= 0 for link in self.node.links.values())

    def carry_out(self, effect: e.Effect) -> None:
        match effect:
            case e.FetchCard(peer):
                self.waiting.append(e.CardArrived(peer, card(peer, "d" if peer == "d2" else peer), 0.001))
                assert peer != "e"
            case e.Queue(number):
                rows, _ = self.arrived[number]
                draws = np.random.default_rng(number).normal(size=(rows, len(NAMES))).astype(np.float32)
                self.waiting.append(e.Scored(number, ((number, 0),), draws))
            case e.Send():
                times = self.asked[effect.flight, effect.peer]
                failed = {one.peer for one in self.node.flights[effect.flight].dispatches if one.state is State.FAILED}
                assert times == 0 or (times == 1 and failed)  # once by plan, and once more to stand in for another that failed
                assert effect.peer not in failed
                self.asked[effect.flight, effect.peer] += 1
                assert self.node.links[effect.peer].up
                assert effect.groups
                for group in effect.groups:
                    assert NAMES[group.expert] == ("d" if effect.peer == "d2" else effect.peer)
                self.waiting += [answered(effect), e.PeerFailed(effect.flight, effect.dispatch, e.Failure.TIMEOUT)]
                self.waiting.append(e.PeerFailed(effect.flight, effect.dispatch, e.Failure.NOT_FINITE))
            case e.RunOwn(flight):
                self.waiting += [e.OwnAnswered(flight), e.OwnFailed(flight, "NaN")]
            case e.SetTimer(number, at_s):
                self.waiting.append(e.TimerFired(number))
                assert at_s >= self.now_s
            case e.Probe(peer):
                self.waiting += [e.Probed(peer, True), e.Probed(peer, False)]
            case e.SetProbe(peer):
                self.waiting.append(e.ProbeDue(peer))
            case e.Refuse(number):
                self.answer(number, effect)
            case e.Finish():
                self.check(effect)
                for number, _ in effect.requests:
                    self.answer(number, effect)

    def answer(self, number: int, effect: e.Finish | e.Refuse) -> None:
        assert number in self.arrived
        assert number not in self.answers  # exactly one answer
        self.answers[number] = effect

    def check(self, finish: e.Finish) -> None:
        assert np.allclose(finish.weights.sum(axis=1), 1)
        assert ((finish.weights > 0) == (finish.experts >= 0)).all()
        for used in finish.used:
            assert (finish.flight, used.dispatch) in self.replied
        for row in finish.experts:
            there = row[row >= 0].tolist()
            assert len(set(there)) == len(there)
            assert 4 not in there  # e is no neighbour
        filled = np.full(finish.experts.shape, -1)
        filled[finish.experts == 0] = 0 if finish.own else -1
        for used in finish.used:
            for group in used.groups:
                filled[group.rows, group.slots] = group.expert
        assert np.array_equal(filled, finish.experts)  # every slot said to be answered has a reply behind it


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_every_request_is_answered_once_whatever_happens(data: st.DataObject):
    world = World()
    for _ in range(data.draw(st.integers(1, 60))):
        world.now_s += data.draw(st.sampled_from([0.0, 0.0005, 0.01, 0.2]))
        kind = data.draw(st.sampled_from(["arrive", "up", "down", "reject", "next", "next", "next", "next"]))
        if kind == "arrive":
            number, rows = len(world.arrived), data.draw(st.integers(1, 14))
            world.arrived[number] = (rows, world.now_s + 0.3)
            k = data.draw(st.sampled_from([None, None, 1, 3, 5, 9]))
            world.happen(e.InferArrived(number, rows, world.now_s + 0.3, k))
        elif kind == "up":
            world.happen(e.PeerUp(data.draw(st.sampled_from(PEERS))))
        elif kind == "down":
            world.happen(e.PeerDown(data.draw(st.sampled_from(PEERS))))
        elif kind == "reject":
            world.happen(e.PeerRejected(data.draw(st.sampled_from(PEERS[:4])), "a lying card"))
        elif world.waiting:
            world.happen(world.waiting.pop(data.draw(st.integers(0, len(world.waiting) - 1))))
    world.now_s += 1.0
    for number in world.arrived:
        world.happen(e.TimerFired(number))
    assert set(world.answers) == set(world.arrived)
    assert not world.node.flights
    assert not world.node.requests
    assert all(link.rows_in_flight == 0 for link in world.node.links.values())


def test_the_gate_alone_decides_while_everything_arrives():
    node = origin(up=("b", "c", "d"))
    for number in range(50):
        effects = fly(node, number, scores([0.0, 3.0, 1.0, 2.0, 9.0]), now_s=number, deadline_s=number + 0.2)
        assert [send.peer for send in sends(effects)] == ["b", "d"]  # e scores best but cannot be asked
        for send in sends(effects):
            last = node.step(answered(send), number + 0.002)
        (finish,) = finishes(last)
        assert finish.experts.tolist() == [[1, 3]]
        assert finish.weights[0] == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))])
        assert not finish.degraded


def test_rows_for_one_peer_travel_in_one_message():
    node = origin(up=("b", "c"))
    (one, other, *_) = effects = fly(node, 1, scores([0, 5, 1, 0, 0], [0, 1, 5, 0, 0], [5, 1, 0, 0, 0]), now_s=0, deadline_s=1)
    assert [send.peer for send in sends(effects)] == ["b", "c"]
    assert [list(group.rows) for group in one.groups] == [[0, 1, 2]]
    assert [list(group.rows) for group in other.groups] == [[0, 1]]


def test_several_experts_of_one_peer_travel_in_one_message():
    node = origin()
    node.step(e.PeerUp("b"), 0.0)
    node.step(e.CardArrived("b", card("b", "b", "c"), 0.001), 0.0)
    (send,) = sends(fly(node, 1, scores([0, 5, 4, 0, 0]), now_s=0, deadline_s=1))
    assert [group.expert for group in send.groups] == [1, 2]


def test_a_failed_peer_is_replaced_by_a_node_with_the_same_expert():
    node = origin(up=("b", "d", "d2"))
    first = {send.peer: send for send in sends(fly(node, 1, scores([0, 5, 0, 5, 0]), now_s=0, deadline_s=1))}
    asked = next(peer for peer in ("d", "d2") if peer in first)
    (again,) = sends(node.step(e.PeerFailed(1, first[asked].dispatch, e.Failure.BUSY, 9), 0.01))
    assert {asked, again.peer} == {"d", "d2"}
    node.step(answered(first["b"]), 0.02)
    (finish,) = finishes(node.step(answered(again), 0.02))
    assert finish.experts.tolist() == [[1, 3]]
    assert not finish.degraded  # the gate's own choice stands behind it


def test_a_peer_of_the_plan_stands_in_for_one_that_failed():
    node = origin(up=("c",))
    node.step(e.PeerUp("b"), 0.0)
    node.step(e.CardArrived("b", card("b", "b", "d"), 0.001), 0.0)
    first = {send.peer: send for send in sends(fly(node, 1, scores([0, 5, 4, 3, 0]), now_s=0, deadline_s=1))}
    (again,) = sends(node.step(e.PeerFailed(1, first["c"].dispatch, e.Failure.BUSY, 9), 0.01))
    assert (again.peer, [group.expert for group in again.groups]) == ("b", [3])
    assert not sends(node.step(e.PeerFailed(1, again.dispatch, e.Failure.BUSY, 9), 0.01))  # but once only
    (finish,) = finishes(node.step(answered(first["b"]), 0.02))
    assert finish.experts.tolist() == [[1, -1]]


def test_a_failed_peer_without_twin_is_replaced_by_the_next_best_expert():
    node = origin(up=("b", "c", "d"))
    first = sends(fly(node, 1, scores([-9, 5, 1, 4, 0]), now_s=0, deadline_s=1))
    node.step(answered(first[0]), 0.001)
    (again,) = sends(node.step(e.PeerFailed(1, first[1].dispatch, e.Failure.GONE), 0.002))
    assert again.peer == "c"
    (finish,) = finishes(node.step(answered(again), 0.003))
    assert finish.experts.tolist() == [[1, 2]]
    assert finish.weights[0] == pytest.approx(np.exp([5, 1]) / np.exp([5, 1]).sum(), abs=1e-6)
    assert finish.degraded


def test_without_time_for_another_the_weights_are_renormalised_at_the_deadline():
    node = origin(up=("b", "c"))
    (b, c) = sends(fly(node, 1, scores([-9, 5, 4, 0, 0]), now_s=0, deadline_s=0.1))
    assert b.deadline_s == 0.1
    node.step(answered(b), 0.01)
    node.step(e.OwnAnswered(1), 0.01)
    (finish, *_) = node.step(e.TimerFired(1), 0.1)
    assert isinstance(finish, e.Finish)
    assert finish.experts.tolist() == [[1, -1]]
    assert finish.weights.tolist() == [[1.0, 0.0]]
    assert node.links[c.peer].failed == {e.Failure.TIMEOUT: 1}


def test_samples_that_nobody_answers_get_the_own_expert():
    node = origin(up=("b",))
    (b,) = sends(fly(node, 1, scores([-9, 5, 4, 0, 0], [-9, 5, 4, 0, 0]), now_s=0, deadline_s=0.1))
    node.step(e.OwnAnswered(1), 0.01)
    (finish,) = finishes(node.step(e.PeerFailed(1, b.dispatch, e.Failure.GONE), 0.02))
    assert finish.own
    assert finish.experts.max(axis=1).tolist() == [0, 0]
    assert finish.weights.sum(axis=1).tolist() == [1.0, 1.0]


def test_a_deadline_before_anything_is_there_is_told_late():
    node = origin(up=("b",))
    node.step(e.InferArrived(1, 1, 0.1, None), 0.0)
    (refuse,) = node.step(e.TimerFired(1), 0.1)
    assert refuse == e.Refuse(1, RefusalCode.LATE, "the deadline passed before a had an answer of its own")


def test_a_slow_peer_is_hedged_by_its_twin_and_the_first_answer_counts():
    node = origin(up=("d", "d2"))
    number = 0
    for number in range(1, 40):  # until both are known
        for send in sends(fly(node, number, scores([-9, -9, -9, 5, -9]), now_s=number, deadline_s=number + 1)):
            node.step(e.OwnAnswered(number), number + 0.004)
            node.step(answered(send), number + 0.004)
    number += 1
    effects = fly(node, number, scores([-9, -9, -9, 5, -9]), now_s=number, deadline_s=number + 1)
    (slow,) = sends(effects)
    timer = [effect for effect in effects if isinstance(effect, e.SetTimer)][-1]
    assert number < timer.at_s < number + 0.05
    (hedge,) = sends(node.step(e.TimerFired(number), timer.at_s))
    assert {slow.peer, hedge.peer} == {"d", "d2"}
    node.step(e.OwnAnswered(number), timer.at_s)
    (finish,) = finishes(node.step(answered(hedge), timer.at_s + 0.001))
    assert finish.used[0].dispatch == hedge.dispatch
    assert not finish.degraded
    assert node.step(answered(slow), timer.at_s + 0.002) == []  # the late one is ignored
    assert node.links[slow.peer].rows_in_flight == 0


def test_hedges_are_at_most_one_in_ten_dispatches():
    node = origin(ROOMY, up=("d", "d2"))
    hedged = 0
    for number in range(1, 400):
        effects = fly(node, number, scores([-9, -9, -9, 5, -9]), now_s=number, deadline_s=number + 3)
        (send,) = sends(effects)
        timers = [effect.at_s for effect in effects if isinstance(effect, e.SetTimer)]
        if timers:
            hedged += len(sends(node.step(e.TimerFired(number), timers[-1])))
        node.step(e.OwnAnswered(number), number + 0.5)
        node.step(answered(send), number + 0.5 + 0.1 * (number % 2))
    assert 0 < hedged <= 1 + 0.1 * 400


def test_a_peer_that_fails_in_a_row_is_left_alone_and_probed():
    node = origin(ROOMY, up=("b", "c"))
    probes: list[e.SetProbe] = []
    for number in range(1, 4):
        (send, *_) = sends(fly(node, number, scores([0, 5, 0, 0, 0]), now_s=number, deadline_s=number + 1))
        effects = node.step(e.PeerFailed(number, send.dispatch, e.Failure.TIMEOUT), number + 0.5)
        probes += [effect for effect in effects if isinstance(effect, e.SetProbe)]
    (probe,) = probes
    assert node.links["b"].circuit is Circuit.OPEN
    assert "b" not in {send.peer for send in sends(fly(node, 9, scores([0, 5, 0, 0, 0]), now_s=9, deadline_s=10))}
    assert node.step(e.ProbeDue("b"), probe.at_s) == [e.Probe("b")]
    (again,) = node.step(e.Probed("b", False), probe.at_s)
    assert again.at_s - probe.at_s > probe.at_s - 3.5  # the pause doubles
    assert node.step(e.ProbeDue("b"), again.at_s) == [e.Probe("b")]
    node.step(e.Probed("b", True), again.at_s)
    assert "b" in {send.peer for send in sends(fly(node, 10, scores([0, 5, 0, 0, 0]), now_s=20, deadline_s=21))}


def test_one_reply_that_is_not_finite_is_enough():
    node = origin(up=("b", "c"))
    (send, *_) = sends(fly(node, 1, scores([0, 5, 0, 0, 0]), now_s=0, deadline_s=1))
    node.step(e.PeerFailed(1, send.dispatch, e.Failure.NOT_FINITE), 0.1)
    assert node.links["b"].circuit is Circuit.OPEN


def test_a_lossy_slow_link_loses_to_the_next_best_expert():
    node = origin(up=("b", "c"))
    link = node.links["b"]
    link.loss, link.rtt_s = 0.5, 0.05
    send = sends(fly(node, 1, scores([-9, 5.2, 5.0, 0, 0]), now_s=0, deadline_s=0.06))[0]
    assert send.peer == "c"  # 5.2 + log P < 5.0
    gate_only = origin(replace(RULES, routing=Routing.GATE), up=("b", "c"))
    gate_only.links["b"].loss = 0.5
    send = sends(fly(gate_only, 1, scores([-9, 5.2, 5.0, 0, 0]), now_s=0, deadline_s=0.06))[0]
    assert send.peer == "b"


def test_a_link_that_cannot_make_it_is_not_asked_so_k_shrinks():
    node = origin(up=("b", "c"))
    node.links["b"].rtt_s = node.links["c"].rtt_s = 5.0
    assert sends(fly(node, 1, scores([-9, 5, 4, 0, 0]), now_s=0, deadline_s=0.1)) == []
    (finish,) = finishes(node.step(e.OwnAnswered(1), 0.01))
    assert finish.experts.tolist() == [[0, -1]]


def test_a_thin_link_gets_a_smaller_format():
    node = origin(ROOMY, up=("b",))
    link = node.links["b"]
    link.rtt_s, link.goodput_bytes_s = 0.001, 64 * (8 + 3) * 4 / 0.08  # float32 would take 80 ms for 64 rows
    many = np.tile(scores([-9, 5, -9, -9, -9]), (64, 1))
    assert [send.format for send in sends(fly(node, 1, many, now_s=0, deadline_s=0.1))] == [TensorFormat.FLOAT16]
    assert [send.format for send in sends(fly(node, 2, many, now_s=0, deadline_s=0.08))] == [TensorFormat.INT8]
    assert [send.format for send in sends(fly(node, 4, many, now_s=0, deadline_s=0.06))] == [TensorFormat.INT4]
    assert [send.format for send in sends(fly(node, 3, many, now_s=0, deadline_s=0.9))] == [TensorFormat.FLOAT32]


def test_a_leaving_peer_is_not_asked():
    node = origin(up=("b", "c"))
    node.step(e.CardArrived("b", card("b", draining=True), 0.001), 0.0)
    assert [send.peer for send in sends(fly(node, 1, scores([-9, 5, 4, -9, -9]), now_s=0, deadline_s=1))] == ["c"]


def test_too_many_requests_are_told_busy_at_once():
    node = origin()
    for number in range(3):
        node.step(e.InferArrived(number, 1, 1.0, None), 0.0)
    (refuse,) = node.step(e.InferArrived(9, 1, 1.0, None), 0.0)
    assert isinstance(refuse, e.Refuse)
    assert refuse.code is RefusalCode.BUSY


def test_requests_scored_together_fly_together():
    node = origin(up=("b",))
    for number in (1, 2):
        node.step(e.InferArrived(number, 2, 1.0, None), 0.0)
    (send, own, *_) = node.step(e.Scored(7, ((1, 0), (2, 2)), np.tile(scores([-9, 5, -9, -9, -9]), (4, 1))), 0.0)
    assert isinstance(own, e.RunOwn)
    assert list(send.groups[0].rows) == [0, 1, 2, 3]
    node.step(e.OwnAnswered(7), 0.0)
    (finish,) = finishes(node.step(answered(send), 0.0))
    assert finish.requests == ((1, 0), (2, 2))


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 9999))
def test_weights_are_the_softmax_of_the_scores_that_are_there(rows: int, k: int, seed: int):
    draw = np.random.default_rng(seed)
    values = draw.normal(0, 3, size=(rows, 6)).astype(np.float32)
    experts = draw.integers(-1, 6, size=(rows, k))
    weights = mixture_weights(values, experts)
    for row in range(rows):
        there = [np.exp(np.float64(values[row, expert])) if expert >= 0 else 0.0 for expert in experts[row]]
        assert weights[row] == pytest.approx(np.array(there) / (sum(there) or 1), abs=1e-5)
