"""Fashion-MNIST: 28x28 grey images of clothes in 10 classes.

Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
arXiv:1708.07747 (2017). Read from the project's ``.npz`` files or from the original idx files, plain or gzipped.

Departures: the project's training file holds 20,000 of the 60,000 images, 2,000 a class. The idx files of plain MNIST have the same names
and form: put the right ones there.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from nmoe.core.errors import BadFile
from nmoe.data.base import ImageDataset, TrainTest
from nmoe.data.npz import read_dataset
from nmoe.data.sums import verify

LABEL_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_IDX_STEMS = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 0x08  # the idx type code


def read_idx(path: Path, num_dimensions: int) -> np.ndarray:
    """Read an idx file of unsigned bytes.

    Args:
        path: the file; gzipped where its name ends in ``.gz``.
        num_dimensions: dimensions wanted, 3 for images and 1 for labels.

    Returns:
        The array, uint8.

    Raises:
        BadFile: when the file is damaged, or of another type or size.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise BadFile(f"cannot read {path}: {error}") from error
    start = 4 + 4 * num_dimensions
    if len(data) < start or data[:4] != bytes((0, 0, _UNSIGNED_BYTE, num_dimensions)):
        raise BadFile(f"{path} is not an idx file of unsigned bytes in {num_dimensions} dimensions")
    shape = struct.unpack(f">{num_dimensions}I", data[4:start])
    wanted = int(np.prod([int(size) for size in shape], dtype=object))
    if len(data) - start != wanted:
        raise BadFile(f"{path} is damaged: {wanted} bytes wanted for {list(shape)}, {len(data) - start} found")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()


def _find(data_dir: Path, names: tuple[str, ...]) -> Path | None:
    """Return the first of ``names`` that is a file in the data folder or its ``vision`` folder."""
    return next((path for name in names for path in (data_dir / name, data_dir / "vision" / name) if path.is_file()), None)


def _read_part(data_dir: Path, part: str) -> ImageDataset:
    """Read the ``train`` or ``test`` part in whichever storage lies there."""
    archive = _find(data_dir, (f"fashion_mnist_{part}.npz",))
    if archive is not None:
        verify(archive, data_dir)
        return read_dataset(archive, name="fashion-mnist", label_names=LABEL_NAMES)
    arrays = []
    for kind, num_dimensions in (("images", 3), ("labels", 1)):
        name = f"{_IDX_STEMS[part]}-{kind}-idx{num_dimensions}-ubyte"
        path = _find(data_dir, (name, f"{name}.gz"))
        if path is None:
            wanted = f"fashion_mnist_{part}.npz or {name}[.gz]"
            raise BadFile(f"no Fashion-MNIST in {data_dir}: {wanted} is wanted there or in its vision folder")
        verify(path, data_dir)
        arrays.append(read_idx(path, num_dimensions))
    images, labels = arrays
    return ImageDataset.from_arrays(
        name="fashion-mnist", images=images, labels=labels.astype(np.int64), num_classes=len(LABEL_NAMES), label_names=LABEL_NAMES
    )


def load_fashion_mnist(data_dir: Path) -> TrainTest:
    """Load Fashion-MNIST from ``fashion_mnist_{train,test}.npz`` or from the four idx files.

    Args:
        data_dir: folder with the files, or with a ``vision`` folder that has them.

    Returns:
        The training and test part, uint8 [N, 28, 28, 1].

    Raises:
        BadFile: when a file is missing, damaged, or holds something else.
    """
    try:
        return TrainTest(train=_read_part(data_dir, "train"), test=_read_part(data_dir, "test"))
    except ValueError as error:
        raise BadFile(f"the Fashion-MNIST files in {data_dir} are not Fashion-MNIST: {error}") from error
