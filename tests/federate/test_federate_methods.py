"""FedAvg, FedCE, FedSC and local experts: closed forms and the sources' rules."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from nmoe.data import load_digits, to_unit
from nmoe.federate import FedCE, LocalExchange, Payload, Program, Stage, run
from nmoe.federate.fedsc import external, pack, unpack
from nmoe.learn import Adam, LocalTraining, Sgd, correlation_sensitivity, nearest_neighbours, predict
from nmoe.moe import CONSTANTS, restore
from nmoe.recipes.options import TrainOptions
from nmoe.recipes.program import program_of


def test_one_full_batch_step_is_one_central_step(toy):
    """w - lr sum_i (n_i / n) grad_i is one step on the pooled data; the head's gradient also in closed form."""
    stage = toy.fedavg(rounds=1, training=LocalTraining(optimiser=Sgd(lr=0.1), batch_size=1000, epochs=1))
    found = run((stage,), toy.exchange((stage,)))["fedavg"]
    images = torch.cat([to_unit(toy.local_data(number).images) for number in range(toy.NODES)])
    labels = torch.cat([torch.from_numpy(toy.local_data(number).labels) for number in range(toy.NODES)])
    model = stage.model()
    features = model.extractor(images)
    functional.cross_entropy(model.head(features), labels).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach() - 0.1 * parameter.grad, rtol=1e-4, atol=1e-6)
    error = model.head(features).detach().softmax(dim=1) - functional.one_hot(labels, toy.CLASSES)
    start = stage.start({})
    torch.testing.assert_close(
        found["head.output.weight"], start["head.output.weight"] - 0.1 * error.T @ features.detach() / len(labels), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(found["head.output.bias"], -0.1 * error.mean(dim=0), rtol=1e-4, atol=1e-6)


def test_fedavg_learns_and_keeps_its_constants(toy):
    stage = toy.fedavg(rounds=25, training=LocalTraining(optimiser=Adam(lr=0.01), batch_size=10, epochs=2))
    notes = toy.Notes()
    state = run((stage,), toy.exchange((stage,)), watcher=notes)["fedavg"]
    losses = [record.metrics["loss"] for record in notes.records]
    assert losses[-1] < 0.5 * losses[0]
    for name, tensor in state.items():
        if name.rsplit(".", 1)[-1] in CONSTANTS:
            assert torch.equal(tensor, stage.start({})[name])
    assert state["extractor.pixel_mean"].item() == pytest.approx(0.4)


def test_constants_do_not_travel_up(toy):
    wire = toy.exchange((toy.fedavg(rounds=1),))
    run((toy.fedavg(rounds=1),), wire)
    for reply in wire.record[0].replies.values():
        assert not {name.rsplit(".", 1)[-1] for name in reply.tensors} & CONSTANTS


def test_fedce_is_fedavg_with_a_linear_head(toy):
    stage = FedCE(classifier=toy.fedavg())
    assert (stage.name, stage.rounds) == ("fedavg", 3)
    assert toy.same_states(run((stage,), toy.exchange((stage,))), run((toy.fedavg(),), toy.exchange((toy.fedavg(),))))
    with pytest.raises(ValueError, match="linear head, got 'mlp'"):
        FedCE(classifier=toy.fedavg(head=toy.EXPERT))


@pytest.mark.parametrize(
    ("num_nodes", "participation", "size"), [(10, 0.2, 2), (20, 0.2, 4), (20, 0.24, 4), (5, 0.2, 2), (6, 0.5, 3), (6, 1.0, 6)]
)
def test_cohorts(toy, num_nodes, participation, size):
    """Everybody in round 0, then max(floor(p J), 2) of them, drawn anew."""
    stage, nodes = toy.fedsc(participation=participation), tuple(range(num_nodes))
    assert stage.cohort(nodes, 0) == nodes
    cohorts = [stage.cohort(nodes, round) for round in range(1, 60)]
    for cohort in cohorts:
        assert len(cohort) == len(set(cohort)) == size
        assert set(cohort) <= set(nodes)
        assert list(cohort) == sorted(cohort)
    assert {node for cohort in cohorts for node in cohort} == set(nodes)
    assert cohorts == [stage.cohort(nodes, round) for round in range(1, 60)]


def test_only_the_cohort_is_asked_and_stale_matrices_stay(toy):
    stage = toy.fedsc(participation=0.4, rounds=4)
    wire = toy.exchange((stage,))
    state = stage.start({})
    clock = iter(range(1, 100))
    for round in range(4):
        before, seen = state, len(wire.record)
        call = lambda action, round=round: toy.Call("features", action, round, next(clock), 0)  # noqa: E731
        state, _ = stage.round(state, round, call, wire)
        correlation, train = wire.record[seen:]
        cohort = stage.cohort(wire.nodes, round)
        assert tuple(correlation.requests) == tuple(train.requests) == cohort
        assert len(cohort) == (6 if round == 0 else 2)
        for node in range(6):
            if node in cohort:
                assert torch.equal(state[f"matrix.{node}"], correlation.replies[node].tensors["matrix"])
            else:
                assert torch.equal(state[f"matrix.{node}"], before[f"matrix.{node}"])
        matrices = {str(node): state[f"matrix.{node}"] for node in range(6)}
        for node in cohort:
            others = (sum(matrices.values()) - matrices[str(node)]) / 5
            torch.testing.assert_close(train.requests[node].tensors["external"], others, rtol=1e-4, atol=1e-6)
        weights = {
            name: torch.stack([train.replies[n].tensors[name] for n in cohort]).mean(dim=0) for name in train.replies[cohort[0]].tensors
        }
        for name, mean in weights.items():
            torch.testing.assert_close(state[name], mean)  # uniform, not by size


@given(st.integers(2, 6), st.integers(0, 99), st.data())
def test_external_is_the_sum_less_the_own_over_the_others(num_nodes, seed, data):
    drawn = torch.randn(num_nodes, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    present = data.draw(st.sets(st.integers(0, num_nodes - 1)))
    node = data.draw(st.integers(0, num_nodes - 1))
    found = external({str(j): drawn[j] for j in present}, node, num_nodes)
    if not present - {node}:
        assert found == {}
        return
    total = sum(drawn[j] for j in present)  # a silent node counts as zero
    wanted = (total - (drawn[node] if node in present else 0)) / (num_nodes - 1)
    torch.testing.assert_close(found["external"], wanted)


def test_a_lone_node_has_no_others(toy):
    assert external({"0": torch.ones(3)}, 0, 1) == {}
    wire = toy.exchange((toy.fedsc(),), nodes=1)
    run((toy.fedsc(),), wire)
    assert all(message.requests[0].tensors == {} for message in wire.record if message.call.action == "train")


@given(st.integers(1, 6), st.integers(0, 99))
def test_pack_and_unpack_are_exact_on_the_symmetric_part(dim, seed):
    matrix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed))
    packed = pack(matrix)
    assert packed.shape == (dim * (dim + 1) // 2,)
    assert torch.equal(unpack(packed, dim), (matrix + matrix.T) / 2)
    assert torch.equal(pack(unpack(packed, dim)), packed)


def released(toy, multiplier: float, number: int = 3) -> torch.Tensor:
    stage = toy.fedsc(noise_multiplier=multiplier)
    node = toy.Toy((stage,)).node(number)
    reply = stage.answer(toy.Call("features", "correlation", 0, 1, 0), Payload(stage.start({})), node)
    return reply.tensors["matrix"]


def test_noise_depends_on_the_multiplier_alone(toy):
    clean, one, three = (released(toy, multiplier) for multiplier in (0.0, 1.0, 3.0))
    assert torch.equal(clean, released(toy, 0.0))
    assert (one != clean).all()
    torch.testing.assert_close(three - clean, 3 * (one - clean), rtol=1e-4, atol=1e-5)
    matrix = unpack(clean, 4)
    assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-6
    assert 0 < float(matrix.trace()) <= 2.0 + 1e-5


def test_noise_has_the_calibrated_deviation(toy):
    """Over nodes of known size: off the diagonal the symmetric part halves the variance."""
    draws = []
    for seed in range(60):
        stage = toy.fedsc(noise_multiplier=1.5, seed=seed)
        node = toy.Toy((stage,)).node(3)
        call = toy.Call("features", "correlation", 0, 1, 0)
        noisy = stage.answer(call, Payload(stage.start({})), node).tensors["matrix"]
        clean = replace(stage, noise_multiplier=0.0).answer(call, Payload(stage.start({})), node).tensors["matrix"]
        sigma = 1.5 * correlation_sensitivity(len(node.data), mu=2.0)
        scale = torch.where(torch.eye(4)[tuple(torch.triu_indices(4, 4))] > 0, 1.0, math.sqrt(0.5))
        draws.append((noisy - clean) / (sigma * scale))
    noise = torch.cat(draws)  # 600 standard normals
    assert float(noise.std()) == pytest.approx(1, abs=0.12)
    assert abs(float(noise.mean())) < 0.2


@pytest.mark.parametrize(
    "changes", [{"participation": 0.0}, {"participation": 1.1}, {"noise_multiplier": -1.0}, {"noise_multiplier": math.nan}]
)
def test_bad_fedsc_is_refused(toy, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        toy.fedsc(**changes)


def test_expert_stage_pools_the_statistics_of_all_samples(toy):
    stages = (toy.fedsc(rounds=1), toy.experts())
    states = run(stages, toy.exchange(stages))
    raw = states["features"]
    extractor = restore(toy.EXTRACTOR, {n.removeprefix("extractor."): t for n, t in raw.items() if n.startswith("extractor.")})
    features = torch.cat([predict(extractor, to_unit(toy.local_data(number).images)) for number in range(toy.NODES)]).double()
    mean, deviation = features.mean(dim=0), features.std(dim=0, unbiased=False)
    alive = deviation > 1e-4 * deviation.max()
    torch.testing.assert_close(states["experts"]["feature_mean"].double(), mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(states["experts"]["feature_std"].double()[alive], deviation[alive], rtol=1e-3, atol=1e-5)
    assert (states["experts"]["feature_std"][~alive] == 1).all()
    standard = predict(restore(toy.EXTRACTOR, states["experts"]), to_unit(toy.local_data(0).images))
    torch.testing.assert_close(
        standard.double(), (features[: len(standard)] - mean) / states["experts"]["feature_std"].double(), rtol=1e-2, atol=1e-3
    )


def test_no_expert_leaves_its_node(toy):
    stages = (toy.fedsc(rounds=1), toy.experts())
    wire = toy.exchange(stages)
    run(stages, wire)
    replies = [(m.call.action, reply) for m in wire.record if m.call.stage == "experts" for reply in m.replies.values()]
    assert {action for action, _ in replies} == {"statistics", "train"}
    for action, reply in replies:
        assert reply.tensors.keys() == ({"mean", "square"} if action == "statistics" else set())
        assert all(tensor.shape == (8,) for tensor in reply.tensors.values())


def test_experts_learn_their_own_data_over_the_rounds(toy):
    stages = (toy.fedsc(rounds=1), toy.experts(rounds=12))
    notes = toy.Notes()
    run(stages, toy.exchange(stages), watcher=notes)
    losses = [record.metrics["loss"] for record in notes.records if record.stage == "experts"]
    assert losses[-1] < 0.6 * losses[0]
    assert notes.records[-1].metrics["own_train"] > 0.7


@pytest.mark.slow
def test_fedsc_beats_local_contrast_on_disjoint_labels():
    """Spec 1.8, test 6, at the demo's size, by the source's monitor (kNN on the head's output); measured 0.905 against 0.872, seed 0.

    Smaller trials (5 nodes, 16 or 32 features, at most 30 rounds) show no difference or the opposite.
    """
    program = program_of(TrainOptions(nodes=10, split="shards:2", rounds=20), None)
    read = load_digits()

    def score(last_alpha: float) -> float:
        stage = replace(program.features(), last_alpha=last_alpha)
        whole = replace_stages(program, stage)
        state = run((stage,), LocalExchange(whole, range(10)))[stage.name]
        model = stage.model()
        model.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("matrix.")})
        parts = [(predict(model, to_unit(part.images)), torch.from_numpy(part.labels)) for part in (read.train, read.test)]
        return nearest_neighbours(*parts[0], *parts[1], num_classes=10)

    assert score(0.1) > score(1.0) + 0.01  # alpha 1 throughout is FedAvg on the local loss


def replace_stages(program: Program, stage: Stage) -> Program:
    class Alone(Program):
        def stages(self):
            return (stage,)

        def node(self, number):
            return program.node(number)

    return Alone()
