"""Experts together and the mixture: batched execution against plain loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmoe.moe import (
    ChannelAwareGate,
    ConvExtractor,
    LinearHead,
    Mix,
    Mixture,
    MlpExpert,
    Routing,
    SeparateExperts,
    StackedExperts,
    TopKGate,
    combine,
    pick,
    together,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_experts(count: int, *, hidden_dim: int = 6) -> list[MlpExpert]:
    return [MlpExpert(feature_dim=8, hidden_dim=hidden_dim, num_classes=5, generator=generator(seed)) for seed in range(count)]


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("batch", [0, 1, 9])
def test_stacked_experts_equal_a_loop(count, batch):
    experts = some_experts(count)
    with torch.no_grad():
        for expert in experts:
            expert.hidden.bias.normal_(generator=generator(50))
            expert.output.bias.normal_(generator=generator(51))
    features = torch.randn(batch, 8, generator=generator(99))
    answers = StackedExperts(experts)(features)
    assert answers.shape == (batch, count, 5)
    torch.testing.assert_close(answers, torch.stack([expert(features) for expert in experts], dim=1))


def test_stacked_experts_get_the_gradients_of_a_loop():
    experts = some_experts(3)
    features = torch.randn(9, 8, generator=generator(99))
    stacked = StackedExperts(experts)
    stacked(features).square().sum().backward()
    sum(expert(features).square().sum() for expert in experts).backward()
    for index, expert in enumerate(experts):
        torch.testing.assert_close(stacked.hidden_weight.grad[index], expert.hidden.weight.grad)
        torch.testing.assert_close(stacked.output_bias.grad[index], expert.output.bias.grad)


def test_stacked_experts_are_copies():
    experts = some_experts(2)
    features = torch.randn(3, 8, generator=generator(99))
    stacked = StackedExperts(experts)
    before = stacked(features)
    with torch.no_grad():
        experts[0].output.weight.zero_()
    assert torch.equal(stacked(features), before)


def test_experts_that_cannot_be_stacked_are_refused():
    with pytest.raises(ValueError, match="at least one expert"):
        StackedExperts([])
    with pytest.raises(ValueError, match="at least one expert"):
        SeparateExperts([])
    with pytest.raises(ValueError, match="one shape"):
        StackedExperts([*some_experts(1), *some_experts(1, hidden_dim=7)])


@pytest.mark.parametrize("kind", [StackedExperts, SeparateExperts])
def test_experts_can_each_be_given_features_of_their_own(kind):
    experts = some_experts(3)
    features = torch.randn(4, 3, 8, generator=generator(99))
    answers = kind(experts).each(features)
    torch.testing.assert_close(answers, torch.stack([expert(features[:, place]) for place, expert in enumerate(experts)], dim=1))
    torch.testing.assert_close(kind(experts)(features[:, 0]), kind(experts).each(features[:, :1].expand(-1, 3, -1)))


def test_experts_of_one_shape_are_stacked_and_others_kept_apart():
    alike, unlike = some_experts(3), [*some_experts(2), *some_experts(1, hidden_dim=7)]
    features = torch.randn(4, 8, generator=generator(99))
    assert isinstance(together(alike), StackedExperts)
    assert isinstance(together(unlike), SeparateExperts)
    for experts in (alike, unlike):
        torch.testing.assert_close(together(experts)(features), torch.stack([expert(features) for expert in experts], dim=1))
    assert list(together(unlike).experts) == unlike
    with pytest.raises(ValueError, match="at least one expert"):
        together([])
    other = MlpExpert(feature_dim=8, hidden_dim=6, num_classes=4, generator=generator())
    with pytest.raises(ValueError, match=r"agree on their numbers of features and classes, got \[\(8, 4\), \(8, 5\)\]"):
        together([*some_experts(1), other])


def test_an_expert_is_two_layers_and_a_head_is_one():
    expert = some_experts(1)[0]
    head = LinearHead(feature_dim=8, num_classes=5, generator=generator())
    features = torch.randn(4, 8, generator=generator(9))
    hidden = (features @ expert.hidden.weight.T + expert.hidden.bias).clamp_min(0)
    torch.testing.assert_close(expert(features), hidden @ expert.output.weight.T + expert.output.bias)
    torch.testing.assert_close(head(features), features @ head.output.weight.T + head.output.bias)


def test_combine_by_hand():
    """Two experts, two classes; e^(ln 3) = 3, so probabilities are quarters."""
    three = torch.tensor(3.0).log().item()
    logits = torch.tensor([[[three, 0.0], [0.0, three]]])
    weights = torch.tensor([[0.75, 0.25]])
    mixed = combine(logits, weights, mix=Mix.PROBABILITIES)
    torch.testing.assert_close(mixed, torch.tensor([[0.75 * 0.75 + 0.25 * 0.25, 0.75 * 0.25 + 0.25 * 0.75]]))  # 0.625, 0.375
    mixed = combine(logits, weights, mix=Mix.LOGITS)  # logits 0.75 ln 3 and 0.25 ln 3: odds sqrt(3)
    odds = 3**0.5
    torch.testing.assert_close(mixed, torch.tensor([[odds / (1 + odds), 1 / (1 + odds)]]))


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 1000), st.sampled_from(Mix))
def test_combine_gives_probabilities_and_ignores_the_order_of_experts(k, classes, seed, mix):
    logits = 5 * torch.randn(3, k, classes, generator=generator(seed), dtype=torch.float64)
    weights = torch.rand(3, k, generator=generator(seed + 1), dtype=torch.float64).softmax(dim=1)
    mixed = combine(logits, weights, mix=mix)
    assert (mixed >= 0).all()
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(3, dtype=torch.float64))
    order = torch.randperm(k, generator=generator(seed))
    torch.testing.assert_close(combine(logits[:, order], weights[:, order], mix=mix), mixed)


@pytest.mark.parametrize("mix", Mix)
def test_combine_of_one_or_of_equal_experts_is_that_expert(mix):
    logits = torch.randn(4, 1, 3, generator=generator())
    alone = combine(logits, torch.ones(4, 1), mix=mix)
    torch.testing.assert_close(alone, logits.squeeze(1).softmax(dim=1))
    torch.testing.assert_close(combine(logits.expand(-1, 5, -1), torch.full((4, 5), 0.2), mix=mix), alone)


def test_pick_takes_the_chosen_rows():
    logits = torch.arange(24.0).reshape(2, 4, 3)
    routing = Routing(experts=torch.tensor([[3, 0], [1, 1]]), weights=torch.full((2, 2), 0.5))
    assert torch.equal(pick(logits, routing), torch.stack([logits[0, [3, 0]], logits[1, [1, 1]]]))


@pytest.mark.parametrize("mix", Mix)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_mixture_equals_a_loop_over_samples(mix, k):
    extractor = ConvExtractor(in_channels=1, feature_dim=8, generator=generator())
    experts = some_experts(4)
    gate = TopKGate(feature_dim=8, num_experts=4, trunk_dim=0, noisy=False, generator=generator())
    with torch.no_grad():
        gate.output.weight.normal_(generator=generator(5))
    mask = torch.tensor([True, True, False, True])
    images = torch.rand(11, 1, 8, 8, generator=generator(6))
    output = Mixture(extractor=extractor, experts=experts, gate=gate, mix=mix)(images, k=k, mask=mask)
    for row, image in enumerate(images):
        features = extractor(image.unsqueeze(0))
        scores = (features @ gate.output.weight.T + gate.output.bias).detach()
        best = sorted((0, 1, 3), key=lambda j: -float(scores[0, j]))[:k]
        weights = scores[0, best].softmax(dim=0)
        answers = [experts[j](features)[0] for j in best]
        if mix is Mix.PROBABILITIES:
            wanted = sum(weight * answer.softmax(dim=0) for weight, answer in zip(weights, answers, strict=True))
        else:
            wanted = sum(weight * answer for weight, answer in zip(weights, answers, strict=True)).softmax(dim=0)
        assert output.routing.experts[row].tolist() == best
        torch.testing.assert_close(output.probabilities[row], wanted, rtol=1e-5, atol=1e-6)


def test_mixture_tells_its_gate_of_the_links():
    gate = ChannelAwareGate(feature_dim=8, num_experts=3, joint=True, generator=generator())
    with torch.no_grad():
        for index, parameter in enumerate(gate.parameters()):
            parameter.normal_(generator=generator(index))
    extractor = ConvExtractor(in_channels=1, feature_dim=8, generator=generator())
    mixture = Mixture(extractor=extractor, experts=some_experts(3), gate=gate, mix=Mix.LOGITS)
    images, snr_db, mask = (
        torch.rand(7, 1, 8, 8, generator=generator(6)),
        9 * torch.randn(7, 3, generator=generator(7)),
        torch.ones(3).bool(),
    )
    told, untold = (mixture(images, k=2, mask=mask, snr_db=links).routing.weights for links in (snr_db, None))
    assert torch.equal(told, gate(extractor(images), k=2, mask=mask, snr_db=snr_db).weights)
    assert not torch.allclose(told, untold)
