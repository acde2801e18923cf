"""Records of data sets: what they accept, what they refuse and with which line; the hold-out split."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe.core.seeds import numpy_generator
from nmoe.data import ImageDataset, TrainTest, load_digits
from nmoe.data.holdout import hold_out_fifth


def dataset(labels, num_classes: int = 3, shape: tuple[int, ...] = (4, 5)) -> ImageDataset:
    labels = np.asarray(labels, np.int64)
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, *(1 for _ in shape)) + np.zeros(shape, np.uint8)
    return ImageDataset.from_arrays(name="toy", images=images, labels=labels, num_classes=num_classes)


def test_grey_images_get_a_channel_and_names():
    toy = dataset([0, 2, 1])
    assert toy.images.shape == (3, 4, 5, 1)
    assert toy.image_shape == (4, 5, 1)
    assert toy.label_names == ("0", "1", "2")
    assert len(toy) == 3


@pytest.mark.parametrize(
    ("images", "labels", "num_classes", "line"),
    [
        (np.zeros((10, 8)), np.zeros(10, np.int64), 2, "images must be uint8 [N, H, W] or [N, H, W, C], got float64 [10, 8]"),
        (np.full((2, 8, 8), np.nan), np.zeros(2, np.int64), 2, "images must be uint8 [N, H, W] or [N, H, W, C], got float64 [2, 8, 8, 1]"),
        (np.zeros((2, 8, 8, 2), np.uint8), np.zeros(2, np.int64), 2, "images must have 1 or 3 channels in the last dimension, got 2"),
        (np.zeros((0, 8, 8), np.uint8), np.zeros(0, np.int64), 2, "images must not be empty, got uint8 [0, 8, 8, 1]"),
        (np.zeros((2, 8, 8), np.uint8), np.zeros(2, np.int32), 2, "labels must be int64 [N], got int32 [2]"),
        (np.zeros((2, 8, 8), np.uint8), np.zeros((2, 1), np.int64), 2, "labels must be int64 [N], got int64 [2, 1]"),
        (np.zeros((2, 8, 8), np.uint8), np.zeros(3, np.int64), 2, "there must be one label for each image, got 2 images and 3 labels"),
        (np.zeros((2, 8, 8), np.uint8), np.array([0, 2]), 2, "labels must be in 0..1, got 0..2"),
        (np.zeros((2, 8, 8), np.uint8), np.array([-1, 1]), 2, "labels must be in 0..1, got -1..1"),
        (np.zeros((2, 8, 8), np.uint8), np.zeros(2, np.int64), 0, "num_classes must be at least 1, got 0"),
    ],
)
def test_bad_arrays_are_named(images, labels, num_classes, line):
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        ImageDataset.from_arrays(name="toy", images=images, labels=labels, num_classes=num_classes)


def test_label_names_must_match_the_classes():
    with pytest.raises(ValueError, match=r"^there must be one name for each of 2 classes, got 1 names$"):
        ImageDataset.from_arrays(
            name="toy", images=np.zeros((1, 2, 2), np.uint8), labels=np.zeros(1, np.int64), num_classes=2, label_names=("a",)
        )


def test_subset_keeps_order_and_classes():
    part = dataset([0, 2, 1, 0]).subset(np.array([3, 1]))
    assert part.labels.tolist() == [0, 2]
    assert part.images[:, 0, 0, 0].tolist() == [3, 1]
    assert part.num_classes == 3


@pytest.mark.parametrize("indices", [np.array([4]), np.array([-1]), np.array([], np.int64), np.array([0.5]), np.array([[0]])])
def test_subset_refuses_bad_indices(indices):
    with pytest.raises(ValueError, match=r"^indices must be "):
        dataset([0, 1, 2, 0]).subset(indices)


def test_train_and_test_must_agree():
    with pytest.raises(ValueError, match=r"^test images must be \(4, 5, 1\) as in training, got \(5, 4, 1\)$"):
        TrainTest(train=dataset([0]), test=dataset([0], shape=(5, 4)))
    with pytest.raises(ValueError, match=r"^test classes must be the 3 of training"):
        TrainTest(train=dataset([0]), test=dataset([0], num_classes=2))


@given(labels=st.lists(st.integers(0, 2), min_size=2, max_size=60), seed=st.integers(0, 5))
def test_hold_out_is_a_stratified_partition(labels, seed):
    toy = dataset(labels)
    counts = np.bincount(toy.labels, minlength=3)
    if counts.max() < 2:
        with pytest.raises(ValueError, match="wants a class with at least 2 samples"):
            hold_out_fifth(toy, numpy_generator(seed))
        return
    split = hold_out_fifth(toy, numpy_generator(seed))
    marks = np.concatenate([split.train.images[:, 0, 0, 0], split.test.images[:, 0, 0, 0]])
    assert sorted(marks.tolist()) == list(range(len(labels)))
    for label, count in enumerate(counts):
        held_out = int((split.test.labels == label).sum())
        assert held_out == (0 if count < 2 else max(1, round(count / 5)))
    again = hold_out_fifth(toy, numpy_generator(seed))
    assert np.array_equal(again.test.images, split.test.images)


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits as read_digits

    digits, read = load_digits(), read_digits()
    assert (len(digits.train), len(digits.test)) == (1438, 359)
    assert digits.train.image_shape == (8, 8, 1)
    assert digits.train.images.max() == 255
    assert sum(int(part.images.sum()) for part in (digits.train, digits.test)) == int(np.rint(read.images * 255 / 16).sum())
    assert np.array_equal(np.bincount(digits.test.labels), np.rint(np.bincount(read.target) / 5))
    assert np.array_equal(load_digits().test.images, digits.test.images)
