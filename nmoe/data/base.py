"""Data sets in memory: labelled images, and the pair of a training and a test set.

Every loader of this folder returns a ``TrainTest``; whatever reaches an ``ImageDataset`` has been checked, so the floors above do not check
again.
"""

from dataclasses import dataclass
from typing import Self, final

import numpy as np
from jaxtyping import Int64, UInt8


def _describe(array: np.ndarray) -> str:
    """Return dtype and shape of an array for a message, such as ``float64 [10, 8]``."""
    return f"{array.dtype} [{', '.join(str(size) for size in array.shape)}]"


def _check_images(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 [N, H, W] or [N, H, W, C], got {_describe(images)}")
    if min(images.shape[:3]) < 1:
        raise ValueError(f"images must not be empty, got {_describe(images)}")
    if images.shape[3] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels in the last dimension, got {images.shape[3]}")


def _check_labels(labels: np.ndarray, num_images: int, num_classes: int) -> None:
    if labels.dtype != np.int64 or labels.ndim != 1:
        raise ValueError(f"labels must be int64 [N], got {_describe(labels)}")
    if len(labels) != num_images:
        raise ValueError(f"there must be one label for each image, got {num_images} images and {len(labels)} labels")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}")


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageDataset:
    """Labelled images.

    Attributes:
        name: name of the data set, such as ``digits``.
        images: pixels, 0 to 255, one or three channels last.
        labels: class of each image, 0 to ``num_classes - 1``.
        num_classes: number of classes; not every class needs to occur.
        label_names: name of each class.
    """

    name: str
    images: UInt8[np.ndarray, "sample height width channel"]
    labels: Int64[np.ndarray, " sample"]
    num_classes: int
    label_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that the fields hold together."""
        _check_images(self.images)
        _check_labels(self.labels, len(self.images), self.num_classes)
        if len(self.label_names) != self.num_classes:
            raise ValueError(f"there must be one name for each of {self.num_classes} classes, got {len(self.label_names)} names")

    @classmethod
    def from_arrays(
        cls, *, name: str, images: np.ndarray, labels: np.ndarray, num_classes: int, label_names: tuple[str, ...] | None = None
    ) -> Self:
        """Make a data set from arrays, adding the channel dimension where grey images lack it.

        Args:
            name: name of the data set.
            images: uint8 [N, H, W] (grey) or [N, H, W, C] with C 1 or 3.
            labels: int64 [N], 0 to ``num_classes - 1``.
            num_classes: number of classes, at least 1.
            label_names: name of each class; the class numbers when None.

        Returns:
            The checked data set.

        Raises:
            ValueError: when dtype, shape, length or range is wrong.
        """
        names = tuple(str(label) for label in range(num_classes)) if label_names is None else label_names
        with_channel = images[..., np.newaxis] if images.ndim == 3 else images
        return cls(name=name, images=with_channel, labels=labels, num_classes=num_classes, label_names=names)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def subset(self, indices: Int64[np.ndarray, " chosen"]) -> "ImageDataset":
        """Return the images at ``indices``, in that order.

        Args:
            indices: int64 [M], 0 to N - 1, at least one.

        Returns:
            A data set with copies of the chosen images and the same classes.

        Raises:
            ValueError: when there are no indices, or one is out of range.
        """
        if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer) or len(indices) == 0:
            raise ValueError(f"indices must be int64 [M] with at least one entry, got {_describe(indices)}")
        if indices.min() < 0 or indices.max() >= len(self):
            raise ValueError(f"indices must be in 0..{len(self) - 1}, got {indices.min()}..{indices.max()}")
        return ImageDataset(
            name=self.name,
            images=self.images[indices],
            labels=self.labels[indices],
            num_classes=self.num_classes,
            label_names=self.label_names,
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainTest:
    """A training and a test set of the same images and classes.

    Attributes:
        train: what the nodes learn from.
        test: what they are measured on; no image of it is in ``train``.
    """

    train: ImageDataset
    test: ImageDataset

    def __post_init__(self) -> None:
        """Check that both parts agree."""
        if self.train.image_shape != self.test.image_shape:
            raise ValueError(f"test images must be {self.train.image_shape} as in training, got {self.test.image_shape}")
        if self.train.label_names != self.test.label_names:
            raise ValueError(f"test classes must be the {self.train.num_classes} of training, got {self.test.num_classes} of other names")
