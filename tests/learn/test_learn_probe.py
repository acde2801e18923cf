"""Probes: the linear one against scikit-learn, the neighbours against brute force."""

import math
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from nmoe.data import load_digits, to_unit
from nmoe.learn import linear_probe, nearest_neighbours


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    read = load_digits()
    train, test = (to_unit(part.images).reshape(len(part), -1) for part in (read.train, read.test))
    return train, torch.from_numpy(read.train.labels), test, torch.from_numpy(read.test.labels)


def test_linear_probe_is_within_two_points_of_logistic_regression(digits):
    train, labels, test, test_labels = digits
    found = linear_probe(train, labels, test, test_labels, num_classes=10, generator=generator())
    scaler = StandardScaler().fit(train.numpy())
    reference = LogisticRegression(max_iter=500).fit(scaler.transform(train.numpy()), labels.numpy())
    assert found == pytest.approx(reference.score(scaler.transform(test.numpy()), test_labels.numpy()), abs=0.02)
    assert found > 0.93


def test_linear_probe_of_noise_is_at_chance(digits):
    _, labels, _, test_labels = digits
    noise = torch.randn(len(labels), 16, generator=generator())
    test_noise = torch.randn(len(test_labels), 16, generator=generator(1))
    found = linear_probe(noise, labels, test_noise, test_labels, num_classes=10, generator=generator(), epochs=20)
    assert found < 0.2


def test_linear_probe_repeats_and_bears_constant_features():
    features = torch.randn(30, 4, generator=generator())
    labels = (features[:, 0] > 0).long()
    features[:, 3] = 5.0
    found = [linear_probe(features, labels, features, labels, num_classes=2, generator=generator(1)) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0] > 0.9


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(20, 60), st.integers(1, 8), st.sampled_from([0.1, 1.0]))
def test_nearest_neighbours_are_brute_force(seed, num_samples, k, temperature):
    features = torch.randn(num_samples, 3, generator=generator(seed), dtype=torch.float32)
    labels = torch.randint(0, 3, (num_samples,), generator=generator(seed + 1))
    tests = torch.randn(9, 3, generator=generator(seed + 2))
    truth = torch.randint(0, 3, (9,), generator=generator(seed + 3))
    asked = max(1, min(k, num_samples // 10))
    right = 0
    for sample, label in zip(tests.tolist(), truth.tolist(), strict=True):

        def similarity(row: list[float], sample: list[float] = sample) -> float:
            return sum(a * b for a, b in zip(row, sample, strict=True)) / math.hypot(*row) / math.hypot(*sample)

        nearest = sorted(range(num_samples), key=lambda i: -similarity(features[i].tolist()))[:asked]
        votes: dict[int, float] = defaultdict(float)
        for i in nearest:
            votes[int(labels[i])] += math.exp(similarity(features[i].tolist()) / temperature)
        right += max(votes, key=lambda c: votes[c]) == label
    found = nearest_neighbours(features, labels, tests, truth, num_classes=3, k=k, temperature=temperature)
    assert found == pytest.approx(right / 9)


def test_at_most_a_tenth_of_the_samples_vote():
    """Nineteen far samples outvote one near one only if more than a tenth of the twenty may vote."""
    features = torch.tensor([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 18)
    labels = torch.tensor([0] * 2 + [1] * 18)
    found = nearest_neighbours(features, labels, torch.tensor([[1.0, 0.1]]), torch.tensor([0]), num_classes=2, k=200, temperature=100.0)
    assert found == 1.0


def test_neighbours_ignore_the_length_of_a_vector(digits):
    train, labels, test, test_labels = digits
    found = nearest_neighbours(train, labels, test, test_labels, num_classes=10)
    assert found == nearest_neighbours(7 * train, labels, 0.5 * test, test_labels, num_classes=10)
    assert found > 0.85
