"""Archives of numpy arrays (``.npz``): the storage of the project's data and the way in for a user's own.

A user's file has ``images`` uint8 [N, H, W] or [N, H, W, C], and ``labels`` int64 [N]; ``label_names`` is optional. In place of ``images``
it may have ``dct`` and ``step`` (see ``nmoe.data.dct``). Nothing is ever unpickled.
"""

import lzma
import zipfile
import zlib
from pathlib import Path

import numpy as np

from nmoe.core.errors import BadFile
from nmoe.core.seeds import numpy_generator
from nmoe.data import dct
from nmoe.data.base import ImageDataset, TrainTest
from nmoe.data.holdout import hold_out_fifth

_KEYS = ("images", "dct", "step", "labels", "label_names")
# What zipfile, the decompressors and numpy raise on damaged bytes: RuntimeError is an encrypted member, MemoryError an absurd header,
# TypeError one array under an archive's name.
_DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read those arrays of an archive that describe images.

    Args:
        path: the ``.npz`` file.

    Returns:
        The arrays among ``images``, ``dct``, ``step``, ``labels`` and ``label_names`` that the file has.

    Raises:
        BadFile: when the file is missing, damaged, or holds pickled objects.
    """
    if not path.is_file():
        raise BadFile(f"there is no file {path}")
    if not zipfile.is_zipfile(path):
        raise BadFile(f"{path} is not a whole .npz archive (np.savez writes one)")
    try:
        # numpy leaves a file that it opened itself open when the archive's directory is damaged
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in _KEYS if key in archive}
    except _DAMAGE as error:
        raise BadFile(f"cannot read {path}: {str(error) or type(error).__name__}".splitlines()[0]) from error
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy hands a member that is not in its format out as bytes
            raise BadFile(f"cannot read {path}: {key} is not a numpy array")
    return arrays


def _images(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Return the pixels, decoded where they are stored as coefficients."""
    if "images" in arrays:
        return arrays["images"]
    if "dct" not in arrays or "step" not in arrays:
        raise ValueError(f"the keys images and labels are wanted, got {', '.join(sorted(arrays)) or 'neither'}")
    if arrays["step"].size != 1 or not np.issubdtype(arrays["step"].dtype, np.number):
        raise ValueError(f"step must be one number, got {arrays['step'].dtype} {list(arrays['step'].shape)}")
    return dct.decode(arrays["dct"], float(arrays["step"].item()))


def _num_classes(labels: np.ndarray) -> int:
    """Return the largest label plus one, after checking that every class below it occurs."""
    if labels.dtype != np.int64 or labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"labels must be int64 [N] with N at least 1, got {labels.dtype} {list(labels.shape)}")
    classes = np.unique(labels)
    if classes[0] < 0:
        raise ValueError(f"labels must be at least 0, got {classes[0]}")
    gaps = np.flatnonzero(classes != np.arange(len(classes)))
    if len(gaps):
        raise ValueError(f"every class in 0..{classes[-1]} must occur in labels, class {gaps[0]} does not")
    return len(classes)


def _label_names(arrays: dict[str, np.ndarray], num_classes: int) -> tuple[str, ...]:
    """Return the names in the file, or the class numbers where it has none."""
    if "label_names" not in arrays:
        return tuple(str(label) for label in range(num_classes))
    names = arrays["label_names"]
    if names.dtype.kind != "U" or names.shape != (num_classes,):
        raise ValueError(f"label_names must be {num_classes} strings, got {names.dtype} {list(names.shape)}")
    return tuple(str(name) for name in names)


def read_dataset(path: Path, *, name: str, label_names: tuple[str, ...] | None) -> ImageDataset:
    """Read one archive as a data set.

    Args:
        path: the ``.npz`` file.
        name: name to give the data set.
        label_names: the classes; None takes those of the file: every class up to its largest label must occur, named by its
            ``label_names`` or numbered.

    Returns:
        The checked data set.

    Raises:
        BadFile: when the file is missing or damaged.
        ValueError: when its arrays are not what is wanted; the message names the file.
    """
    arrays = read_arrays(path)
    try:
        if "labels" not in arrays:
            raise ValueError(f"the keys images and labels are wanted, got {', '.join(sorted(arrays)) or 'neither'}")
        names = _label_names(arrays, _num_classes(arrays["labels"])) if label_names is None else label_names
        return ImageDataset.from_arrays(
            name=name, images=_images(arrays), labels=arrays["labels"], num_classes=len(names), label_names=names
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_npz(path: Path, test: Path | None = None, seed: int = 0) -> TrainTest:
    """Load a user's own labelled images.

    Args:
        path: the ``.npz`` file to train on.
        test: the file to test on; None holds out a stratified fifth of ``path``.
        seed: run seed that decides which fifth, at least 0; not used with ``test``.

    Returns:
        Both parts; the data set is named after the file.

    Raises:
        BadFile: when a file is missing or damaged.
        ValueError: when the arrays are not what is wanted, a class up to the largest label does not occur, or the files disagree.
    """
    train = read_dataset(path, name=path.stem, label_names=None)
    if test is None:
        return hold_out_fifth(train, numpy_generator(seed, "data", "npz", "hold-out"))
    tested = read_dataset(test, name=path.stem, label_names=train.label_names)
    if tested.image_shape != train.image_shape:
        raise ValueError(f"{test}: images must be {list(train.image_shape)} as in {path}, got {list(tested.image_shape)}")
    return TrainTest(train=train, test=tested)


def load_images(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Load images to be classified, whose labels may be unknown.

    Args:
        path: the ``.npz`` file.

    Returns:
        Images, uint8 [N, H, W, C], and labels, int64 [N], or None where the file has none.

    Raises:
        BadFile: when the file is missing or damaged.
        ValueError: when its arrays are not what is wanted; the message names the file.
    """
    arrays = read_arrays(path)
    try:
        images = _images(arrays)
        labels = arrays.get("labels", np.zeros(len(images) if images.ndim else 0, np.int64))
        classes = int(labels.max(initial=0)) + 1 if labels.dtype == np.int64 else 1
        checked = ImageDataset.from_arrays(name=path.stem, images=images, labels=labels, num_classes=max(classes, 1))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return checked.images, checked.labels if "labels" in arrays else None
