"""CIFAR-10 and CIFAR-100: 32x32 colour images in 10 and 100 classes.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009), https://www.cs.toronto.edu/~kriz/cifar.html. Read
from the project's ``.npz`` files or from the original *binary version*, unpacked or as ``.tar.gz``.

Departures: the project's ``.npz`` files are lossy (36.8 dB, see ``nmoe.data.dct``); say so beside published accuracies. The Python version
of the original is refused, since it is a pickle.
"""

import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from nmoe.core.errors import BadFile
from nmoe.data.base import ImageDataset, TrainTest
from nmoe.data.npz import read_dataset
from nmoe.data.sums import verify

_PIXEL_BYTES = 3 * 32 * 32
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100_WORDS = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar cattle
    chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house
    kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange
    orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
    shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_NAMES = tuple(_CIFAR100_WORDS.split())


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Version:
    """Where one of the two sets lies and how a record of its binary version begins.

    Attributes:
        name: name of the data set.
        label_names: name of each class.
        folder: folder of the binary version, also inside its archive.
        archive: file name of the binary version as fetched.
        pickled: names of the Python version, which is refused.
        parts: files of the binary version for each part.
        label_bytes: label bytes before the pixels; the last one is the class (CIFAR-100 puts the superclass first).
    """

    name: str
    label_names: tuple[str, ...]
    folder: str
    archive: str
    pickled: tuple[str, ...]
    parts: dict[str, tuple[str, ...]]
    label_bytes: int


_CIFAR10 = _Version(
    name="cifar10",
    label_names=CIFAR10_NAMES,
    folder="cifar-10-batches-bin",
    archive="cifar-10-binary.tar.gz",
    pickled=("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    parts={"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)},
    label_bytes=1,
)
_CIFAR100 = _Version(
    name="cifar100",
    label_names=CIFAR100_NAMES,
    folder="cifar-100-binary",
    archive="cifar-100-binary.tar.gz",
    pickled=("cifar-100-python", "cifar-100-python.tar.gz"),
    parts={"train": ("train.bin",), "test": ("test.bin",)},
    label_bytes=2,
)


def _parse(version: _Version, data: bytes, source: str) -> ImageDataset:
    """Turn the records of the binary version (labels, then red, green and blue planes) into a data set."""
    record = version.label_bytes + _PIXEL_BYTES
    if len(data) == 0 or len(data) % record:
        raise BadFile(f"{source} is damaged: a multiple of {record} bytes is wanted, {len(data)} found")
    records = np.frombuffer(data, np.uint8).reshape(-1, record)
    planes = records[:, version.label_bytes :].reshape(-1, 3, 32, 32)
    labels = records[:, version.label_bytes - 1].astype(np.int64)
    images, names = np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), version.label_names
    return ImageDataset(name=version.name, images=images, labels=labels, num_classes=len(names), label_names=names)


def _read_archive(version: _Version, path: Path) -> dict[str, bytes]:
    """Return the wanted files of a ``.tar.gz``, read in one pass and never unpacked to disk."""
    wanted = {f"{version.folder}/{name}": name for names in version.parts.values() for name in names}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() and member.name in wanted else None
                if file is not None:
                    found[wanted[member.name]] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise BadFile(f"cannot read {path}: {error}") from error
    missing = [name for name in wanted.values() if name not in found]
    if missing:
        raise BadFile(f"{path} lacks {version.folder}/{missing[0]}")
    return found


def _read_folder(version: _Version, folder: Path, data_dir: Path) -> dict[str, bytes]:
    """Return the files of the unpacked binary version."""
    found = {}
    for name in (name for names in version.parts.values() for name in names):
        path = folder / name
        if not path.is_file():
            raise BadFile(f"{folder} lacks {name}")
        verify(path, data_dir)
        found[name] = path.read_bytes()
    return found


def _read_binary(version: _Version, data_dir: Path) -> TrainTest:
    """Read the binary version, unpacked or packed; refuse the Python version."""
    places = (data_dir, data_dir / "vision")
    folder = next((place / version.folder for place in places if (place / version.folder).is_dir()), None)
    archive = next((place / version.archive for place in places if (place / version.archive).is_file()), None)
    if folder is not None:
        files, source = _read_folder(version, folder, data_dir), folder
    elif archive is not None:
        verify(archive, data_dir)
        files, source = _read_archive(version, archive), archive
    else:
        pickled = [place / name for place in places for name in version.pickled if (place / name).exists()]
        if pickled:
            raise BadFile(f"{pickled[0]} is the Python version, and nmoe never unpickles: fetch the binary version, {version.archive}")
        wanted = f"{version.name}_train.npz, {version.folder}/ or {version.archive}"
        raise BadFile(f"no {version.name} in {data_dir}: {wanted} is wanted there or in its vision folder")
    train, test = (
        _parse(version, b"".join(files[name] for name in version.parts[part]), f"{source} ({part})") for part in ("train", "test")
    )
    return TrainTest(train=train, test=test)


def _read_npz(version: _Version, place: Path, part: str, data_dir: Path) -> ImageDataset:
    """Read one part from the project's own storage."""
    path = place / f"{version.name}_{part}.npz"
    if not path.is_file():
        raise BadFile(f"{place} has {version.name}_train.npz but lacks {path.name}")
    verify(path, data_dir)
    return read_dataset(path, name=version.name, label_names=version.label_names)


def _load(version: _Version, data_dir: Path) -> TrainTest:
    """Load one set in whichever storage lies there, the project's own first."""
    try:
        for place in (data_dir, data_dir / "vision"):
            if (place / f"{version.name}_train.npz").is_file():
                return TrainTest(train=_read_npz(version, place, "train", data_dir), test=_read_npz(version, place, "test", data_dir))
        return _read_binary(version, data_dir)
    except ValueError as error:
        raise BadFile(f"the files in {data_dir} are not {version.name}: {error}") from error


def load_cifar10(data_dir: Path) -> TrainTest:
    """Load CIFAR-10 from ``cifar10_{train,test}.npz``, ``cifar-10-batches-bin/`` or ``cifar-10-binary.tar.gz``.

    Args:
        data_dir: folder with the files, or with a ``vision`` folder that has them.

    Returns:
        The training and test part, uint8 [N, 32, 32, 3].

    Raises:
        BadFile: when a file is missing, damaged, or holds something else; also for the Python version, which is a pickle.
    """
    return _load(_CIFAR10, data_dir)


def load_cifar100(data_dir: Path) -> TrainTest:
    """Load CIFAR-100 (its 100 fine classes) from ``cifar100_{train,test}.npz``, ``cifar-100-binary/`` or ``cifar-100-binary.tar.gz``.

    Args:
        data_dir: folder with the files, or with a ``vision`` folder that has them.

    Returns:
        The training and test part, uint8 [N, 32, 32, 3].

    Raises:
        BadFile: when a file is missing, damaged, or holds something else; also for the Python version, which is a pickle.
    """
    return _load(_CIFAR100, data_dir)
