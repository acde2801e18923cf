"""Newcomers: the column against least squares, calibration against autograd, the quiz against liars, and digits from end to end."""

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor
from torch.nn import functional

from nmoe.core.bundle import Bundle, ModelSpec, Provenance, read_bundle, write_bundle
from nmoe.core.errors import BundleError
from nmoe.core.seeds import torch_generator
from nmoe.data import ImageDataset, to_unit
from nmoe.federate import LocalExchange, Node, NodeMemory, Program, node_name, run
from nmoe.learn import predict, train_supervised
from nmoe.moe import Expert, Mix, NodeModel, StackedExperts, TopKGate, build, combine, node_model, pick, route
from nmoe.moe.newcomer import (
    Calibration,
    Column,
    ExtendedGate,
    Prototypes,
    class_prototypes,
    gate_column,
    grade,
    hidden_of,
    pass_mark,
    quiz,
    read_prototypes,
    unsound,
)
from nmoe.recipes.options import TrainOptions
from nmoe.recipes.program import TrainProgram, program_of

DIM, KNOWN, CLASSES = 6, 3, 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def a_gate(trunk_dim: int = 0) -> TopKGate:
    gate = TopKGate(feature_dim=DIM, num_experts=KNOWN, trunk_dim=trunk_dim, noisy=False, generator=generator())
    with torch.no_grad():
        for index, parameter in enumerate(gate.parameters()):
            parameter.normal_(generator=generator(index))
    return gate.eval().requires_grad_(False)


def some_prototypes(*classes: int, seed: int = 0, scale: float = 1.0) -> Prototypes:
    means = scale * torch.randn(len(classes), DIM, generator=generator(seed))
    return Prototypes(classes=torch.tensor(classes, dtype=torch.int64), means=means, counts=torch.full((len(classes),), 9))


OWN = some_prototypes(2, 4, seed=1)
OTHERS = [some_prototypes(0, 1, seed=2), some_prototypes(1, 2, seed=3), some_prototypes(0, 3, seed=4)]


def test_class_prototypes_are_class_means():
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0], [5.0, 5.0]])
    found = class_prototypes(features, torch.tensor([7, 1, 7, 1]))
    assert found.classes.tolist() == [1, 7]
    assert found.means.tolist() == [[2.5, 3.5], [2.0, 2.0]]
    assert found.counts.tolist() == [2, 2]
    assert (found.classes.dtype, found.means.dtype, found.counts.dtype) == (torch.int64, torch.float32, torch.int64)


@given(st.integers(1, 40), st.integers(0, 99))
def test_class_prototypes_ignore_the_order_of_samples(num_samples, seed):
    features = torch.randn(num_samples, 3, generator=generator(seed))
    labels = torch.randint(0, 4, (num_samples,), generator=generator(seed))
    order = torch.randperm(num_samples, generator=generator(seed))
    one, other = class_prototypes(features, labels), class_prototypes(features[order], labels[order])
    assert torch.equal(one.classes, other.classes)
    assert torch.equal(one.counts, other.counts)
    torch.testing.assert_close(one.means, other.means)
    assert int(one.counts.sum()) == num_samples


def test_prototypes_of_a_bundle_must_be_of_its_features(tmp_path):
    specs = {
        "extractor": ModelSpec(kind="conv", arguments={"in_channels": 1, "feature_dim": 8}),
        "expert": ModelSpec(kind="mlp", arguments={"feature_dim": 8, "hidden_dim": 4, "num_classes": CLASSES}),
        "gate": ModelSpec(kind="top_k", arguments={"feature_dim": 8, "num_experts": 1, "trunk_dim": 0, "noisy": False}),
    }
    card = {"node": "node-0", "experts": ("node-0",), "neighbours": (), "classes_seen": (2, 4), "num_classes": CLASSES, "k": 1}
    card |= {"mix": "logits", "image_shape": (8, 8, 1), "provenance": Provenance(recipe="test", seed=0, data="none", git_revision="none")}
    tensors = {part: build(spec, generator=generator()).state_dict() for part, spec in specs.items()}

    def written(name: str, **more: Prototypes) -> Bundle:
        write_bundle(tmp_path / name, tensors | {part: found._asdict() for part, found in more.items()}, **card, **specs)
        return read_bundle(tmp_path / name)

    assert read_prototypes(written("without")) is None
    fitting = OWN._replace(means=torch.ones(2, 8))
    found = read_prototypes(written("fitting", prototypes=fitting))
    assert found is not None
    assert torch.equal(found.means, fitting.means)
    assert torch.equal(found.classes, fitting.classes)
    with pytest.raises(BundleError, match="bundle of node-0: prototypes have 6 features, the gate takes 8"):
        read_prototypes(written("other", prototypes=OWN))


