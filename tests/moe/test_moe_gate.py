"""Gates: routing against brute force, controls against their definitions."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from nmoe.moe import Routing, TopKGate, all_uniform, oracle, random_uniform, route


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def routings(draw):
    """Scores without ties, a mask and a k that fits it."""
    num_experts = draw(st.integers(1, 6))
    batch = draw(st.integers(0, 4))
    reachable = draw(st.sets(st.integers(0, num_experts - 1), min_size=1))
    k = draw(st.integers(1, len(reachable)))
    row = st.lists(st.floats(-50, 50, width=32), min_size=num_experts, max_size=num_experts, unique=True)
    scores = torch.tensor(draw(st.lists(row, min_size=batch, max_size=batch)), dtype=torch.float32).reshape(batch, num_experts)
    mask = torch.zeros(num_experts, dtype=torch.bool)
    mask[list(reachable)] = True
    return scores, k, mask


@given(routings())
def test_route_is_brute_force_top_k_softmax(case):
    scores, k, mask = case
    routing = route(scores, k=k, mask=mask)
    dense = routing.dense(scores.shape[1])
    for row in range(scores.shape[0]):
        reachable = [j for j in range(scores.shape[1]) if mask[j]]
        best = sorted(reachable, key=lambda j: -float(scores[row, j]))[:k]
        total = sum(math.exp(float(scores[row, j] - scores[row, best[0]])) for j in best)
        wanted = {j: math.exp(float(scores[row, j] - scores[row, best[0]])) / total for j in best}
        assert routing.experts[row].tolist() == best
        assert dense[row].tolist() == pytest.approx([wanted.get(j, 0.0) for j in range(scores.shape[1])], abs=1e-6)


@given(routings())
def test_weights_sum_to_one_and_masked_experts_get_none(case):
    scores, k, mask = case
    routing = route(scores, k=k, mask=mask)
    assert routing.experts.shape == routing.weights.shape == (scores.shape[0], k)
    assert torch.allclose(routing.weights.sum(dim=1), torch.ones(scores.shape[0]), atol=1e-6)
    assert (routing.weights >= 0).all()
    assert mask[routing.experts].all()
    assert not routing.dense(scores.shape[1])[:, ~mask].any()


def test_route_takes_the_best_k_subset():
    """Of all subsets of k experts, the chosen one has the largest sum of scores."""
    scores = torch.randn(20, 6, generator=generator())
    mask = torch.tensor([True, True, False, True, True, True])
    chosen = route(scores, k=3, mask=mask).experts
    for row, experts in zip(scores, chosen, strict=True):
        best = max(itertools.combinations([0, 1, 3, 4, 5], 3), key=lambda subset: float(row[list(subset)].sum()))
        assert set(experts.tolist()) == set(best)


@pytest.mark.parametrize("k", [0, -1, 3, 100])
def test_k_out_of_range_is_refused(k):
    mask = torch.tensor([True, False, True])
    with pytest.raises(ValueError, match=f"between 1 and the 2 reachable experts, got {k}"):
        route(torch.zeros(2, 3), k=k, mask=mask)
    with pytest.raises(ValueError, match=f"got {k}"):
        random_uniform(2, k=k, mask=mask, generator=generator())


@pytest.mark.parametrize("control", [lambda mask: all_uniform(2, mask=mask), lambda mask: route(torch.zeros(2, 3), k=1, mask=mask)])
def test_nobody_to_ask_is_refused(control):
    with pytest.raises(ValueError, match="reachable"):
        control(torch.zeros(3, dtype=torch.bool))


def a_gate(*, trunk_dim: int = 0, noisy: bool = False) -> TopKGate:
    gate = TopKGate(feature_dim=5, num_experts=4, trunk_dim=trunk_dim, noisy=noisy, generator=generator())
    with torch.no_grad():
        for index, parameter in enumerate(gate.parameters()):
            parameter.normal_(generator=generator(index))
    return gate


@pytest.mark.parametrize("trunk_dim", [0, 7])
@pytest.mark.parametrize("noisy", [False, True])
def test_scores_without_noise_are_the_linear_or_two_layer_map(trunk_dim, noisy):
    gate = a_gate(trunk_dim=trunk_dim, noisy=noisy)
    features = torch.randn(6, 5, generator=generator(9))
    hidden = features if gate.trunk is None else (features @ gate.trunk.weight.T + gate.trunk.bias).clamp_min(0)
    torch.testing.assert_close(gate.scores(features), hidden @ gate.output.weight.T + gate.output.bias)


def test_noise_is_off_without_a_generator_and_repeats_with_one():
    gate = a_gate(noisy=True)
    features = torch.randn(6, 5, generator=generator(9))
    plain = gate.scores(features)
    assert torch.equal(plain, gate.scores(features))
    first, again, other = (gate.scores(features, generator=generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, plain)
    assert not torch.equal(first, other)


def test_a_gate_without_noise_ignores_the_generator():
    gate = a_gate()
    features = torch.randn(6, 5, generator=generator(9))
    assert torch.equal(gate.scores(features), gate.scores(features, generator=generator(3)))


def test_noise_has_mean_zero_and_the_learned_scale():
    gate = a_gate(noisy=True)
    features = torch.randn(1, 5, generator=generator(9))
    drawn = gate.scores(features.expand(20_000, -1), generator=generator(1)).detach()
    scale = functional.softplus(gate.noise(features)).detach()
    torch.testing.assert_close(drawn.std(dim=0, keepdim=True), scale, rtol=0.03, atol=0)
    error = (drawn.mean(dim=0) - gate.scores(features).detach()).abs() / (scale / math.sqrt(20_000))
    assert (error < 5).all()


def test_a_new_gate_treats_every_expert_alike():
    for trunk_dim in (0, 3):
        gate = TopKGate(feature_dim=5, num_experts=4, trunk_dim=trunk_dim, noisy=True, generator=generator())
        routing = gate(torch.randn(3, 5, generator=generator(9)), k=4, mask=torch.ones(4, dtype=torch.bool))
        torch.testing.assert_close(routing.dense(4), torch.full((3, 4), 0.25))


def test_gate_learns_through_its_weights_only_where_it_chose():
    gate = a_gate()
    features = torch.randn(1, 5, generator=generator(9))
    routing = gate(features, k=2, mask=torch.ones(4, dtype=torch.bool))
    routing.weights[0, 0].backward()
    moved = set(gate.output.weight.grad.any(dim=1).nonzero().squeeze(1).tolist())
    assert moved == set(routing.experts[0].tolist())


def test_all_uniform_is_every_reachable_expert():
    mask = torch.tensor([True, False, True, True])
    routing = all_uniform(3, mask=mask)
    assert routing.experts.tolist() == [[0, 2, 3]] * 3
    torch.testing.assert_close(routing.dense(4), torch.tensor([[1 / 3, 0, 1 / 3, 1 / 3]]).expand(3, -1))


def test_random_uniform_draws_every_subset_equally_often():
    mask = torch.tensor([True, False, True, True, True])
    routing = random_uniform(12_000, k=2, mask=mask, generator=generator())
    assert (routing.weights == 0.5).all()
    subsets = [frozenset(row) for row in routing.experts.tolist()]
    wanted = [frozenset(pair) for pair in itertools.combinations([0, 2, 3, 4], 2)]
    assert set(subsets) == set(wanted)
    for subset in wanted:  # binomial(12000, 1/6): standard deviation 41
        assert abs(subsets.count(subset) - 2000) < 200
    again = random_uniform(12_000, k=2, mask=mask, generator=generator())
    assert torch.equal(routing.experts, again.experts)


def test_oracle_is_the_reachable_expert_surest_of_the_truth():
    logits = 3 * torch.randn(30, 5, 4, generator=generator())
    labels = torch.randint(0, 4, (30,), generator=generator(1))
    mask = torch.tensor([True, True, False, True, True])
    routing = oracle(logits, labels, mask=mask)
    assert (routing.weights == 1).all()
    for row in range(30):
        truth = [float(logits[row, j].softmax(0)[labels[row]]) if mask[j] else -1.0 for j in range(5)]
        assert truth[int(routing.experts[row, 0])] == pytest.approx(max(truth), abs=1e-6)


def test_dense_of_two_samples():
    routing = Routing(experts=torch.tensor([[2, 0], [1, 2]]), weights=torch.tensor([[0.75, 0.25], [0.6, 0.4]]))
    torch.testing.assert_close(routing.dense(3), torch.tensor([[0.25, 0.0, 0.75], [0.0, 0.6, 0.4]]))


@pytest.mark.parametrize("sizes", [{"feature_dim": 0, "num_experts": 4}, {"feature_dim": 5, "num_experts": 0}])
def test_a_gate_without_features_or_experts_is_refused(sizes):
    with pytest.raises(ValueError, match=f"at least 1, got {sizes['feature_dim']} and {sizes['num_experts']}"):
        TopKGate(**sizes, trunk_dim=0, noisy=False, generator=generator())
