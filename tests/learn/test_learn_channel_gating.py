"""Training over links: what reaches whom, that perfect links change nothing, and that a gate learns to prefer good links."""

import math

import pytest
import torch
from torch import Tensor

from nmoe.channel.analog import Analog
from nmoe.channel.digital import Digital
from nmoe.channel.fading import Awgn, Rayleigh
from nmoe.channel.radio import Radio
from nmoe.core.units import from_db
from nmoe.learn.channel_gating import ChannelTraining, LinkedMixture, unit_power
from nmoe.moe import ChannelAwareGate, ConvExtractor, Gate, Mix, MlpExpert, SnrGate, TopKGate, combine, pick, together

DIM, EXPERTS, CLASSES = 8, 3, 4
RADIO = Radio(fading=Rayleigh(), transmission=Analog(), low_db=-10.0, high_db=20.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(gate: Gate | None = None, *, k: int = 2, naive: bool = False, mix: Mix = Mix.PROBABILITIES) -> LinkedMixture:
    draws = generator(1)
    extractor = ConvExtractor(in_channels=1, feature_dim=DIM, generator=draws)
    experts = [MlpExpert(feature_dim=DIM, hidden_dim=6, num_classes=CLASSES, generator=draws) for _ in range(EXPERTS)]
    if naive:
        gate = TopKGate(feature_dim=DIM, num_experts=EXPERTS, trunk_dim=0, noisy=False, generator=draws)
        torch.nn.init.normal_(gate.output.weight, generator=draws)
    return LinkedMixture(extractor=extractor, experts=experts, gate=gate, k=k, mix=mix)


def aware(joint: bool = False) -> ChannelAwareGate:
    return ChannelAwareGate(feature_dim=DIM, num_experts=EXPERTS, joint=joint, generator=generator(3))


def images(count: int = 12) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=generator(2))


def test_unit_power():
    features = torch.randn(5, 7, generator=generator()) * torch.tensor([[1.0], [9.0], [1e-3], [1e3], [0.0]])
    scaled = unit_power(features)
    assert torch.allclose(scaled[:4].square().mean(dim=1), torch.ones(4), atol=1e-4)
    assert torch.equal(scaled[4], torch.zeros(7))


@pytest.mark.parametrize("mix", list(Mix))
def test_over_perfect_links_it_is_the_mixture(mix):
    linked = mixture(naive=True, mix=mix).eval()
    with torch.no_grad():
        found = linked(images(), None, transmission=None, generator=generator())
        perfect = linked(images(), torch.full((12, EXPERTS), math.inf), transmission=Analog(), generator=generator())
        features = unit_power(linked.extractor(images()))
        routing = linked.gate(features, k=2, mask=torch.ones(EXPERTS, dtype=torch.bool))
        wanted = combine(pick(together(list(linked.experts))(features), routing), routing.weights, mix=mix)
    assert torch.allclose(found.probabilities, wanted, atol=1e-6)
    assert torch.equal(found.routing.experts, routing.experts)
    assert torch.equal(found.probabilities, perfect.probabilities)


def test_only_the_link_to_the_chosen_expert_matters():
    linked = mixture(naive=True, k=1).eval()
    with torch.no_grad():
        clean = linked(images(), None, transmission=None, generator=generator())
        snr = torch.full((12, EXPERTS), 1e-9).scatter(1, clean.routing.experts, math.inf)
        found = linked(images(), snr, transmission=Analog(), generator=generator())
    assert torch.equal(found.probabilities, clean.probabilities)


def test_what_the_gate_is_told_may_be_wrong():
    linked = mixture(aware(), k=1).eval()
    torch.nn.init.ones_(linked.gate.branch.output.weight)
    snr = from_db(torch.tensor([30.0, 0.0, -10.0])).repeat(12, 1)
    with torch.no_grad():
        truth = linked(images(), snr, transmission=Analog(), generator=generator())
        told = linked(images(), snr, transmission=Analog(), generator=generator(), told_db=torch.tensor([-10.0, 0.0, 30.0]).repeat(12, 1))
    assert set(truth.routing.experts.flatten().tolist()) == {0}
    assert set(told.routing.experts.flatten().tolist()) == {2}


def test_without_a_gate_experts_are_drawn_alike():
    linked = mixture(None)
    with torch.no_grad():
        found = linked(images(3000), torch.ones(3000, EXPERTS), transmission=Analog(), generator=generator())
    shares = found.routing.experts.flatten().bincount().float() / 6000
    assert torch.allclose(shares, torch.full((3,), 1 / 3), atol=0.03)
    assert torch.equal(found.routing.weights, torch.full((3000, 2), 0.5))


