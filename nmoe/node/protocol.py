"""Protocol: what a node decides, as a pure function of what happened.

``step(state, event) -> (state, effects)`` reads no clock, waits for nothing and sends nothing; ``runner.py`` carries effects out.

Source: NMoE (arXiv 2511.01743): h = F(x); the gate picks k experts; h goes to their owners; y' = sum_j G(h)_j H_j(h).

Departures (the source is silent about failure):
- The gate is masked to itself and the neighbours that are up, and k shrinks to their number.
- A peer that refuses, is gone, or answers nonsense costs its weight at once; the rest of each sample's weights are renormalised. A sample
  none of whose chosen experts (of positive weight) answered is answered by the node's own expert.
- The own expert is computed for every row of every request, right after the requests to the peers have left: it costs one small expert
  beside the extractor (a few percent), overlaps with the network, and whatever happens afterwards the fallback is at hand. A deadline that
  passes earlier still, before this node could compute its own answer, is answered by a refusal ("late").
- All rows for one peer travel in one message.

| paper | here |
|---|---|
| h | features |
| G(h) | Routed.experts, Routed.weights |
| H_j(h) | LocalAnswered.logits, PeerAnswered.logits |
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto

import torch
from torch import Tensor

from nmoe.moe.layer import Mix, combine
from nmoe.node.events import (
    Answer,
    ComputeExpert,
    ComputeFailed,
    ComputeRouting,
    DeadlinePassed,
    Effect,
    Event,
    InferArrived,
    LocalAnswered,
    PeerAnswered,
    PeerDown,
    PeerGone,
    PeerRefused,
    PeerUp,
    Refuse,
    Routed,
    SendExpertRequest,
    SetTimer,
)
from nmoe.node.messages import RefusalCode


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRules:
    """What a node knows before anything happens.

    Attributes:
        name: this node.
        experts: all nodes, in the order of the gate's outputs.
        neighbours: nodes this one may ask.
        k: experts asked per sample unless the request says otherwise.
        num_classes: logits per sample.
        mix: what is averaged.
        max_requests: infer requests in progress; one more is refused as busy. Our choice.
        max_rows: samples in progress over all requests; a larger request is taken only when it is alone. Our choice.
    """

    name: str
    experts: tuple[str, ...]
    neighbours: frozenset[str]
    k: int
    num_classes: int
    mix: Mix
    max_requests: int = 64
    max_rows: int = 16384


class Asked(Enum):
    """Where an asked peer stands, as long as it has not answered."""

    WAITING = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request in progress.

    Attributes:
        num_rows: samples.
        k: experts wanted per sample; the gate may have had fewer to choose from.
        deadline_s: when its answer is due.
        experts, weights: the routing; None until computed.
        own: the own expert's logits; None until computed.
        peers: every peer asked, with its logits once they are there.
    """

    num_rows: int
    k: int
    deadline_s: float
    experts: Tensor | None = None
    weights: Tensor | None = None
    own: Tensor | None = None
    peers: Mapping[str, Asked | Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """Everything a node knows: its rules, who is up, and the requests in progress (at most ``rules.max_requests``)."""

    rules: NodeRules
    up: frozenset[str] = frozenset()
    requests: Mapping[int, Request] = field(default_factory=dict)


Step = tuple[NodeState, tuple[Effect, ...]]


def step(state: NodeState, event: Event) -> Step:
    """Decide what follows from one event.

    Args:
        state: the node before.
        event: what happened. Events about requests that are over, or about peers that were not asked, change nothing.

    Returns:
        The node afterwards, and what is to be done, in order.
    """
    match event:
        case PeerUp(peer):
            return _peer_up(state, peer)
        case PeerDown(peer):
            return _peer_down(state, peer)
        case InferArrived():
            return _arrived(state, event)
    request = state.requests.get(event.request)
    return (state, ()) if request is None else _step_request(state, request, event)


def _step_request(
    state: NodeState,
    request: Request,
    event: Routed | LocalAnswered | ComputeFailed | PeerAnswered | PeerRefused | PeerGone | DeadlinePassed,
) -> Step:
    match event:
        case Routed():
            return _routed(state, request, event)
        case LocalAnswered():
            return _progress(state, event.request, replace(request, own=event.logits))
        case ComputeFailed():
            return _finish(state, event.request, Refuse(request=event.request, code=RefusalCode.FAILED, reason=event.reason))
        case PeerAnswered():
            return _peer_answered(state, request, event)
        case PeerRefused() | PeerGone():
            return _peer_failed(state, event.request, request, event.peer)
        case DeadlinePassed():
            return _deadline(state, event.request, request)


def _peer_up(state: NodeState, peer: str) -> Step:
    if peer not in state.rules.neighbours:
        return state, ()
    return replace(state, up=state.up | {peer}), ()


def _peer_down(state: NodeState, peer: str) -> Step:
    effects: tuple[Effect, ...] = ()
    state = replace(state, up=state.up - {peer})
    for number, request in tuple(state.requests.items()):
        state, more = _peer_failed(state, number, request, peer)
        effects += more
    return state, effects


def _arrived(state: NodeState, event: InferArrived) -> Step:
    rules = state.rules
    if event.request in state.requests:
        return state, ()
    rows = sum(request.num_rows for request in state.requests.values())
    if len(state.requests) >= rules.max_requests or (rows and rows + event.num_rows > rules.max_rows):
        reason = f"{rules.name} has {len(state.requests)} requests with {rows} samples in progress"
        return state, (Refuse(request=event.request, code=RefusalCode.BUSY, reason=reason),)
    k = rules.k if event.k is None else event.k
    if not 1 <= k <= len(rules.experts):
        reason = f"k must be between 1 and the {len(rules.experts)} experts, got {k}"
        return state, (Refuse(request=event.request, code=RefusalCode.BAD_SHAPE, reason=reason),)
    mask = tuple(name == rules.name or name in state.up for name in rules.experts)
    request = Request(num_rows=event.num_rows, k=k, deadline_s=event.deadline_s)
    return replace(state, requests={**state.requests, event.request: request}), (
        SetTimer(request=event.request, at_s=event.deadline_s),
        ComputeRouting(request=event.request, mask=mask, k=min(k, sum(mask))),
    )


def _routed(state: NodeState, request: Request, event: Routed) -> Step:
    if request.experts is not None:
        return state, ()
    rules = state.rules
    peers: dict[str, Asked | Tensor] = {}
    effects: list[Effect] = []
    for index in sorted(set(event.experts.flatten().tolist())):
        peer = rules.experts[index]
        if peer == rules.name:
            continue
        if peer not in state.up:  # went down while the routing was computed
            peers[peer] = Asked.FAILED
            continue
        peers[peer] = Asked.WAITING
        rows = (event.experts == index).any(dim=1)  # [batch]
        effects.append(SendExpertRequest(request=event.request, peer=peer, features=event.features[rows], deadline_s=request.deadline_s))
    effects.append(ComputeExpert(request=event.request, features=event.features))
    request = replace(request, experts=event.experts, weights=event.weights, peers=peers)
    state, more = _progress(state, event.request, request)
    return state, (*effects, *more)


def _peer_answered(state: NodeState, request: Request, event: PeerAnswered) -> Step:
    if request.peers.get(event.peer) is not Asked.WAITING:
        return state, ()
    assert request.experts is not None  # peers are asked once the routing is known
    rows = int((request.experts == state.rules.experts.index(event.peer)).any(dim=1).sum())
    if event.logits.shape != (rows, state.rules.num_classes) or not bool(event.logits.isfinite().all()):
        return _peer_failed(state, event.request, request, event.peer)
    return _progress(state, event.request, replace(request, peers={**request.peers, event.peer: event.logits}))


def _peer_failed(state: NodeState, number: int, request: Request, peer: str) -> Step:
    if request.peers.get(peer) is not Asked.WAITING:
        return state, ()
    return _progress(state, number, replace(request, peers={**request.peers, peer: Asked.FAILED}))


def _progress(state: NodeState, number: int, request: Request) -> Step:
    """Keep the request as it now is, or answer it when nothing is left to wait for."""
    waiting = any(asked is Asked.WAITING for asked in request.peers.values())
    if request.experts is None or waiting or not _can_answer(state.rules, request):
        return replace(state, requests={**state.requests, number: request}), ()
    return _finish(state, number, _answer(state.rules, number, request))


def _deadline(state: NodeState, number: int, request: Request) -> Step:
    if request.experts is not None and _can_answer(state.rules, request, at_deadline=True):
        return _finish(state, number, _answer(state.rules, number, request))
    reason = f"the deadline passed before {state.rules.name} had computed its own answer"
    return _finish(state, number, Refuse(request=number, code=RefusalCode.LATE, reason=reason))


def _finish(state: NodeState, number: int, effect: Answer | Refuse) -> Step:
    return replace(state, requests={other: kept for other, kept in state.requests.items() if other != number}), (effect,)


def _can_answer(rules: NodeRules, request: Request, *, at_deadline: bool = False) -> bool:
    """Whether every row has an answer; before the deadline the own expert must have answered wherever it was chosen."""
    if request.own is not None:
        return True
    assert request.experts is not None
    if not at_deadline and bool((request.experts == rules.experts.index(rules.name)).any()):
        return False
    return bool((_answered(rules, request)[1].sum(dim=1) > 0).all())


def _answered(rules: NodeRules, request: Request) -> tuple[Tensor, Tensor]:
    """Return the logits [batch, k, classes] that are there (zeros elsewhere), and the weights [batch, k] of those."""
    assert request.experts is not None
    assert request.weights is not None
    logits = request.weights.new_zeros(*request.experts.shape, rules.num_classes)  # [batch, k, classes]
    there = torch.zeros_like(request.experts, dtype=torch.bool)  # [batch, k]
    for peer, answer in request.peers.items():
        if isinstance(answer, Tensor):
            chosen = request.experts == rules.experts.index(peer)
            logits[chosen] = answer  # rows in order, as they were sent: an expert stands once in a row
            there |= chosen
    if request.own is not None:
        row, column = (request.experts == rules.experts.index(rules.name)).nonzero(as_tuple=True)
        logits[row, column] = request.own[row]
        there[row, column] = True
    return logits, request.weights * there


def _answer(rules: NodeRules, number: int, request: Request) -> Answer:
    assert request.experts is not None
    logits, weights = _answered(rules, request)
    experts = request.experts.where(weights > 0, -1)
    total = weights.sum(dim=1, keepdim=True)  # [batch, 1]
    alone = total.squeeze(1) <= 0  # samples that only the own expert can answer
    if bool(alone.any()):
        assert request.own is not None
        experts[alone], weights[alone] = -1, 0.0
        experts[alone, 0], weights[alone, 0], logits[alone, 0] = rules.experts.index(rules.name), 1.0, request.own[alone]
        total = total.masked_fill(alone.unsqueeze(1), 1.0)
    weights = weights / total  # renormalised over those that answered
    probabilities = combine(logits, weights, mix=rules.mix)
    missing = request.k - experts.shape[1]
    if missing:  # fewer than k could be reached
        experts = torch.nn.functional.pad(experts, (0, missing), value=-1)
        weights = torch.nn.functional.pad(weights, (0, missing))
    failed = any(not isinstance(answer, Tensor) for answer in request.peers.values())
    return Answer(request=number, probabilities=probabilities, experts=experts, weights=weights, degraded=failed or missing > 0)
