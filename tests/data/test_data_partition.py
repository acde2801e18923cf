"""Partitions: a contract over every final class, the exact class counts of shards, and what each refuses."""

import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import nmoe.data
from nmoe.core.seeds import numpy_generator
from nmoe.data import Dirichlet, Iid, Partition, QuantitySkew, Shards, class_histogram, load_digits

EXAMPLES: dict[type[Partition], list[Partition]] = {
    Iid: [Iid()],
    Shards: [Shards(classes_per_node=2), Shards(classes_per_node=3)],
    Dirichlet: [Dirichlet(alpha=0.5), Dirichlet(alpha=100.0, min_samples=2)],
    QuantitySkew: [QuantitySkew(alpha=0.01), QuantitySkew(alpha=1.0)],
}
EXPORTED = [kind for kind in vars(nmoe.data).values() if isinstance(kind, type) and issubclass(kind, Partition) and kind is not Partition]


def test_every_exported_partition_has_an_example():
    assert set(EXPORTED) == set(EXAMPLES)


@pytest.mark.parametrize("partition", [example for kind in EXPORTED for example in EXAMPLES.get(kind, [])], ids=repr)
class TestContract:
    @given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=120), num_nodes=st.integers(1, 8), seed=st.integers(0, 3))
    def test_disjoint_complete_nonempty_and_seeded(self, partition, labels, num_nodes, seed):
        labels = np.asarray(labels, np.int64)
        try:
            parts = partition.assign(labels, num_nodes, numpy_generator(seed))
        except ValueError:  # some rules cannot serve every drawn case; which and with what line is tested below
            return
        assert len(parts) == num_nodes
        assert all(len(part) > 0 and part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
        again = partition.assign(labels, num_nodes, numpy_generator(seed))
        assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))

    def test_digits_go_to_ten_nodes(self, partition):
        labels = load_digits().train.labels
        parts = partition.assign(labels, 10, numpy_generator(0))
        other = partition.assign(labels, 10, numpy_generator(1))
        assert sum(len(part) for part in parts) == len(labels)
        assert any(not np.array_equal(one, two) for one, two in zip(parts, other, strict=True))

    def test_more_nodes_than_samples(self, partition):
        with pytest.raises(ValueError, match=r"^4 nodes need at least \d+ samples, got 3$"):
            partition.assign(np.zeros(3, np.int64), 4, numpy_generator(0))

    def test_bad_arguments(self, partition):
        with pytest.raises(ValueError, match=r"^num_nodes must be at least 1, got 0$"):
            partition.assign(np.zeros(3, np.int64), 0, numpy_generator(0))
        with pytest.raises(ValueError, match=re.escape("labels must be int64 [N], got float64 [3]")):
            partition.assign(np.zeros(3), 2, numpy_generator(0))

    def test_frozen(self, partition):
        with pytest.raises((AttributeError, TypeError)):
            partition.alpha = 3.0


@given(num_samples=st.integers(1, 200), num_nodes=st.integers(1, 9))
def test_iid_sizes_differ_by_at_most_one(num_samples, num_nodes):
    assume(num_samples >= num_nodes)
    sizes = [len(part) for part in Iid().assign(np.zeros(num_samples, np.int64), num_nodes, numpy_generator(0))]
    assert max(sizes) - min(sizes) <= 1


@given(num_classes=st.integers(1, 12), num_nodes=st.integers(1, 15), per_node=st.integers(1, 12))
def test_shards_give_every_node_exactly_m_classes_and_balance_owners(num_classes, num_nodes, per_node):
    assume(per_node <= num_classes)
    labels = np.repeat(np.arange(num_classes), 2 * num_nodes)
    partition = Shards(classes_per_node=per_node)
    if num_nodes * per_node < num_classes:
        with pytest.raises(ValueError, match=f"^shards:{per_node} with {num_nodes} nodes covers only .* of {num_classes} classes$"):
            partition.assign(labels, num_nodes, numpy_generator(0))
        return
    parts = partition.assign(labels, num_nodes, numpy_generator(0))
    histograms = np.stack([class_histogram(labels[part], num_classes) for part in parts])  # [node, class]
    assert ((histograms > 0).sum(1) == per_node).all()
    owners = (histograms > 0).sum(0)
    assert owners.min() >= 1
    assert owners.max() - owners.min() <= 1
    for counts in histograms.T:
        assert counts[counts > 0].max() - counts[counts > 0].min() <= 1


def test_shards_of_the_trial():
    """Ten nodes with 2 neighbouring classes each, half of each class's images per owner (specs/nmoe.md, 2.4)."""
    labels = load_digits().train.labels
    whole = class_histogram(labels, 10)
    for node, part in enumerate(Shards(classes_per_node=2).assign(labels, 10, numpy_generator(0))):
        counts = class_histogram(labels[part], 10)
        assert set(np.flatnonzero(counts)) == {node, (node + 1) % 10}
        assert (np.abs(counts[counts > 0] - whole[counts > 0] / 2) <= 0.5).all()


