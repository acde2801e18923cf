"""Balance: how experts are used, against closed forms and counts, and penalties that pull only where they should."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from nmoe.moe import Routing, TopKGate, expert_load, gate_entropy, importance, importance_cv2

rows_of_three = st.lists(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), min_size=1, max_size=5)


def gates(rows: list[list[float]]) -> torch.Tensor:
    weights = torch.tensor(rows, dtype=torch.float64)
    return weights / weights.sum(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ([[0.5, 0.5], [0.5, 0.5]], 0.0),
        ([[1.0, 0.0], [0.0, 1.0]], 0.0),
        ([[1.0, 0.0], [1.0, 0.0]], 1.0),  # all on one of n experts: n - 1
        ([[1.0, 0.0, 0.0, 0.0]], 3.0),
        ([[3.0, 1.0]], 0.25),  # mean 2, variance 1
    ],
)
def test_importance_cv2_closed_form(weights, wanted):
    assert float(importance_cv2(torch.tensor(weights))) == pytest.approx(wanted)


@given(st.lists(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), min_size=1, max_size=5), st.floats(0.1, 10))
def test_importance_cv2_laws(rows, factor):
    weights = torch.tensor(rows, dtype=torch.float64)
    value = float(importance_cv2(weights))
    sums = [sum(row[j] for row in rows) for j in range(3)]
    mean = sum(sums) / 3
    assert value == pytest.approx(sum((x - mean) ** 2 for x in sums) / 3 / mean**2, abs=1e-9)
    assert value == pytest.approx(float(importance_cv2(weights * factor)), abs=1e-9)
    assert value == pytest.approx(float(importance_cv2(weights[:, [2, 0, 1]])), abs=1e-9)


def test_importance_and_load_by_hand():
    routing = Routing(experts=torch.tensor([[2, 0], [2, 1], [0, 2]]), weights=torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.625, 0.375]]))
    assert importance(routing.dense(4)).tolist() == [0.875, 0.5, 1.625, 0.0]
    assert expert_load(routing, num_experts=4).tolist() == [2, 1, 3, 0]


@given(st.integers(0, 20), st.integers(1, 4), st.integers(0, 99))
def test_load_counts_and_adds_up_to_k_a_sample(batch, k, seed):
    scores = torch.rand(batch, 5, generator=torch.Generator().manual_seed(seed))
    experts = scores.topk(k, dim=1).indices
    counts = expert_load(Routing(experts=experts, weights=torch.full(experts.shape, 1 / k)), num_experts=5)
    assert counts.tolist() == [int((experts == expert).sum()) for expert in range(5)]
    assert int(counts.sum()) == batch * k


@given(rows_of_three)
def test_entropy_is_scipys_of_the_mean_gate_and_ignores_the_order(rows):
    weights = gates(rows)
    found = float(gate_entropy(weights))
    assert found == pytest.approx(entropy(np.asarray(weights).mean(axis=0)), abs=1e-9)
    assert -1e-9 <= found <= math.log(3) + 1e-9
    assert found == pytest.approx(float(gate_entropy(weights[:, [1, 2, 0]])), abs=1e-9)
    assert found == pytest.approx(float(gate_entropy(weights.flip(0))), abs=1e-9)


def test_entropy_at_its_ends():
    assert float(gate_entropy(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))) == pytest.approx(0, abs=1e-6)
    assert float(gate_entropy(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))) == pytest.approx(math.log(2))  # the batch, not the sample
    with pytest.raises(ValueError, match="at least one sample are wanted, got none"):
        gate_entropy(torch.zeros(0, 3))


def test_descending_cv2_spreads_a_collapsed_gate():
    gate = TopKGate(feature_dim=3, num_experts=4, trunk_dim=0, noisy=False, generator=torch.Generator())
    with torch.no_grad():
        gate.output.bias.copy_(torch.tensor([6.0, 0.0, 0.0, 0.0]))
    features = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(4, dtype=torch.bool)
    optimiser = torch.optim.SGD(gate.parameters(), lr=5.0)
    start = float(gate_entropy(gate(features, k=4, mask=mask).dense(4)).detach())
    for _ in range(100):
        optimiser.zero_grad()
        importance_cv2(gate(features, k=4, mask=mask).dense(4)).backward()
        optimiser.step()
    assert start < 0.1
    assert float(gate_entropy(gate(features, k=4, mask=mask).dense(4)).detach()) >= 0.5 * math.log(4) - 0.05
