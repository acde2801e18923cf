"""Gates: who trains, whom batches ask, what travels, and that experts never do."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmoe.core.bundle import read_bundle
from nmoe.federate import (
    FedGate,
    FullSync,
    HeadSync,
    NeighbourSync,
    PeriodicSync,
    RanGate,
    Reading,
    RollGate,
    TrunkSync,
    run,
)
from nmoe.federate.base import node_name


def gate_runs(toy, stage, *, folder=None):
    """Return the final state and the messages of stage 3 alone."""
    stages = (*toy.before_gates(), stage)
    wire = toy.exchange(stages, folder=folder)
    states = run(stages, wire)
    return states["gates"], [message for message in wire.record if message.call.stage == "gates"], wire


def trainers(messages) -> list[tuple[int, ...]]:
    return [tuple(message.requests) for message in messages if message.call.action == "train"]


def test_rangate_trains_one_random_node_a_round(toy):
    _, messages, _ = gate_runs(toy, toy.gates(scheme=RanGate(), rounds=20))
    asked = trainers(messages)
    assert all(len(nodes) == 1 for nodes in asked)
    assert len(set(asked)) > 3
    assert asked != sorted(asked)


def test_rangate_hands_the_trained_gate_on_as_it_is(toy):
    state, messages, _ = gate_runs(toy, toy.gates(scheme=RanGate(), rounds=3))
    rounds = [message for message in messages if message.call.action == "train"]
    for before, after in itertools.pairwise(rounds):
        (reply,), (request,) = before.replies.values(), after.requests.values()
        assert toy.same_state(reply.tensors, request.tensors)
    (last,) = rounds[-1].replies.values()
    assert toy.same_state(last.tensors, state)


def test_rangate_draws_all_nodes_alike():
    drawn = [RanGate().trainers(tuple(range(5)), round, 3)[0] for round in range(2000)]
    assert all(abs(drawn.count(node) - 400) < 90 for node in range(5))  # 5 standard deviations


def test_rollgate_goes_round_in_turn(toy):
    _, messages, _ = gate_runs(toy, toy.gates(scheme=RollGate(), rounds=8))
    assert trainers(messages) == [(round % 6,) for round in range(8)]


@pytest.mark.parametrize("scheme", [FedGate(), RanGate(reading=Reading.B), RollGate(reading=Reading.B)])
def test_parallel_schemes_train_everybody(toy, scheme):
    _, messages, _ = gate_runs(toy, toy.gates(scheme=scheme))
    assert trainers(messages) == [tuple(range(6))] * 3


masks = st.lists(st.booleans(), min_size=2, max_size=8).filter(any).map(torch.tensor)


@given(masks, st.data(), st.integers(0, 500), st.sampled_from([RanGate, RollGate]))
def test_reading_b_asks_exactly_k_reachable_experts(mask, data, batch, scheme):
    k = data.draw(st.integers(1, int(mask.sum())))
    asked = scheme(reading=Reading.B).asked(mask, k, batch, torch.Generator().manual_seed(batch))
    assert int(asked.sum()) == k
    assert not (asked & ~mask).any()
    for whole in (scheme(), FedGate()):
        assert torch.equal(whole.asked(mask, k, batch, torch.Generator()), mask)


def test_reading_b_of_rollgate_asks_all_in_a_fixed_order():
    mask = torch.tensor([True, False, True, True, True, True])
    order = [RollGate(reading=Reading.B).asked(mask, 2, batch, torch.Generator()).nonzero().squeeze(1).tolist() for batch in range(6)]
    assert order == [[0, 2], [3, 4], [0, 5], [2, 3], [4, 5], [0, 2]]


def test_reading_b_of_rangate_draws_all_pairs():
    generator = torch.Generator().manual_seed(0)
    drawn = [tuple(RanGate(reading=Reading.B).asked(torch.ones(4, dtype=torch.bool), 2, 0, generator).tolist()) for _ in range(600)]
    assert len(set(drawn)) == 6
    assert all(abs(drawn.count(pair) - 100) < 50 for pair in set(drawn))


def travelling(message) -> tuple[set[str], set[str]]:
    down = {name for payload in message.requests.values() for name in payload.tensors}
    up = {name for payload in message.replies.values() for name in payload.tensors}
    return down, up


@pytest.mark.parametrize(
    ("sync", "shared"), [(TrunkSync(), lambda n: n.startswith("trunk.")), (HeadSync(), lambda n: not n.startswith("trunk."))]
)
def test_partial_synchronisation_shares_one_part_and_leaves_the_other_personal(toy, tmp_path, sync, shared):
    stage = toy.gates(scheme=FedGate(sync=sync))
    stages = (*toy.before_gates(), stage, toy.bundles(stage))
    wire = toy.exchange(stages, folder=tmp_path)
    states = run(stages, wire)
    rounds = [message for message in wire.record if message.call.action == "train" and message.call.stage == "gates"]
    names = set(states["gates"])
    part = {name for name in names if shared(name)}
    assert part
    assert part < names
    assert travelling(rounds[0]) == (names, part)
    assert [travelling(message) for message in rounds[1:]] == [(part, part)] * 2
    served = [read_bundle(tmp_path / "bundles" / node_name(node)).tensors["gate"] for node in range(6)]
    for name in names:
        equal = [torch.equal(gate[name], served[0][name]) for gate in served[1:]]
        if name in part:
            assert all(equal)
            assert torch.equal(served[0][name], states["gates"][name])
        else:
            assert not any(equal), f"{name} is the same on two nodes"


def test_full_synchronisation_serves_one_gate(toy, tmp_path):
    stage = toy.gates(scheme=FedGate(sync=FullSync()))
    stages = (*toy.before_gates(), stage, toy.bundles(stage))
    states = run(stages, toy.exchange(stages, folder=tmp_path))
    for node in range(6):
        assert toy.same_state(read_bundle(tmp_path / "bundles" / node_name(node)).tensors["gate"], states["gates"])


def test_periodic_synchronisation_sends_only_in_its_rounds_and_the_last(toy):
    stage = toy.gates(scheme=FedGate(sync=PeriodicSync(period=3)), rounds=8)
    state, messages, _ = gate_runs(toy, stage)
    names = set(state)
    moves = [travelling(message) for message in messages if message.call.action == "train"]
    assert [bool(up) for _, up in moves] == [False, False, True, False, False, True, False, True]
    assert [bool(down) for down, _ in moves] == [True, False, False, True, False, False, True, False]
    assert all(part in (set(), names) for move in moves for part in move)
    last = [message for message in messages if message.call.action == "train"][-1]
    sizes = {node: float(reply.facts["samples"]) for node, reply in last.replies.items()}
    for name in names:
        mean = sum(sizes[n] * reply.tensors[name] for n, reply in last.replies.items()) / sum(sizes.values())
        torch.testing.assert_close(state[name], mean, rtol=1e-4, atol=1e-6)


def test_period_below_one_is_refused():
    with pytest.raises(ValueError, match="period must be at least 1"):
        PeriodicSync(period=0)


def test_a_synchronisation_that_shares_nothing_is_refused(toy):
    flat = type(toy.GATE)(kind="top_k", arguments=toy.GATE.arguments | {"trunk_dim": 0})
    with pytest.raises(ValueError, match="TrunkSync leaves nothing to synchronise"):
        toy.gates(gate=flat, scheme=FedGate(sync=TrunkSync())).start({})


def test_neighbour_synchronisation_averages_rows_over_those_that_reach_them(toy):
    stage = toy.gates(scheme=FedGate(sync=NeighbourSync()), rounds=2)
    state, messages, _ = gate_runs(toy, stage)
    last = [message for message in messages if message.call.action == "train"][-1]
    for name, tensor in state.items():
        if name.startswith("trunk."):
            holders = {expert: list(range(6)) for expert in [None]}
        else:
            holders = {expert: [expert, *toy.RING[expert]] for expert in range(6)}  # a ring is symmetric
        for expert, nodes in holders.items():
            rows = [last.replies[node].tensors[name] for node in nodes]
            weights = [float(last.replies[node].facts["samples"]) for node in nodes]
            mean = sum(w * (row if expert is None else row[expert]) for w, row in zip(weights, rows, strict=True)) / sum(weights)
            torch.testing.assert_close(tensor if expert is None else tensor[expert], mean, rtol=1e-4, atol=1e-6)


def test_a_row_nobody_reaches_keeps_its_value(toy):
    stage = toy.gates(scheme=FedGate(sync=NeighbourSync()), rounds=2)
    stages = (*toy.before_gates(), stage)
    lost = {2, 3, 4}  # all that reach expert 3
    wire = toy.exchange(
        stages, fail=lambda call, node: "lost" if call.stage == "gates" and call.action == "train" and node in lost else None
    )
    state = run(stages, wire)["gates"]
    start = stage.start({})
    for name in ("output.weight", "output.bias", "noise.weight", "noise.bias"):
        assert torch.equal(state[name][3], start[name][3])
    assert not torch.equal(state["output.weight"][0], start["output.weight"][0])


def test_only_features_logits_and_gates_travel(toy):
    """Stage 3 as the wire sees it: every tensor is of one of three kinds, and no expert's weight is among them."""
    state, messages, wire = gate_runs(toy, toy.gates())
    members = wire.inner._members
    weights = [tensor for node in members.values() for tensor in node.memory.read("expert", before=10**6).values()]
    sizes = {node: len(member.data) for node, member in members.items()}
    for message in messages:
        down, up = message.requests, message.replies
        if message.call.action == "features":
            assert all(request.tensors == {} for request in down.values())
            assert {node: reply.tensors["features"].shape for node, reply in up.items()} == {n: (sizes[n], 8) for n in sizes}
        elif message.call.action == "logits":
            for node, reply in up.items():
                assert set(reply.tensors) == set(down[node].tensors) == {str(other) for other in toy.RING[node]}
                assert all(tensor.shape == (sizes[int(origin)], toy.CLASSES) for origin, tensor in reply.tensors.items())
        elif message.call.action == "keep":
            for node, request in down.items():
                assert set(request.tensors) == {str(other) for other in toy.RING[node]}
                assert up[node].tensors == {}
        else:
            assert all(set(payload.tensors) <= set(state) for payload in (*down.values(), *up.values()))
        for payload in (*down.values(), *up.values()):
            for tensor in payload.tensors.values():
                assert not tensor.requires_grad
                assert not any(tensor.shape == weight.shape and torch.equal(tensor, weight) for weight in weights if weight.any())
    assert [message.call.action for message in messages] == ["features", "logits", "keep", "train", "train", "train"]