@pytest.mark.parametrize(("num_nodes", "per_node", "num_classes"), [(5, 2, 10), (10, 1, 10), (20, 5, 100)])
def test_shards_of_fedsc_are_disjoint_in_label_order(num_nodes, per_node, num_classes):
    labels = np.tile(np.arange(num_classes), 3)
    for node, part in enumerate(Shards(classes_per_node=per_node).assign(labels, num_nodes, numpy_generator(0))):
        assert np.unique(labels[part]).tolist() == list(range(node * per_node, (node + 1) * per_node))


def test_shards_skip_classes_that_do_not_occur():
    labels = np.array([2, 2, 5, 5, 9, 9])
    parts = Shards(classes_per_node=1).assign(labels, 3, numpy_generator(0))
    assert [np.unique(labels[part]).tolist() for part in parts] == [[2], [5], [9]]


def test_dirichlet_shares_have_the_moments_of_the_distribution():
    """A symmetric Dirichlet share has mean 1/N and variance (N - 1) / (N^2 (N alpha + 1))."""
    labels, num_nodes, alpha = np.repeat(np.arange(400), 200), 4, 0.7
    parts = Dirichlet(alpha=alpha).assign(labels, num_nodes, numpy_generator(0))
    shares = np.stack([class_histogram(labels[part], 400) for part in parts]) / 200
    assert shares.mean(1) == pytest.approx(np.full(num_nodes, 1 / num_nodes), abs=0.05)
    assert shares.var() == pytest.approx((num_nodes - 1) / (num_nodes**2 * (num_nodes * alpha + 1)), rel=0.1)


def test_small_alpha_skews_more():
    labels = np.repeat(np.arange(10), 100)
    top_shares = []
    for alpha in (0.1, 1.0, 100.0):
        parts = Dirichlet(alpha=alpha).assign(labels, 5, numpy_generator(0))
        top_shares.append(np.mean([class_histogram(labels[part], 10).max() / len(part) for part in parts]))
    assert top_shares == sorted(top_shares, reverse=True)


def test_dirichlet_redraws_until_min_samples_or_gives_up():
    labels = np.zeros(100, np.int64)
    sizes = [len(part) for part in Dirichlet(alpha=1.0, min_samples=15).assign(labels, 4, numpy_generator(0))]
    assert min(sizes) >= 15
    with pytest.raises(ValueError, match=r"^Dirichlet with alpha 0\.001 left a node under 1 samples in each of 100 draws"):
        Dirichlet(alpha=0.001).assign(labels, 20, numpy_generator(0))


def test_quantity_skew_gives_everyone_one():
    sizes = [len(part) for part in QuantitySkew(alpha=1e-9).assign(np.zeros(50, np.int64), 10, numpy_generator(0))]
    assert sorted(sizes) == [1] * 9 + [41]


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Dirichlet(alpha=0.0), "alpha must be above 0 and at most 1e+06, got 0.0"),
        (lambda: Dirichlet(alpha=float("nan")), "alpha must be above 0 and at most 1e+06, got nan"),
        (lambda: Dirichlet(alpha=1.0, min_samples=0), "min_samples must be at least 1, got 0"),
        (lambda: QuantitySkew(alpha=-1.0), "alpha must be above 0 and at most 1e+06, got -1.0"),
        (lambda: QuantitySkew(alpha=float("inf")), "alpha must be above 0 and at most 1e+06, got inf"),
        (lambda: Shards(classes_per_node=0), "classes_per_node must be at least 1, got 0"),
        (
            lambda: Shards(classes_per_node=3).assign(np.array([0, 1, 0, 1]), 2, numpy_generator(0)),
            "classes_per_node must be at most the 2 classes there are, got 3",
        ),
        (
            lambda: Shards(classes_per_node=1).assign(np.array([0, 1, 2, 3]), 3, numpy_generator(0)),
            "shards:1 with 3 nodes covers only 3 of 4 classes",
        ),
        (
            lambda: Shards(classes_per_node=2).assign(np.array([0, 1, 1, 1]), 3, numpy_generator(0)),
            "class 0 needs a sample for each of its 3 owners, got 1",
        ),
        (lambda: class_histogram(np.array([0, 3]), 3), "labels must be in 0..2, got 0..3"),
    ],
)
def test_bad_input_is_named(make, line):
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        make()


def test_class_histogram_counts():
    assert class_histogram(np.array([0, 2, 2]), 4).tolist() == [1, 0, 2, 0]
    assert class_histogram(np.array([], np.int64), 2).tolist() == [0, 0]
