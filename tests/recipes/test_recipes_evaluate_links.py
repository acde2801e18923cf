"""Scores over noisy links: the law of what crosses, limits with a closed form, and simulated meshes against their binomial spread."""

import math

import numpy as np
import pytest
import torch

from nmoe.channel.analog import Analog
from nmoe.channel.base import Transmission
from nmoe.channel.fading import Awgn, Rayleigh
from nmoe.channel.radio import Radio
from nmoe.core.bundle import ModelSpec
from nmoe.data import ImageDataset, to_unit
from nmoe.learn import predict
from nmoe.moe import ConvExtractor, Mix, MlpExpert, NodeModel, TopKGate, build, together
from nmoe.node.radio import Air, RadioLinks
from nmoe.recipes.evaluate import TestBench
from nmoe.recipes.evaluate_links import cross_links, crossings, link_scores
from nmoe.recipes.simulate_links import expected_accuracy, link_means

NODES, DIM, CLASSES = 3, 8, 4
ALL = torch.ones(NODES, NODES, dtype=torch.bool)


class Lost(Transmission):
    """Nothing arrives of anything."""

    def send(self, features, snr, *, generator):
        return torch.zeros_like(features)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def radio(low_db: float, high_db: float, transmission: Transmission | None = None) -> Radio:
    return Radio(fading=Awgn(), transmission=transmission or Analog(), low_db=float(low_db), high_db=float(high_db))


@pytest.fixture(scope="module")
def test_set() -> ImageDataset:
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (90, 8, 8, 1)).astype(np.uint8)
    return ImageDataset.from_arrays(name="t", images=images, labels=draws.integers(0, CLASSES, 90), num_classes=CLASSES)


@pytest.fixture(scope="module")
def models(test_set: ImageDataset) -> list[NodeModel]:
    extractor = ConvExtractor(in_channels=1, feature_dim=DIM, generator=generator(1)).eval()
    raw = predict(extractor, to_unit(test_set.images))
    extractor.feature_mean.copy_(raw.mean(dim=0))
    extractor.feature_std.copy_(raw.std(dim=0))
    gate = ModelSpec(kind="channel_aware", arguments={"feature_dim": DIM, "num_experts": NODES, "joint": False})
    parts = []
    for node in range(NODES):
        expert = MlpExpert(feature_dim=DIM, hidden_dim=8, num_classes=CLASSES, generator=generator(10 + node)).eval()
        aware = build(gate, generator=generator(2)).eval()
        torch.nn.init.normal_(aware.output.weight, generator=generator(3))
        torch.nn.init.normal_(aware.branch.output.weight, std=0.05, generator=generator(4))
        parts.append(NodeModel(extractor=extractor, expert=expert, gate=aware, mix=Mix.PROBABILITIES))
    return parts


@pytest.fixture(scope="module")
def bench(test_set: ImageDataset) -> TestBench:
    return TestBench(test_set, [test_set.labels[node::NODES] for node in range(NODES)])


def naive_gates() -> list[TopKGate]:
    gates = [TopKGate(feature_dim=DIM, num_experts=NODES, trunk_dim=0, noisy=False, generator=generator()) for _ in range(NODES)]
    for gate in gates:
        torch.nn.init.normal_(gate.output.weight, generator=generator(3))
    return gates


def test_the_own_expert_is_behind_no_link(models) -> None:
    """Where nothing arrives, others answer as to zeros; the own expert as ever, and its SNR is infinite."""
    experts, features = together([model.expert for model in models]), torch.randn(700, DIM, generator=generator())
    snr = torch.full((700, NODES), 100.0)
    found = cross_links(experts, features, snr, radio=radio(0, 1, Lost()), node=1, generator=generator())
    with torch.inference_mode():
        clean, empty = experts(features), experts(torch.zeros(700, DIM))
    torch.testing.assert_close(found.logits[:, 1], clean[:, 1])
    torch.testing.assert_close(found.logits[:, [0, 2]], empty[:, [0, 2]])
    assert (found.snr_db[:, 1] == math.inf).all()
    torch.testing.assert_close(found.snr_db[:, [0, 2]], torch.full((700, 2), 20.0))
    assert (snr == 100).all()  # what was given is not written to


def test_crossings_of_a_seed_are_always_the_same_and_differ_between_nodes(models) -> None:
    experts, features = together([model.expert for model in models]), torch.randn(20, DIM, generator=generator())
    fading = Radio(fading=Rayleigh(), transmission=Analog(), low_db=-10.0, high_db=20.0)
    first, again = (list(crossings(experts, features, radio=fading, seed=5)) for _ in range(2))
    assert all(torch.equal(a.logits, b.logits) and torch.equal(a.snr_db, b.snr_db) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].snr_db[:, 2], first[1].snr_db[:, 2])


