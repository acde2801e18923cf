"""The catalogue: from what a user types to a data set. The one place where a data set is chosen by a string."""

from pathlib import Path

from nmoe.core.errors import BadFile
from nmoe.data.base import TrainTest
from nmoe.data.cifar import load_cifar10, load_cifar100
from nmoe.data.digits import load_digits
from nmoe.data.fashion_mnist import load_fashion_mnist
from nmoe.data.npz import load_npz

_FROM_FOLDER = {"fashion-mnist": load_fashion_mnist, "cifar10": load_cifar10, "cifar100": load_cifar100}
NAMES = ("digits", *_FROM_FOLDER)


def load(name_or_path: str, data_dir: Path | None = None, test: Path | None = None, seed: int = 0) -> TrainTest:
    """Load a data set by name, or a user's own by path.

    Args:
        name_or_path: one of ``NAMES``, or the path of an ``.npz`` file.
        data_dir: folder with the files of the named set; ``digits`` and paths need none.
        test: test file for a path; None holds out a stratified fifth.
        seed: run seed for that fifth, at least 0; the named sets have fixed splits.

    Returns:
        The training and test part.

    Raises:
        ValueError: when the name is unknown, ``data_dir`` is missing, ``test`` comes with a name, or a user's arrays are wrong.
        BadFile: when files are missing or damaged.
    """
    if name_or_path.endswith(".npz"):
        return load_npz(Path(name_or_path), test, seed)
    if name_or_path not in NAMES:
        raise ValueError(f"a data set must be one of {', '.join(NAMES)} or the path of an .npz file, got {name_or_path!r}")
    if test is not None:
        raise ValueError(f"a test file goes with the path of an .npz file, got {test} with {name_or_path}")
    if name_or_path not in _FROM_FOLDER:
        return load_digits()
    if data_dir is None:
        raise ValueError(f"{name_or_path} needs a data folder (--data-dir) with its files, got none")
    if not data_dir.is_dir():
        raise BadFile(f"there is no data folder {data_dir}")
    return _FROM_FOLDER[name_or_path](data_dir)
