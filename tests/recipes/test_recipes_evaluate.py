"""Scores against brute force: local accuracy weighs each test image by its class's share of the node's training data."""

import numpy as np
import pytest
import torch

from nmoe.data import ImageDataset
from nmoe.recipes.evaluate import TestBench


def bench_of(test_labels: list[int], node_labels: list[list[int]], num_classes: int) -> TestBench:
    labels = np.array(test_labels, dtype=np.int64)
    test = ImageDataset.from_arrays(name="t", images=np.zeros((len(labels), 2, 2, 1), np.uint8), labels=labels, num_classes=num_classes)
    return TestBench(test, [np.array(labels, dtype=np.int64) for labels in node_labels])


def test_local_and_global_scores_by_hand() -> None:
    bench = bench_of([0, 0, 1, 1, 1, 2], [[0, 0, 0, 1], [2]], 3)
    right = torch.tensor([[True, False, True, True, False, False], [False, False, False, False, False, True]])
    score = bench.score(right)
    first = 3 / 4 * 1 / 2 + 1 / 4 * 2 / 3  # class 0 right half the time, class 1 two thirds
    assert score.local == pytest.approx((first + 1.0) / 2)
    assert score.global_ == pytest.approx((3 / 6 + 1 / 6) / 2)


def test_local_score_equals_expected_accuracy_of_a_draw_from_the_node_distribution() -> None:
    generator = np.random.default_rng(0)
    test_labels = generator.integers(0, 4, 200)
    nodes = [generator.integers(0, 4, 50) for _ in range(3)]
    bench = bench_of(test_labels.tolist(), [labels.tolist() for labels in nodes], 4)
    right = generator.random((3, 200)) < 0.6
    wanted = []
    for node, labels in enumerate(nodes):
        share = np.bincount(labels, minlength=4) / len(labels)
        wanted.append(sum(share[c] * right[node][test_labels == c].mean() for c in range(4)))
    assert bench.score(torch.from_numpy(right)).local == pytest.approx(np.mean(wanted))


def test_one_row_stands_for_every_node_and_absent_test_classes_are_left_out() -> None:
    bench = bench_of([0, 1], [[0], [1, 2]], 3)  # class 2 has no test image
    score = bench.score(torch.tensor([[True, False]]))
    assert score.local == pytest.approx(0.5)
    assert score.global_ == pytest.approx(0.5)
    scores = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    assert bench.score_predictions(scores) == score
