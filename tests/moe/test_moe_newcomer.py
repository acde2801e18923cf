"""Newcomers: the column against least squares, calibration against autograd, the quiz against liars."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor
from torch.nn import functional

from nmoe.moe import Mix, TopKGate, combine
from nmoe.moe.newcomer import (
    Calibration,
    Column,
    ExtendedGate,
    Prototypes,
    class_prototypes,
    gate_column,
    grade,
    pass_mark,
    quiz,
    unsound,
)

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
    hidden = gate.hidden(points).double()
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
    wanted = [gate.scores(features)] + [(gate.hidden(features) @ c.weight + c.bias).unsqueeze(1) for c in columns.values()]
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
    hidden = extended.gate.hidden(features)
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