@pytest.mark.parametrize("transmission", [Analog(), Digital()])
def test_gradients_reach_every_part(transmission):
    linked = mixture(aware())
    radio = Radio(fading=Awgn(), transmission=transmission, low_db=0.0, high_db=10.0)
    labels = torch.arange(12) % CLASSES
    ChannelTraining(epochs=1).loss(linked, images(), labels, radio, links=generator(), noise=generator(1)).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in linked.parameters())
    assert linked.extractor.conv1.weight.grad.abs().sum() > 0
    assert linked.gate.branch.output.weight.grad.abs().sum() > 0


def toy(count: int = 600) -> tuple[Tensor, Tensor]:
    """Images whose class is the bright quarter."""
    labels = torch.randint(CLASSES, (count,), generator=generator(5))
    found = 0.2 * torch.rand(count, 1, 8, 8, generator=generator(6))
    for label in range(CLASSES):
        row, column = 4 * (label // 2), 4 * (label % 2)
        found[labels == label, :, row : row + 4, column : column + 4] += 0.3 + 0.2 * label
    return found, labels


@pytest.mark.parametrize("make", [aware, lambda: SnrGate(feature_dim=DIM, num_experts=EXPERTS, generator=generator(3))])
def test_a_gate_that_sees_links_learns_to_prefer_good_ones(make):
    linked, (pixels, labels) = mixture(make()), toy()
    training = ChannelTraining(epochs=10, batch_size=32, lr=1e-2)
    last = training.run(linked, pixels, labels, RADIO, order=generator(7), links=generator(8), noise=generator(9))
    assert last < math.log(CLASSES)
    snr = from_db(torch.rand(600, EXPERTS, generator=generator(9)) * 30 - 10)
    with torch.no_grad():
        chosen = linked(pixels, snr, transmission=Analog(), generator=generator()).routing.experts[:, 0]
    ranks = snr.argsort(dim=1, descending=True).argsort(dim=1)
    assert (ranks.gather(1, chosen[:, None]) == 0).float().mean() > 0.5  # by chance 1/3


def test_links_first_leaves_the_feature_branch_as_it_is():
    linked, (pixels, labels) = mixture(aware()), toy(64)
    training = ChannelTraining(epochs=2, batch_size=32, links_first=2)
    training.run(linked, pixels, labels, RADIO, order=generator(7), links=generator(8), noise=generator(9))
    assert not linked.gate.output.weight.any()
    assert linked.gate.branch.output.weight.any()
    assert all(parameter.requires_grad for parameter in linked.parameters()), "nothing stays frozen"
    after = ChannelTraining(epochs=2, batch_size=32, links_first=1)
    after.run(linked, pixels, labels, RADIO, order=generator(7), links=generator(8), noise=generator(9))
    assert linked.gate.output.weight.any()


def test_the_same_seeds_train_the_same_weights():
    states = []
    for _ in range(2):
        linked, (pixels, labels) = mixture(aware(joint=True)), toy(64)
        ChannelTraining(epochs=1, batch_size=32).run(
            linked, pixels, labels, RADIO, order=generator(7), links=generator(8), noise=generator(9)
        )
        states.append(linked.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_bad_input():
    with pytest.raises(ValueError, match="k must be between 1 and the 3 experts, got 4"):
        mixture(None, k=4)
    with pytest.raises(ValueError, match="the gate scores 2 experts, there are 3"):
        mixture(SnrGate(feature_dim=DIM, num_experts=2, generator=generator()))
    linked = mixture(naive=True)
    with pytest.raises(ValueError, match=r"one SNR per sample and expert wanted, \[12, 3\], got \[12, 7\]"):
        linked(images(), torch.ones(12, 7), transmission=Analog(), generator=generator())
    with pytest.raises(ValueError, match="links with SNRs want a transmission, got none"):
        linked(images(), torch.ones(12, 3), transmission=None, generator=generator())
    for wrong in (
        {"epochs": 0},
        {"epochs": 1, "balance": math.nan},
        {"epochs": 1, "lr": 0.0},
        {"epochs": 1, "balance": -1.0},
        {"epochs": 1, "branch_lr": math.inf},
    ):
        with pytest.raises(ValueError, match="above 0"):
            ChannelTraining(**wrong)
    with pytest.raises(ValueError, match="links_first must be between 0 and the 2 epochs, got 3"):
        ChannelTraining(epochs=2, links_first=3)