def wanted_targets(gate: TopKGate, margin: float) -> tuple[Tensor, Tensor]:
    """The points and targets, spelled out one by one."""
    claimed_elsewhere = {0, 1, 2, 3}
    points, targets = [], []
    for label, mean in zip(OWN.classes.tolist(), OWN.means, strict=True):
        points.append(mean)
        targets.append(float(gate.scores(mean.unsqueeze(0)).max()) + (0.0 if label in claimed_elsewhere else margin))
    for other in OTHERS:
        for label, mean in zip(other.classes.tolist(), other.means, strict=True):
            points.append(mean)
            targets.append(float(gate.scores(mean.unsqueeze(0)).max()) - (0.0 if label in OWN.classes.tolist() else margin))
    return torch.stack(points), torch.tensor(targets, dtype=torch.float64)


@pytest.mark.parametrize("trunk_dim", [0, 4, 20])
@pytest.mark.parametrize("ridge", [1e-3, 0.03, 2.0])
def test_column_is_ridge_regression_on_the_class_means(trunk_dim, ridge):
    """Against torch.linalg.lstsq on the augmented system [H 1; sqrt(lambda) I 0] [w b] = [t 0]."""
    gate = a_gate(trunk_dim)
    points, targets = wanted_targets(gate, margin=3.0)
    hidden = hidden_of(gate, points).double()
    others = hidden[len(OWN.classes) :]
    penalty = ridge * others.var(dim=0, unbiased=False).sum()
    width = hidden.shape[1]
    system = torch.cat(
        [
            torch.cat([hidden, torch.ones(len(hidden), 1, dtype=torch.float64)], dim=1),
            torch.cat([penalty.sqrt() * torch.eye(width, dtype=torch.float64), torch.zeros(width, 1, dtype=torch.float64)], dim=1),
        ]
    )
    solution = torch.linalg.lstsq(system, torch.cat([targets, torch.zeros(width, dtype=torch.float64)]).unsqueeze(1)).solution.squeeze(1)
    found = gate_column(gate, OWN, OTHERS, ridge=ridge, margin=3.0)
    torch.testing.assert_close(found.weight.double(), solution[:-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.bias.double(), solution[-1], rtol=1e-4, atol=1e-4)


def test_a_small_ridge_meets_the_targets():
    gate = a_gate(20)
    points, targets = wanted_targets(gate, margin=3.0)
    extended = ExtendedGate(gate)
    extended.add("new", gate_column(gate, OWN, OTHERS, ridge=1e-6, margin=3.0))
    torch.testing.assert_close(extended.scores(points)[:, KNOWN].double(), targets, rtol=1e-2, atol=1e-2)


def test_a_claim_far_away_does_not_weaken_the_ridge_and_stays_bounded():
    gate = a_gate()
    far = OWN._replace(means=1e6 * OWN.means)
    found = gate_column(gate, far, OTHERS)
    assert torch.isfinite(found.weight).all()
    targets = gate.scores(torch.cat([far.means, *(other.means for other in OTHERS)])).amax(dim=1)
    spread = torch.cat([other.means for other in OTHERS])
    penalty = 0.03 * float((spread - spread.mean(dim=0)).square().sum(dim=1).mean())
    length = float((targets - targets.mean()).norm()) + 5 * math.sqrt(len(targets))
    assert float(found.weight.norm()) <= length / (2 * math.sqrt(penalty))


def test_column_of_a_first_node_and_of_equal_points_is_finite():
    gate = a_gate()
    for own in (OWN, OWN._replace(means=torch.zeros_like(OWN.means)), some_prototypes(3)):
        for others in ([], [own]):
            column = gate_column(gate, own, others)
            assert torch.isfinite(column.weight).all()
            assert torch.isfinite(column.bias)


@pytest.mark.parametrize(("own", "ridge"), [(OWN, 0.0), (OWN, -1.0), (OWN, math.nan), (some_prototypes(), 0.1)])
def test_bad_column_arguments_are_refused(own, ridge):
    with pytest.raises(ValueError, match="ridge above 0 and a class are wanted"):
        gate_column(a_gate(), own, OTHERS, ridge=ridge)


def a_column(seed: int, width: int = DIM) -> Column:
    return Column(weight=torch.randn(width, generator=generator(seed)), bias=torch.tensor(float(seed)))


@pytest.mark.parametrize("trunk_dim", [0, 4])
def test_extended_scores_are_the_gates_and_the_columns(trunk_dim):
    gate = a_gate(trunk_dim)
    features = torch.randn(7, DIM, generator=generator(9))
    extended = ExtendedGate(gate)
    assert torch.equal(extended.scores(features), gate.scores(features))
    columns = {f"node-{seed}": a_column(seed, trunk_dim or DIM) for seed in (5, 6, 7)}
    assert [extended.add(name, column) for name, column in columns.items()] == [3, 4, 5]
    wanted = [gate.scores(features)] + [(hidden_of(gate, features) @ c.weight + c.bias).unsqueeze(1) for c in columns.values()]
    torch.testing.assert_close(extended.scores(features), torch.cat(wanted, dim=1))
    extended.offsets[4] = 2.5
    extended.remove("node-5")
    assert extended.names == ["node-6", "node-7"]
    assert extended.num_experts == 5
    torch.testing.assert_close(extended.scores(features), torch.cat([wanted[0], wanted[2] + 2.5, wanted[3]], dim=1))
    extended.remove("node-7")
    extended.remove("node-6")
    assert torch.equal(extended.scores(features), gate.scores(features))


def test_wrong_columns_are_refused():
    extended = ExtendedGate(a_gate())
    extended.add("new", a_column(1))
    with pytest.raises(ValueError, match="new has a column already"):
        extended.add("new", a_column(1))
    with pytest.raises(ValueError, match=r"a weight \[6\] and a bias \[\] are wanted, got \[5\] and \[\]"):
        extended.add("other", a_column(1, 5))
    with pytest.raises(ValueError, match="other is not finite"):
        extended.add("other", a_column(1)._replace(bias=torch.tensor(math.nan)))
    with pytest.raises(ValueError, match="newcomer must be one of new, got other"):
        extended.remove("other")
    assert extended.names == ["new"]
    assert extended.num_experts == len(extended.offsets) == KNOWN + 1


def feedback(
    n: int, *, num_experts: int = KNOWN + 2, k: int = 3, seed: int = 0, holes: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = generator(seed)
    features = torch.randn(n, DIM, generator=draw)
    experts = torch.stack([torch.randperm(num_experts, generator=draw)[:k] for _ in range(n)])
    if holes:
        experts[::3, -1] = -1
    logits = torch.randn(n, k, CLASSES, generator=draw)
    return features, experts, logits, torch.randint(0, CLASSES, (n,), generator=draw)


def two_newcomers(trunk_dim: int = 0) -> ExtendedGate:
    extended = ExtendedGate(a_gate(trunk_dim))
    for seed in (5, 6):
        extended.add(f"node-{seed}", a_column(seed, trunk_dim or DIM))
    return extended


UNCAPPED = {"max_step": 1e9, "max_drift": 1e9, "max_offset": 1e9, "max_fall": 1e9}


@pytest.mark.parametrize("trunk_dim", [0, 4])
@pytest.mark.parametrize("mix", list(Mix))
def test_a_step_goes_down_the_gradient(mix, trunk_dim):
    """Against autograd through softmax and mixture, over experts that answered, each sample weighted by 1 / (1 + |h|^2)."""
    features, experts, logits, labels = feedback(12)
    extended = two_newcomers(trunk_dim)
    weights, offsets = extended.weights.clone().requires_grad_(True), extended.offsets.clone().requires_grad_(True)
    hidden = hidden_of(extended.gate, features)
    biases = torch.stack([column.bias for column in extended.start.values()])
    scores = torch.cat([extended.gate.scores(features), hidden @ weights.T + biases], dim=1) + offsets
    losses = []
    for row in range(12):
        there = experts[row] >= 0
        share = scores[row, experts[row, there]].softmax(dim=0).unsqueeze(0)
        mixed = combine(logits[row, there].unsqueeze(0), share, mix=mix)
        losses.append(functional.nll_loss(mixed.log(), labels[row : row + 1]))
    loss = torch.stack(losses)
    turn = torch.autograd.grad((loss / (1 + hidden.square().sum(dim=1))).sum(), weights, retain_graph=True)[0]
    shift = torch.autograd.grad(loss.sum(), offsets)[0]
    before = extended.weights.clone()
    Calibration(mix=mix, rate=0.7, offset_rate=0.3, **UNCAPPED).step(extended, features, experts, logits, labels)
    torch.testing.assert_close(extended.weights - before, -0.7 * turn, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(extended.offsets, -0.3 * shift, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 9), st.floats(0, 300), st.integers(0, 99), st.sampled_from(list(Mix)))
def test_one_label_moves_its_samples_scores_by_at_most_the_rates(num_steps, scale, seed, mix):
    """Whatever the logits: steps of one label each, the whole change of a score bounded by rate + offset_rate a step."""
    extended, calibration = two_newcomers(), Calibration(mix=mix)
    for step in range(num_steps):
        features, experts, logits, labels = feedback(1, seed=seed + step, holes=False)
        before = extended.scores(features)
        calibration.step(extended, features, experts, scale * logits, labels)
        moved = (extended.scores(features) - before).abs().max()
        assert float(moved) <= calibration.rate + calibration.offset_rate + 1e-4


@pytest.mark.parametrize("mix", list(Mix))
def test_hostile_labels_stay_within_the_caps(mix):
    extended = two_newcomers()
    start = extended.weights.clone()
    calibration = Calibration(mix=mix)
    for seed in range(200):
        features, experts, logits, labels = feedback(16, seed=seed)
        before = torch.cat([extended.weights.flatten(), extended.offsets])
        calibration.step(extended, 50 * features, experts, 50 * logits, labels * 0 + seed % 2)
        assert float((torch.cat([extended.weights.flatten(), extended.offsets]) - before).norm()) <= calibration.max_step + 1e-4
    limit = calibration.max_drift * start.norm(dim=1).clamp_min(extended.gate.output.weight.norm(dim=1).mean())
    assert ((extended.weights - start).norm(dim=1) <= limit + 1e-4).all()
    assert (extended.offsets <= calibration.max_offset).all()
    assert (extended.offsets[:KNOWN] >= -calibration.max_offset).all()
    assert (extended.offsets[KNOWN:] >= -calibration.max_fall).all()


@pytest.mark.parametrize("mix", list(Mix))
def test_a_useful_newcomer_rises_and_a_useless_one_falls(mix):
    """Newcomer 3 is right, newcomer 4 says the wrong class, known experts say nothing: 60 steps of four labels."""
    extended = two_newcomers()
    start = ExtendedGate(extended.gate)
    for name in extended.names:
        start.add(name, extended.start[name])
    for seed in range(60):
        features, _, _, labels = feedback(4, seed=seed)
        logits = torch.zeros(4, 3, CLASSES)
        logits[torch.arange(4), 1, labels] = 6.0
        logits[torch.arange(4), 2, (labels + 1) % CLASSES] = 6.0
        experts = torch.tensor([[seed % KNOWN, KNOWN, KNOWN + 1]]).expand(4, -1)
        Calibration(mix=mix).step(extended, features, experts, logits, labels)
    features = feedback(50, seed=1000)[0]
    moved = (extended.scores(features) - start.scores(features)).mean(dim=0)
    assert float(moved[KNOWN]) > 0.3
    assert float(moved[KNOWN + 1]) < -0.5
    assert float(extended.offsets[KNOWN + 1]) < float(extended.offsets[KNOWN])


def test_who_did_not_answer_is_not_moved():
    extended = two_newcomers()
    features, _, logits, labels = feedback(6)
    experts = torch.tensor([[0, 4, -1]]).expand(6, -1)
    before = extended.weights[0].clone()
    logits[:, 2] = math.nan  # nobody's
    Calibration(mix=Mix.PROBABILITIES).step(extended, features, experts, logits, labels)
    assert torch.equal(extended.weights[0], before)
    assert (extended.offsets[[1, 2, 3]] == 0).all()
    assert extended.offsets[4] != 0
    assert torch.isfinite(extended.weights).all()


def test_a_gate_without_newcomers_learns_offsets_alone():
    extended = ExtendedGate(a_gate())
    Calibration(mix=Mix.PROBABILITIES).step(extended, *feedback(5, num_experts=KNOWN, k=2))
    assert extended.weights.shape == (0, DIM)
    assert extended.offsets.any()


WRONG_FEEDBACK = {
    "expert-unknown": ("between -1 and 4", lambda f, e, x, y: (f, e + 3, x, y)),
    "nobody-answered": ("not all -1", lambda f, e, x, y: (f, e * 0 - 1, x, y)),
    "label-too-large": ("labels must be between 0 and 4", lambda f, e, x, y: (f, e, x, y + 5)),
    "label-negative": ("labels must be between 0 and 4", lambda f, e, x, y: (f, e, x, y - 5)),
    "logits-nan": ("must be finite", lambda f, e, x, y: (f, e, x * math.nan, y)),
    "features-infinite": ("must be finite", lambda f, e, x, y: (f / 0, e, x, y)),
    "other-features": (r"features \[n, 6\].* are wanted, got", lambda f, e, x, y: (f[:, :5], e, x, y)),
    # Shapes that disagree are found by the run-time checks of annotations first, which are there in tests only.
    "fewer-features": ("wanted|Type-check", lambda f, e, x, y: (f[:3], e, x, y)),
    "fewer-logits": ("wanted|Type-check", lambda f, e, x, y: (f, e, x[:, :2], y)),
    "labels-of-rank-two": ("wanted|Type-check", lambda f, e, x, y: (f, e, x, y.unsqueeze(1))),
    "logits-of-rank-two": ("wanted|Type-check", lambda f, e, x, y: (f, e, x[0], y)),
}


@pytest.mark.parametrize(("words", "change"), WRONG_FEEDBACK.values(), ids=WRONG_FEEDBACK.keys())
def test_wrong_feedback_is_refused_and_changes_nothing(words, change):
    extended = two_newcomers()
    weights = extended.weights.clone()
    with pytest.raises((ValueError, TypeCheckError), match=words):
        Calibration(mix=Mix.PROBABILITIES).step(extended, *change(*feedback(6)))
    assert torch.equal(extended.weights, weights)
    assert not extended.offsets.any()


def test_quiz_asks_what_is_claimed_and_nothing_else():
    found = quiz(OWN, OTHERS)
    assert found.expected.tolist() == [2, 2, 4]
    torch.testing.assert_close(found.features, torch.stack([OTHERS[1].means[1], OWN.means[0], OWN.means[1]]))
    moved = quiz(OWN, OTHERS, generator=generator(1))
    assert torch.equal(moved.expected, found.expected)
    means = torch.cat([*(other.means for other in OTHERS), OWN.means])
    classes = torch.cat([*(other.classes for other in OTHERS), OWN.classes])
    for row, label in enumerate(found.expected):
        nearest = float((means[classes != label] - found.features[row]).norm(dim=1).min())
        assert float((moved.features[row] - found.features[row]).norm()) == pytest.approx(0.25 * nearest, rel=1e-4)
    assert torch.equal(moved.features, quiz(OWN, OTHERS, generator=generator(1)).features)


def test_quiz_on_one_class_alone_moves_by_its_own_length():
    lone = some_prototypes(3)
    found = quiz(lone, [], generator=generator())
    assert float((found.features - lone.means).norm()) == pytest.approx(0.25 * float(lone.means.norm()), rel=1e-4)


def test_grade_is_the_share_right_and_nan_is_wrong():
    logits = functional.one_hot(torch.tensor([2, 2, 4, 1]), CLASSES).float()
    expected = torch.tensor([2, 2, 4, 4])
    assert grade(logits, expected) == 0.75
    logits[0, 0] = math.nan
    logits[1, 2] = math.inf
    assert grade(logits, expected) == 0.25
    with pytest.raises(ValueError, match="one answer to each of at least one question"):
        grade(logits[:0], expected[:0])
    with pytest.raises((ValueError, TypeCheckError), match=r"one answer|Type-check"):
        grade(logits[:3], expected)


@pytest.mark.parametrize(("num_classes", "mark"), [(1, 1.0), (2, 0.75), (4, 0.625), (10, 0.55), (100, 0.505)])
def test_pass_mark_is_halfway_from_chance(num_classes, mark):
    assert pass_mark(torch.arange(num_classes).repeat(2)) == pytest.approx(mark)


WRONG_CLAIMS = {
    "are not all among": OWN._replace(classes=torch.tensor([2, 3])),
    "NaN": OWN._replace(means=OWN.means * math.nan),
    "5 features, wanted 6": OWN._replace(means=OWN.means[:, :5]),
    "no class": some_prototypes(),
    "rise": OWN._replace(classes=torch.tensor([4, 4])),
    "int64": OWN._replace(counts=torch.ones(2)),
}


@pytest.mark.parametrize(("words", "claim"), WRONG_CLAIMS.items(), ids=WRONG_CLAIMS.keys())
def test_unsound_claims_are_named(words, claim):
    assert unsound(OWN, classes=(2, 4), feature_dim=DIM) is None
    assert words in (unsound(claim, classes=(2, 4), feature_dim=DIM) or "")


# From end to end: eight nodes know the digits 0-7, two of them each; a ninth comes later with 8 and 9. Its images, and a quarter of the
# training set that is kept as labelled traffic, were seen by nobody before.

NODES, NEW = 8, (8, 9)
OPTIONS = TrainOptions(nodes=NODES, rounds=8, gate_rounds=50)


@dataclasses.dataclass
class Eight(Program):
    whole: TrainProgram
    folder: Path

    def stages(self):
        return self.whole.stages()[:4]

    def data(self, number: int) -> ImageDataset:
        train = self.whole.data().train
        kept = np.flatnonzero(np.arange(len(train)) % 4 != 0)
        if number == NODES:
            return train.subset(kept[np.isin(train.labels[kept], NEW)])
        rows = [kept[train.labels[kept] == label] for label in (number, (number + 1) % NODES)]
        return train.subset(np.sort(np.concatenate([rows[0][::2], rows[1][1::2]])))

    def traffic(self) -> ImageDataset:
        train = self.whole.data().train
        return train.subset(np.arange(0, len(train), 4))

    def node(self, number: int) -> Node:
        folder = self.folder / node_name(number)
        return Node(number=number, seed=0, data=self.data(number), memory=NodeMemory(None), bundle_folder=folder)


class Digits(NamedTuple):
    models: list[NodeModel]
    newcomer: Expert
    own: Prototypes
    others: list[Prototypes]
    traffic: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def gate(self) -> TopKGate:
        return self.models[0].gate

    def answers(self, features: Tensor, newcomer: Expert | None = None) -> Tensor:
        with torch.no_grad():
            return StackedExperts([*(model.expert for model in self.models), newcomer or self.newcomer])(features)

    def scores(self, gate: ExtendedGate, newcomer: Expert | None = None) -> tuple[float, float, float]:
        """Accuracy on the newcomer's classes and on the others, and the share of the others' samples it is asked about."""
        features, labels = self.test
        routing = route(gate.scores(features), k=2, mask=torch.ones(gate.num_experts, dtype=torch.bool))
        mixed = combine(pick(self.answers(features, newcomer), routing), routing.weights, mix=Mix.PROBABILITIES)
        right, new = (mixed.argmax(dim=1) == labels).float(), labels >= min(NEW)
        asked = (routing.experts == NODES).any(dim=1).float()
        return float(right[new].mean()), float(right[~new].mean()), float(asked[~new].mean())

    def calibrate(self, gate: ExtendedGate, newcomer: Expert | None = None, *, seed: int = 0, wrong_labels: bool = False) -> None:
        """Send the labelled traffic once, four samples at a time, the newcomer asked for the label's sake where it was not routed to."""
        features, labels = self.traffic
        logits, draw = self.answers(features, newcomer), generator(seed)
        if wrong_labels:
            labels = torch.randint(0, 10, labels.shape, generator=draw)
        for batch in torch.randperm(len(labels), generator=draw).split(4):
            experts = route(gate.scores(features[batch]), k=2, mask=torch.ones(gate.num_experts, dtype=torch.bool)).experts
            extra = torch.where((experts == NODES).any(dim=1), -1, NODES)
            experts = torch.cat([experts, extra.unsqueeze(1)], dim=1)
            answers = logits[batch].gather(1, experts.clamp_min(0).unsqueeze(2).expand(-1, -1, logits.shape[2]))
            Calibration(mix=Mix.PROBABILITIES).step(gate, features[batch], experts, answers, labels[batch])


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Digits:
    torch.set_num_threads(1)
    world = Eight(program_of(OPTIONS, None), tmp_path_factory.mktemp("bundles"))
    exchange = LocalExchange(world, range(NODES))
    run(world.stages(), exchange)
    bundles = [read_bundle(world.folder / node_name(number)) for number in range(NODES)]
    models = [node_model(bundle) for bundle in bundles]
    others = [found for bundle in bundles if (found := read_prototypes(bundle)) is not None]

    def features(data: ImageDataset) -> tuple[Tensor, Tensor]:
        return predict(models[0].extractor, to_unit(data.images)).clone(), torch.from_numpy(data.labels)

    seen, labels = features(world.data(NODES))
    expert = build(world.whole.expert(), generator=torch_generator(0, "newcomer"))
    assert isinstance(expert, Expert)
    for round in range(world.whole.experts().rounds):
        train_supervised(expert, seen, labels, world.whole.experts().training, generator=torch_generator(0, "newcomer", round))
    expert.eval().requires_grad_(False)
    test = features(world.whole.data().test)
    return Digits(models, expert, class_prototypes(seen, labels), others, features(world.traffic()), test)


def admitted(digits: Digits, **arguments: float) -> ExtendedGate:
    gate = ExtendedGate(digits.gate())
    gate.add("newcomer", gate_column(digits.gate(), digits.own, digits.others, **arguments))
    return gate


def lying(digits: Digits) -> Expert:
    """The newcomer's expert with its answers turned by one class."""
    liar = Expert(feature_dim=128, hidden_dim=64, num_classes=10, generator=generator())
    liar.load_state_dict(digits.newcomer.state_dict())
    with torch.no_grad():
        liar.output.weight.copy_(liar.output.weight.roll(1, dims=0))
        liar.output.bias.copy_(liar.output.bias.roll(1, dims=0))
    return liar.eval().requires_grad_(False)


def test_bundles_hold_the_prototypes_of_each_nodes_classes(digits):
    assert len(digits.others) == NODES
    for number, found in enumerate(digits.others):
        assert found.classes.tolist() == sorted((number, (number + 1) % NODES))
        assert found.means.shape == (2, 128)


def test_a_newcomer_is_usable_from_its_prototypes_and_better_after_feedback(digits):
    """Measured on (8 and 9, 0-7): without 0.000 0.983, from prototypes 0.817 0.938, after 360 labels 0.873 0.958.

    With seeds 1, 2 and 3 from prototypes 0.930, 0.831, 0.887 and at most 0.059 lost, afterwards 0.873, 0.901, 0.930 and at most 0.014.
    """
    new, old, _ = digits.scores(ExtendedGate(digits.gate()))
    assert new == 0
    assert old > 0.95
    gate = admitted(digits)
    started_new, started_old, _ = digits.scores(gate)
    assert started_new > 0.75
    assert started_old > old - 0.06
    digits.calibrate(gate)
    after_new, after_old, asked = digits.scores(gate)
    assert after_new > 0.8
    assert after_old > old - 0.04
    assert 0.2 * after_new + 0.8 * after_old > 0.2 * started_new + 0.8 * started_old  # a fifth of digits is an 8 or a 9
    assert asked < 0.4


def test_a_timid_start_is_mended_by_feedback(digits):
    """With a margin of 0.5 the newcomer is asked about everything; 0-7 measured 0.722 before and 0.948 after the labels."""
    gate = admitted(digits, margin=0.5)
    started_new, started_old, started_asked = digits.scores(gate)
    digits.calibrate(gate)
    after_new, after_old, asked = digits.scores(gate)
    assert after_old > started_old + 0.1
    assert after_new >= started_new
    assert asked < started_asked


def test_an_expert_that_answers_wrong_falls_and_the_others_are_as_before(digits):
    """The quiz passed, traffic answered wrong: asked about 0.337 of 0-7 before the labels and 0.083 after."""
    liar = lying(digits)
    _, old, _ = digits.scores(ExtendedGate(digits.gate()))
    gate = admitted(digits)
    _, _, started_asked = digits.scores(gate, liar)
    digits.calibrate(gate, liar)
    _, after_old, asked = digits.scores(gate, liar)
    assert asked < 0.5 * started_asked
    assert after_old > old - 0.02
    assert float(gate.offsets[NODES]) < -0.5


def test_random_labels_do_bounded_harm(digits):
    """As many labels as images, all drawn at random: measured 0.775 on 8 and 9, 0.872 on 0-7."""
    gate = admitted(digits)
    digits.calibrate(gate, wrong_labels=True)
    new, old, _ = digits.scores(gate)
    assert new > 0.6
    assert old > 0.75


@pytest.mark.parametrize("draw", [None, 3])
def test_the_quiz_tells_honest_experts_from_liars(digits, draw):
    def passes(expert: Expert, claimed: Prototypes, known: list[Prototypes]) -> bool:
        asked = quiz(claimed, known, generator=None if draw is None else generator(draw))
        return grade(expert(asked.features), asked.expected) >= pass_mark(asked.expected)

    assert passes(digits.newcomer, digits.own, digits.others)
    for number, model in enumerate(digits.models):
        known = [digits.own, *digits.others[:number], *digits.others[number + 1 :]]
        assert passes(model.expert, digits.others[number], known)
        assert not passes(digits.newcomer, digits.others[number], digits.others)  # another's means over its own expert
    untrained = Expert(feature_dim=128, hidden_dim=64, num_classes=10, generator=generator(5))
    for liar in (lying(digits), untrained):
        assert not passes(liar, digits.own, digits.others)
    everything = Prototypes(
        torch.arange(8), torch.stack([other.means[other.classes == n][0] for n, other in enumerate(digits.others)]), OWN.counts[[0] * 8]
    )
    assert not passes(digits.newcomer, everything, digits.others)
