"""Laws of the protocol, whatever happens in whatever order."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe.moe import Mix, combine
from nmoe.node import events as e
from nmoe.node import protocol as p
from nmoe.node.messages import RefusalCode

NAMES = ("a", "b", "c", "d", "e")
CLASSES = 3
RULES = p.NodeRules(
    name="a", experts=NAMES, neighbours=frozenset("bcd"), k=2, num_classes=CLASSES, mix=Mix.PROBABILITIES, max_requests=3, max_rows=12
)
LOGITS = {name: torch.randn(CLASSES, generator=torch.Generator().manual_seed(index)) for index, name in enumerate(NAMES)}


@dataclass
class World:
    """Carries effects out by collecting them; a hypothesis test picks what happens next."""

    state: p.NodeState = field(default_factory=lambda: p.NodeState(rules=RULES))
    waiting: list[e.Event] = field(default_factory=list)
    answers: dict[int, e.Answer | e.Refuse] = field(default_factory=dict)
    arrived: set[int] = field(default_factory=set)
    sent: set[tuple[int, str]] = field(default_factory=set)
    failed: set[tuple[int, str]] = field(default_factory=set)

    def happen(self, event: e.Event) -> None:
        before = self.state
        self.state, effects = p.step(before, event)
        again, _ = p.step(before, event)
        assert again.requests.keys() == self.state.requests.keys()  # pure
        assert len(self.state.requests) <= RULES.max_requests
        for effect in effects:
            self.carry_out(effect, event)

    def carry_out(self, effect: e.Effect, event: e.Event) -> None:
        number = effect.request
        match effect:
            case e.SetTimer():
                self.waiting.append(e.DeadlinePassed(number))
            case e.ComputeRouting():
                rows = self.state.requests[number].num_rows
                scores = torch.randn(rows, len(NAMES), generator=torch.Generator().manual_seed(number))
                assert effect.mask[0]
                assert not effect.mask[4]  # e is no neighbour
                best = scores.masked_fill(~torch.tensor(effect.mask), -torch.inf).topk(effect.k, dim=1)
                self.waiting.append(
                    e.Routed(request=number, features=torch.zeros(rows, 4), experts=best.indices, weights=best.values.softmax(dim=1))
                )
            case e.ComputeExpert():
                self.waiting.append(e.LocalAnswered(request=number, logits=LOGITS["a"].expand(len(effect.features), -1)))
            case e.SendExpertRequest():
                assert (number, effect.peer) not in self.sent  # at most one message per peer and request
                assert effect.peer in self.state.up
                self.sent.add((number, effect.peer))
                self.waiting.append(
                    e.PeerAnswered(request=number, peer=effect.peer, logits=LOGITS[effect.peer].expand(len(effect.features), -1))
                )
            case e.Answer() | e.Refuse():
                assert number not in self.answers  # exactly one answer
                assert number in self.arrived
                self.answers[number] = effect
                if isinstance(effect, e.Answer):
                    check(effect)


def check(answer: e.Answer) -> None:
    assert torch.allclose(answer.weights.sum(dim=1), torch.ones(len(answer.weights)))
    assert ((answer.weights > 0) == (answer.experts >= 0)).all()
    for row, experts in enumerate(answer.experts):
        chosen = experts[experts >= 0]
        assert len(chosen.unique()) == len(chosen)
        logits = torch.stack([LOGITS[NAMES[int(index)]] for index in chosen])
        weights = answer.weights[row, experts >= 0]
        assert torch.allclose(answer.probabilities[row], combine(logits[None], weights[None], mix=RULES.mix)[0], atol=1e-6)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_request_is_answered_once_whatever_happens(data: st.DataObject) -> None:
    world = World()
    for _ in range(data.draw(st.integers(1, 60))):
        choice = data.draw(st.integers(0, 9))
        if choice == 0:
            world.happen(e.PeerUp(data.draw(st.sampled_from([*NAMES, "stranger"]))))
        elif choice == 1:
            world.happen(e.PeerDown(data.draw(st.sampled_from([*NAMES, "stranger"]))))
        elif choice <= 3:
            number = data.draw(st.integers(0, 8))
            if number not in world.arrived:
                world.arrived.add(number)
                k = data.draw(st.sampled_from([None, 1, 2, 5, 6]))
                rows = data.draw(st.integers(1, 15))
                world.happen(e.InferArrived(request=number, num_rows=rows, deadline_s=1.0, k=k))
        elif world.waiting:
            event = data.draw(st.sampled_from(world.waiting))
            if data.draw(st.booleans()):  # otherwise it will come again
                world.waiting.remove(event)
            if isinstance(event, e.PeerAnswered):
                fate = data.draw(st.integers(0, 4))
                if fate == 0:
                    event = e.PeerRefused(request=event.request, peer=event.peer)
                elif fate == 1:
                    event = e.PeerGone(request=event.request, peer=event.peer)
                elif fate == 2:
                    wrong = data.draw(st.sampled_from([event.logits[:-1], event.logits * torch.nan, event.logits[:, :-1]]))
                    event = e.PeerAnswered(request=event.request, peer=event.peer, logits=wrong)
            world.happen(event)
    for number in world.arrived:  # the timer of each runs out at last
        world.happen(e.DeadlinePassed(number))
    assert world.answers.keys() == world.arrived
    assert not world.state.requests


def start(state: p.NodeState, experts: list[list[int]], weights: list[list[float]], *, number: int = 1) -> p.Step:
    state, _ = p.step(state, e.InferArrived(request=number, num_rows=len(experts), deadline_s=1.0, k=None))
    features = torch.arange(len(experts) * 4.0).view(-1, 4)
    return p.step(state, e.Routed(request=number, features=features, experts=torch.tensor(experts), weights=torch.tensor(weights)))


@pytest.fixture
def state() -> p.NodeState:
    return p.NodeState(rules=RULES, up=frozenset("bcd"))


def rows(name: str, count: int) -> torch.Tensor:
    return LOGITS[name].expand(count, -1)


def test_rows_are_grouped_by_peer(state: p.NodeState) -> None:
    state, effects = start(state, [[1, 2], [2, 0], [1, 2]], [[0.6, 0.4]] * 3)
    sends = {effect.peer: effect.features for effect in effects if isinstance(effect, e.SendExpertRequest)}
    assert sends.keys() == {"b", "c"}
    assert sends["b"][:, 0].tolist() == [0.0, 8.0]
    assert sends["c"][:, 0].tolist() == [0.0, 4.0, 8.0]


def test_a_refusal_costs_renormalisation_at_once(state: p.NodeState) -> None:
    state, _ = start(state, [[1, 2], [2, 0]], [[0.6, 0.4], [0.7, 0.3]])
    state, _ = p.step(state, e.LocalAnswered(request=1, logits=rows("a", 2)))
    state, effects = p.step(state, e.PeerAnswered(request=1, peer="b", logits=rows("b", 1)))
    assert effects == ()
    state, effects = p.step(state, e.PeerRefused(request=1, peer="c"))
    (answer,) = effects
    assert isinstance(answer, e.Answer)
    assert answer.degraded
    assert answer.experts.tolist() == [[1, -1], [-1, 0]]
    assert answer.weights.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert p.step(state, e.PeerAnswered(request=1, peer="c", logits=rows("c", 2))) == (state, ())  # too late, ignored


def test_with_no_answer_at_all_the_own_expert_answers_at_the_deadline(state: p.NodeState) -> None:
    state, _ = start(state, [[1, 2]], [[0.6, 0.4]])
    state, effects = p.step(state, e.LocalAnswered(request=1, logits=rows("a", 1)))
    assert effects == ()
    _, (answer,) = p.step(state, e.DeadlinePassed(1))
    assert isinstance(answer, e.Answer)
    assert answer.experts.tolist() == [[0, -1]]
    assert torch.allclose(answer.probabilities[0], LOGITS["a"].softmax(dim=0))


def test_all_weight_on_a_lost_expert_gives_no_nan(state: p.NodeState) -> None:
    state, _ = start(state, [[1, 2]], [[1.0, 0.0]])
    state, _ = p.step(state, e.LocalAnswered(request=1, logits=rows("a", 1)))
    state, _ = p.step(state, e.PeerAnswered(request=1, peer="c", logits=rows("c", 1)))
    _, (answer,) = p.step(state, e.PeerGone(request=1, peer="b"))
    assert isinstance(answer, e.Answer)
    assert answer.experts.tolist() == [[0, -1]]


def test_a_peer_that_goes_down_ends_the_wait_for_it_in_every_request(state: p.NodeState) -> None:
    for number in (1, 2):
        state, _ = start(state, [[1, 0]], [[0.5, 0.5]], number=number)
        state, _ = p.step(state, e.LocalAnswered(request=number, logits=rows("a", 1)))
    _, effects = p.step(state, e.PeerDown("b"))
    assert [type(effect) for effect in effects] == [e.Answer, e.Answer]


def test_a_peer_gone_before_sending_is_not_asked(state: p.NodeState) -> None:
    state, _ = p.step(state, e.InferArrived(request=1, num_rows=1, deadline_s=1.0, k=None))
    state, _ = p.step(state, e.PeerDown("b"))
    routed = e.Routed(request=1, features=torch.zeros(1, 4), experts=torch.tensor([[1, 2]]), weights=torch.tensor([[0.5, 0.5]]))
    _, effects = p.step(state, routed)
    assert [effect.peer for effect in effects if isinstance(effect, e.SendExpertRequest)] == ["c"]


def test_a_deadline_before_any_computation_is_refused_as_late(state: p.NodeState) -> None:
    state, _ = p.step(state, e.InferArrived(request=1, num_rows=1, deadline_s=1.0, k=None))
    _, (refused,) = p.step(state, e.DeadlinePassed(1))
    assert isinstance(refused, e.Refuse)
    assert refused.code is RefusalCode.LATE


def test_one_request_too_many_is_refused_at_once(state: p.NodeState) -> None:
    for number in range(4):
        state, effects = p.step(state, e.InferArrived(request=number, num_rows=1, deadline_s=1.0, k=None))
    (refused,) = effects
    assert isinstance(refused, e.Refuse)
    assert refused.code is RefusalCode.BUSY


def test_own_failure_fails_that_request_alone(state: p.NodeState) -> None:
    for number in (1, 2):
        state, _ = p.step(state, e.InferArrived(request=number, num_rows=1, deadline_s=1.0, k=None))
    state, (refused,) = p.step(state, e.ComputeFailed(request=1, reason="out of memory"))
    assert isinstance(refused, e.Refuse)
    assert set(state.requests) == {2}


def test_the_gate_is_masked_to_those_up(state: p.NodeState) -> None:
    state, _ = p.step(state, e.PeerDown("b"))
    state, _ = p.step(state, e.PeerDown("c"))
    _, effects = p.step(state, e.InferArrived(request=1, num_rows=1, deadline_s=1.0, k=5))
    routing = effects[1]
    assert isinstance(routing, e.ComputeRouting)
    assert routing.mask == (True, False, False, True, False)
    assert routing.k == 2