def test_experts_and_extractor_are_the_same_after_stage_three(toy, tmp_path):
    def kept(stages):
        wire = toy.exchange(stages)
        run(stages, wire)
        return [{name: node.memory.read(name, before=10**6) for name in ("expert", "extractor")} for node in wire.inner._members.values()]

    before, after = kept(toy.before_gates()), kept((*toy.before_gates(), toy.gates()))
    for one, other in zip(before, after, strict=True):
        assert toy.same_states(one, other)


def test_masks_are_the_neighbourhood(toy):
    assert toy.gates().mask(0).nonzero().squeeze(1).tolist() == [0, 1, 5]
    assert toy.gates(neighbours=toy.ALL).mask(2).all()


@pytest.mark.parametrize("k", [0, 4, -1])
def test_k_beyond_the_neighbourhood_is_refused(toy, k):
    with pytest.raises(ValueError, match=f"k must be between 1 and 3, the experts a node can reach, got {k}"):
        toy.gates(k=k)


def test_a_gate_that_is_none_is_refused(toy):
    with pytest.raises(ValueError, match="a gate is wanted, got kind 'mlp'"):
        toy.gates(gate=toy.EXPERT).start({})


def test_a_silent_neighbour_is_routed_round(toy):
    """Node 2 never answers in stage 3: its neighbours learn without it, and never ask it in training."""
    stages = (*toy.before_gates(), toy.gates())
    wire, notes = toy.exchange(stages, fail=lambda call, node: "gone" if call.stage == "gates" and node == 2 else None), toy.Notes()
    run(stages, wire, watcher=notes)
    assert set(wire.inner._members[1].memory.read("logits", before=10**6)) == {"0", "1"}
    assert set(wire.inner._members[0].memory.read("logits", before=10**6)) == {"0", "1", "5"}
    assert all(line == "node-2: gone" for record in notes.records for line in record.refused)


def test_gates_learn(toy):
    """Without noise, all experts asked, so that the loss is smooth and must fall."""
    quiet = type(toy.GATE)(kind="top_k", arguments=toy.GATE.arguments | {"noisy": False})
    stages = (toy.fedsc(rounds=1), toy.experts(rounds=10), toy.gates(rounds=25, neighbours=toy.ALL, k=6, balance=0.0, gate=quiet))
    notes = toy.Notes()
    run(stages, toy.exchange(stages), watcher=notes)
    losses = [record.metrics["loss"] for record in notes.records if record.stage == "gates"]
    assert losses[-1] < 0.9 * losses[0]
