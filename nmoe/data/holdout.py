"""Holding out: a stratified fifth of a data set, for sets that come without a test part."""

import numpy as np

from nmoe.data.base import ImageDataset, TrainTest


def _num_held_out(num_samples: int) -> int:
    """Return how many of a class's samples are held out: a fifth, at least one, but never the only one."""
    return max(1, round(num_samples / 5)) if num_samples > 1 else 0


def hold_out_fifth(dataset: ImageDataset, generator: np.random.Generator) -> TrainTest:
    """Split off a stratified fifth as the test part; both parts keep the order of the data set.

    Args:
        dataset: what to split.
        generator: draws which samples of each class are held out.

    Returns:
        The remaining four fifths and the held-out fifth of each class (rounded, at least one where the class has two or more samples).

    Raises:
        ValueError: when no class has two samples.
    """
    held_out = []
    for label in range(dataset.num_classes):
        of_class = generator.permutation(np.flatnonzero(dataset.labels == label))
        held_out.append(of_class[: _num_held_out(len(of_class))])
    test = np.sort(np.concatenate(held_out))
    if len(test) == 0:
        raise ValueError(f"holding out a test fifth wants a class with at least 2 samples, got {len(dataset)} samples of different classes")
    train = np.setdiff1d(np.arange(len(dataset)), test)
    return TrainTest(train=dataset.subset(train), test=dataset.subset(test))
