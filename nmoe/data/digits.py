"""Digits: the 8x8 handwritten digits that come with scikit-learn, the only set that needs no file.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (1998), its test part of 1,797
images as shipped by ``sklearn.datasets.load_digits``.

Departures: values 0 to 16 are scaled to 0 to 255 and rounded; a stratified fifth is held out, the same one always.
"""

import numpy as np

from nmoe.core.seeds import numpy_generator
from nmoe.data.base import ImageDataset, TrainTest
from nmoe.data.holdout import hold_out_fifth


def load_digits() -> TrainTest:
    """Return the digits, 1,438 to train and 359 to test on, uint8 [N, 8, 8, 1]; the split never changes."""
    from sklearn.datasets import load_digits as read_digits  # type: ignore[import-untyped]  # a second of import, needed here only

    read = read_digits()
    whole = ImageDataset.from_arrays(
        name="digits",
        images=np.rint(read.images * (255 / 16)).astype(np.uint8),
        labels=read.target.astype(np.int64),
        num_classes=10,
    )
    return hold_out_fifth(whole, numpy_generator(0, "data", "digits", "hold-out"))