def by_hand(models: list[NodeModel], test_set: ImageDataset, *, experts: list[int]) -> list[bool]:
    """Say which images the mixture of two experts gets right over perfect links, or the average of given experts."""
    right = []
    with torch.inference_mode():
        features = models[0].extractor(to_unit(test_set.images))
        logits = torch.stack([model.expert(features) for model in models], dim=1).softmax(dim=2)
        for image, label in enumerate(test_set.labels):
            best = models[0].gate.scores(features[image : image + 1])[0].topk(2)
            chosen, weights = (experts, torch.ones(len(experts))) if experts else (best.indices, best.values.softmax(dim=0))
            right.append(int((weights.unsqueeze(1) * logits[image, chosen]).sum(dim=0).argmax()) == int(label))
    return right


def test_links_without_noise_score_as_perfect_ones(models, test_set, bench) -> None:
    """At 200 dB nothing is lost, and links of one quality, the own one's included, move no choice."""
    found = link_scores(models, naive_gates(), bench, ALL, radio=radio(200, 200), k=2, seed=0)
    assert list(found) == ["own_expert", "random_uniform", "all_uniform", "naive_gate", "nmoe", "oracle_gate", "perfect_links"]
    mixture = np.mean(by_hand(models, test_set, experts=[]))
    assert [found[name].global_ for name in ("nmoe", "naive_gate", "perfect_links")] == pytest.approx([mixture] * 3)  # one feature branch
    assert found["all_uniform"].global_ == pytest.approx(np.mean(by_hand(models, test_set, experts=[0, 1, 2])))
    assert found["own_expert"].global_ == pytest.approx(np.mean([by_hand(models, test_set, experts=[node]) for node in range(NODES)]))


def test_simulated_meshes_without_noise_are_the_mixture_itself(models, test_set) -> None:
    found = expected_accuracy(models, ALL, test_set, radio=radio(200, 200), k=2, means=torch.full((NODES, NODES), 1e20), seed=0, draws=3)
    assert found == pytest.approx((np.mean(by_hand(models, test_set, experts=[])), 0))


def test_link_means_are_those_that_running_nodes_draw() -> None:
    names, fading = ["node-0", "node-1", "node-2"], Radio(fading=Rayleigh(), transmission=Analog(), low_db=-10.0, high_db=20.0)
    means = link_means(names, radio=fading, seed=4)
    links = RadioLinks(radio=fading, seed=4)
    for row, node in enumerate(names):
        air, others = Air(links, node=node, started_s=0.0), [name for name in names if name != node]
        blocks = [air.block(others, 0.0) for _ in range(4000)]
        for peer in others:
            mean = np.mean([10 ** (block[peer] / 10) for block in blocks])
            assert mean == pytest.approx(float(means[row, names.index(peer)]), rel=5 / math.sqrt(4000))  # an exponential's deviation is 1
    assert (means.diagonal() == 1).all()


def test_spread_of_simulated_meshes_is_binomial_where_every_link_has_one_mean(models, test_set) -> None:
    """Images are then right independently with chances p_i: the standard deviation is the root of sum p_i (1 - p_i), over n."""
    noisy, draws = radio(-5, -5), 100
    right = torch.zeros(draws, len(test_set))
    with torch.inference_mode():
        features, experts = models[0].extractor(to_unit(test_set.images)), together([model.expert for model in models])
        for draw in range(draws):
            for node, crossing in enumerate(crossings(experts, features, radio=noisy, seed=draw)):
                routing = models[node].gate(features, k=2, mask=ALL[node], snr_db=crossing.snr_db)
                chosen = crossing.logits.softmax(dim=2)[torch.arange(len(features)).unsqueeze(1), routing.experts]
                answers = (chosen * routing.weights.unsqueeze(2)).sum(dim=1).argmax(dim=1)
                right[draw, node::NODES] = (answers == torch.from_numpy(test_set.labels)).float()[node::NODES]
    chances = right.mean(dim=0).double().numpy()
    spread = float(np.sqrt((chances * (1 - chances)).sum())) / len(test_set)
    assert spread > 0.005
    found = expected_accuracy(models, ALL, test_set, radio=noisy, k=2, means=torch.full((NODES, NODES), 10**-0.5), seed=0, draws=draws)
    assert found.accuracy == pytest.approx(chances.mean(), abs=4 * spread * math.sqrt(2 / draws))
    assert found.error == pytest.approx(spread, rel=0.35)  # 5 standard deviations of a standard deviation of 100
