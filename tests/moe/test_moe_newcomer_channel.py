"""Newcomers beside gates that see links: columns extend what is made of features, the SNR branch serves newcomers as it stands."""

import math

import pytest
import torch
from torch import Tensor

from nmoe.moe import ChannelAwareGate, Gate, Mix, SnrGate, TopKGate
from nmoe.moe.newcomer import Calibration, ExtendedGate, Prototypes, gate_column

DIM, KNOWN, CLASSES, SAMPLES = 6, 3, 5, 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive(trunk_dim: int) -> Gate:
    return TopKGate(feature_dim=DIM, num_experts=KNOWN, trunk_dim=trunk_dim, noisy=False, generator=generator())


def aware(trunk_dim: int, *, joint: bool) -> Gate:
    return ChannelAwareGate(feature_dim=DIM, num_experts=KNOWN, trunk_dim=trunk_dim, joint=joint, generator=generator())


GATES = {
    "naive": lambda: naive(4),
    "additive": lambda: aware(0, joint=False),
    "additive-trunk": lambda: aware(4, joint=False),
    "joint": lambda: aware(4, joint=True),
    "snr": lambda: SnrGate(feature_dim=DIM, num_experts=KNOWN, generator=generator()),
}
each_gate = pytest.mark.parametrize("kind", GATES)


def trained(kind: str) -> Gate:
    gate = GATES[kind]()
    with torch.no_grad():
        for index, parameter in enumerate(gate.parameters()):
            parameter.normal_(generator=generator(index))
    return gate.eval().requires_grad_(False)


def some_prototypes(*classes: int, seed: int) -> Prototypes:
    means = torch.randn(len(classes), DIM, generator=generator(seed))
    return Prototypes(classes=torch.tensor(classes), means=means, counts=torch.full((len(classes),), 9))


OTHERS = [some_prototypes(0, 1, seed=2), some_prototypes(1, 2, seed=3)]


def with_newcomers(gate: Gate) -> ExtendedGate:
    extended = ExtendedGate(gate)
    for name, classes in {"first": (2, 4), "second": (3,)}.items():
        extended.add(name, gate_column(gate, some_prototypes(*classes, seed=len(name)), OTHERS))
    return extended


def some_features() -> Tensor:
    return torch.randn(SAMPLES, DIM, generator=generator(9))


def some_snr(num_links: int) -> Tensor:
    snr_db = 50 * torch.rand(SAMPLES, num_links, generator=generator(8)) - 15
    snr_db[0, 1], snr_db[:, 0] = math.nan, math.inf
    return snr_db


@each_gate
def test_without_newcomers_it_is_the_gate(kind):
    gate, features, snr_db = trained(kind), some_features(), some_snr(KNOWN)
    torch.testing.assert_close(ExtendedGate(gate).scores(features, snr_db=snr_db), gate.scores(features, snr_db=snr_db))


@each_gate
def test_links_add_to_newcomers_what_they_add_to_all(kind):
    gate = trained(kind)
    extended, features, snr_db = with_newcomers(gate), some_features(), some_snr(KNOWN + 2)
    told, untold = extended.scores(features, snr_db=snr_db), extended.scores(features)
    torch.testing.assert_close(told - untold, gate.link_scores(features, snr_db), rtol=1e-4, atol=1e-4)
    assert torch.equal(untold[:, :KNOWN], gate.scores(features))
    order = [0, 1, 2, 4, 3]
    swapped = extended.scores(features, snr_db=snr_db[:, order]) - untold
    torch.testing.assert_close(swapped, (told - untold)[:, order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "trunk_dim"), [("additive", 0), ("additive-trunk", 4), ("joint", 4)])
def test_a_column_says_nothing_of_links(kind, trunk_dim):
    """Made from class means as if every link were perfect: the same as beside the naive gate of the same weights."""
    gate, twin = trained(kind), naive(trunk_dim)
    twin.load_state_dict({name: tensor for name, tensor in gate.state_dict().items() if not name.startswith("branch.")})
    own = some_prototypes(2, 4, seed=1)
    column, wanted = gate_column(gate, own, OTHERS), gate_column(twin, own, OTHERS)
    assert torch.equal(column.weight, wanted.weight)
    assert torch.equal(column.bias, wanted.bias)


def test_beside_a_gate_that_sees_links_alone_newcomers_are_as_good_as_any():
    gate = trained("snr")
    column = gate_column(gate, some_prototypes(2, 4, seed=1), OTHERS)
    assert column.weight.shape == (0,)
    assert float(column.bias) == 0
    extended = with_newcomers(gate)
    assert not extended.scores(some_features()).any()
    level = torch.full((SAMPLES, KNOWN + 2), 12.0)
    scores = extended.scores(some_features(), snr_db=level)
    torch.testing.assert_close(scores, scores[:, :1].expand(-1, KNOWN + 2))


@each_gate
@pytest.mark.parametrize("num_links", [KNOWN, KNOWN + 3])
def test_links_to_all_of_them_are_wanted(kind, num_links):
    with pytest.raises(ValueError, match=rf"wanted, \[8, 5\], got \[8, {num_links}\]"):
        with_newcomers(trained(kind)).scores(some_features(), snr_db=torch.zeros(SAMPLES, num_links))


@each_gate
def test_calibration_corrects_what_was_scored_with_the_links(kind):
    """A step beside links is one beside offsets that are as large as what the links add."""
    features, snr_db = some_features()[:1].expand(SAMPLES, -1), some_snr(KNOWN + 2)[1:2].expand(SAMPLES, -1)
    experts = torch.tensor([[0, 3], [1, 4], [2, 3], [3, 4], [4, 0], [1, 2], [3, 1], [0, 2]])
    logits = torch.randn(SAMPLES, 2, CLASSES, generator=generator(5))
    labels = torch.arange(SAMPLES) % CLASSES
    told, shifted = with_newcomers(trained(kind)), with_newcomers(trained(kind))
    added = told.gate.link_scores(features, snr_db)[0]
    shifted.offsets = shifted.offsets + added
    calibration = Calibration(mix=Mix.PROBABILITIES, max_offset=1e6, max_fall=1e6)
    calibration.step(told, features, experts, logits, labels, snr_db=snr_db)
    calibration.step(shifted, features, experts, logits, labels)
    torch.testing.assert_close(told.offsets, shifted.offsets - added, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(told.weights, shifted.weights)
    assert told.offsets.any()
