"""Loaders: tiny files of every storage made here, what is refused and with which line, and damage of every kind."""

import gzip
import hashlib
import io
import re
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nmoe.core.errors import BadFile
from nmoe.data import NAMES, load, load_cifar10, load_cifar100, load_fashion_mnist, load_npz
from nmoe.data.dct import decode
from nmoe.data.sums import verify

GENERATOR = np.random.default_rng(0)
GREY = GENERATOR.integers(0, 256, (20, 28, 28), dtype=np.uint8)
TENS = np.tile(np.arange(10), 2)


def arrays(**changes):
    made = {"images": GENERATOR.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8), "labels": np.tile(np.arange(2), 5)} | changes
    return {key: value for key, value in made.items() if value is not None}


def write_idx(folder: Path, stem: str, images: np.ndarray, labels: np.ndarray, compress: bool) -> None:
    for name, code, array in (("images-idx3", 3, images), ("labels-idx1", 1, labels)):
        data = bytes((0, 0, 8, code)) + struct.pack(f">{code}I", *array.shape) + array.astype(np.uint8).tobytes()
        path = folder / f"{stem}-{name}-ubyte{'.gz' if compress else ''}"
        path.write_bytes(gzip.compress(data) if compress else data)


def cifar_files(num_classes: int) -> dict[str, bytes]:
    """Return the binary version with one round of classes a file; image and label of record i in file f follow from i and f."""
    names = ["train.bin", "test.bin"] if num_classes == 100 else [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    coarse = [b"\x07"] if num_classes == 100 else []
    files = {}
    for number, name in enumerate(names):
        records = [[*coarse, bytes([label]), bytes([number] * 1024 + [label] * 1024 + [9] * 1024)] for label in range(num_classes)]
        files[name] = b"".join(b"".join(record) for record in records)
    return files


def write_tar(path: Path, folder: str, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


class TestNpz:
    def test_a_fifth_is_held_out_by_seed(self, tmp_path):
        made = arrays(labels=np.tile(np.arange(2), 50), images=GENERATOR.integers(0, 256, (100, 6, 6), dtype=np.uint8))
        np.savez(tmp_path / "mine.npz", **made)
        one, same, other = (load_npz(tmp_path / "mine.npz", seed=seed) for seed in (0, 0, 1))
        assert (len(one.train), len(one.test)) == (80, 20)
        assert np.bincount(one.test.labels).tolist() == [10, 10]
        assert one.train.name == "mine"
        assert one.train.image_shape == (6, 6, 1)
        assert np.array_equal(one.test.images, same.test.images)
        assert not np.array_equal(one.test.images, other.test.images)

    def test_test_file(self, tmp_path):
        train, test = arrays(label_names=np.array(["cat", "dog"])), arrays(labels=np.zeros(10, np.int64))
        np.savez(tmp_path / "a.npz", **train)
        np.savez_compressed(tmp_path / "b.npz", **test)
        both = load_npz(tmp_path / "a.npz", tmp_path / "b.npz")
        assert np.array_equal(both.train.images, train["images"])
        assert np.array_equal(both.test.images, test["images"])
        assert both.test.label_names == ("cat", "dog")

    @pytest.mark.parametrize(
        ("changes", "line"),
        [
            ({"labels": None}, "the keys images and labels are wanted, got images"),
            ({"images": None}, "the keys images and labels are wanted, got labels"),
            ({"images": None, "labels": None}, "the keys images and labels are wanted, got neither"),
            ({"images": np.full((10, 4, 4), np.nan)}, "images must be uint8 [N, H, W] or [N, H, W, C], got float64 [10, 4, 4, 1]"),
            ({"images": np.zeros((10, 8))}, "images must be uint8 [N, H, W] or [N, H, W, C], got float64 [10, 8]"),
            ({"images": np.zeros((9, 4, 4), np.uint8)}, "there must be one label for each image, got 9 images and 10 labels"),
            ({"labels": np.tile([0.0, np.nan], 5)}, "labels must be int64 [N] with N at least 1, got float64 [10]"),
            ({"labels": np.tile(np.arange(2, dtype=np.int32), 5)}, "labels must be int64 [N] with N at least 1, got int32 [10]"),
            ({"labels": np.zeros(0, np.int64)}, "labels must be int64 [N] with N at least 1, got int64 [0]"),
            ({"labels": np.tile([-1, 0], 5)}, "labels must be at least 0, got -1"),
            ({"labels": np.tile([0, 2], 5)}, "every class in 0..2 must occur in labels, class 1 does not"),
            ({"labels": np.tile([0, 10**15], 5)}, f"every class in 0..{10**15} must occur in labels, class 1 does not"),
            ({"label_names": np.array(["a", "b", "c"])}, "label_names must be 2 strings, got <U1 [3]"),
            (
                {"images": None, "dct": np.zeros((3, 8, 8, 10, 1, 1)), "step": 10},
                "dct must be int8 [3, 8, 8, N, rows, columns], got float64",
            ),
            (
                {"images": None, "dct": np.zeros((3, 8, 8, 10, 1, 1), np.int8), "step": np.ones(2)},
                "step must be one number, got float64 [2]",
            ),
            ({"images": None, "dct": np.zeros((3, 8, 8, 10, 1, 1), np.int8), "step": 0.0}, "step must be above 0, got 0.0"),
        ],
    )
    def test_bad_arrays_are_named_with_the_file(self, tmp_path, changes, line):
        path = tmp_path / "mine.npz"
        np.savez(path, **arrays(**changes))
        with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {line}')}"):
            load_npz(path)

    def test_test_file_must_agree(self, tmp_path):
        for name, changes in (
            ("train", {}),
            ("shape", {"images": np.zeros((10, 5, 4, 3), np.uint8)}),
            ("range", {"labels": np.tile([0, 2], 5)}),
        ):
            np.savez(tmp_path / f"{name}.npz", **arrays(**changes))
        with pytest.raises(ValueError, match=r"shape\.npz: images must be \[4, 4, 3\] as in .*train\.npz, got \[5, 4, 3\]$"):
            load_npz(tmp_path / "train.npz", tmp_path / "shape.npz")
        with pytest.raises(ValueError, match=r"range\.npz: labels must be in 0\.\.1, got 0\.\.2$"):
            load_npz(tmp_path / "train.npz", tmp_path / "range.npz")

    def test_nothing_to_hold_out(self, tmp_path):
        np.savez(tmp_path / "one.npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.arange(2))
        with pytest.raises(ValueError, match="wants a class with at least 2 samples"):
            load_npz(tmp_path / "one.npz")

    def test_files_that_are_not_archives(self, tmp_path):
        for name, data in (("text.npz", b"hello"), ("empty.npz", b""), ("pickle.npz", b"\x80\x04N.")):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(BadFile, match=rf"{name} is not a whole \.npz archive"):
                load_npz(tmp_path / name)
        with pytest.raises(BadFile, match=r"^there is no file .*absent\.npz$"):
            load_npz(tmp_path / "absent.npz")

    def test_members_that_are_not_arrays(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "bytes.npz", "w") as archive:
            archive.writestr("images.npy", b"hello")
            archive.writestr("labels.npy", b"hello")
        with pytest.raises(BadFile, match=r"^cannot read .*bytes\.npz: images is not a numpy array$"):
            load_npz(tmp_path / "bytes.npz")

    def test_pickled_objects_are_refused(self, tmp_path):
        np.savez(tmp_path / "objects.npz", **arrays(labels=np.array([{}] * 10, dtype=object)))
        with pytest.raises(BadFile, match=r"^cannot read .*objects\.npz: Object arrays cannot be loaded"):
            load_npz(tmp_path / "objects.npz")

    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(where=st.floats(0, 1, exclude_max=True), change=st.integers(0, 255), cut=st.booleans(), compress=st.booleans())
    def test_damage_is_one_line(self, tmp_path, where, change, cut, compress):
        buffer = io.BytesIO()
        (np.savez_compressed if compress else np.savez)(
            buffer, images=np.zeros((4, 2, 2), np.uint8), labels=np.array([0, 0, 1, 1]), label_names=np.array(["a", "b"])
        )
        data = bytearray(buffer.getvalue())
        place = int(where * len(data))
        data[place] ^= change
        path = tmp_path / "damaged.npz"
        path.write_bytes(data[:place] if cut else data)
        line = None
        try:
            load_npz(path)
        except (BadFile, ValueError) as error:
            line = str(error)
        assert line is None or (str(path) in line and "\n" not in line)


class TestFashion:
    @pytest.mark.parametrize("compress", [False, True])
    def test_idx(self, tmp_path, compress):
        write_idx(tmp_path, "train", GREY, TENS, compress)
        write_idx(tmp_path, "t10k", GREY[:10], TENS[:10], compress)
        got = load_fashion_mnist(tmp_path)
        assert np.array_equal(got.train.images[..., 0], GREY)
        assert got.test.labels.tolist() == list(range(10))
        assert got.train.label_names[9] == "Ankle boot"

    def test_npz_in_a_vision_folder(self, tmp_path):
        (tmp_path / "vision").mkdir()
        for part in ("train", "test"):
            np.savez(tmp_path / "vision" / f"fashion_mnist_{part}.npz", images=GREY, labels=TENS)
        for folder in (tmp_path, tmp_path / "vision"):
            assert np.array_equal(load_fashion_mnist(folder).test.images[..., 0], GREY)

    def test_missing(self, tmp_path):
        with pytest.raises(BadFile, match=r"^no Fashion-MNIST in .*: fashion_mnist_train\.npz or train-images-idx3-ubyte\[\.gz\] is"):
            load_fashion_mnist(tmp_path)
        write_idx(tmp_path, "train", GREY, TENS, False)
        with pytest.raises(BadFile, match=r"fashion_mnist_test\.npz or t10k-images"):
            load_fashion_mnist(tmp_path)

    @pytest.mark.parametrize(
        ("name", "damage", "line"),
        [
            ("train-images-idx3-ubyte", lambda data: data[:-1], "is damaged: 15680 bytes wanted for [20, 28, 28], 15679 found"),
            ("train-images-idx3-ubyte", lambda data: data[:10], "is not an idx file of unsigned bytes in 3 dimensions"),
            ("train-labels-idx1-ubyte", lambda data: b"\0\0\x0d\x01" + data[4:], "is not an idx file of unsigned bytes in 1 dimensions"),
            ("train-labels-idx1-ubyte", lambda data: data[:4] + b"\xff" * 4 + data[8:], "is damaged: 4294967295 bytes wanted"),
            ("train-labels-idx1-ubyte", lambda data: data[:-1] + b"\x0b", "are not Fashion-MNIST: labels must be in 0..9, got 0..11"),
        ],
    )
    def test_damaged_idx(self, tmp_path, name, damage, line):
        write_idx(tmp_path, "train", GREY, TENS, False)
        write_idx(tmp_path, "t10k", GREY, TENS, False)
        path = tmp_path / name
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(BadFile, match=re.escape(line)):
            load_fashion_mnist(tmp_path)

    @pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:40] + b"\xff" * 40 + data[80:], lambda data: b"plain"])
    def test_damaged_gzip(self, tmp_path, damage):
        write_idx(tmp_path, "train", GREY, TENS, True)
        path = tmp_path / "train-images-idx3-ubyte.gz"
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(BadFile, match=r"^cannot read .*train-images-idx3-ubyte\.gz: "):
            load_fashion_mnist(tmp_path)


CIFAR = [
    pytest.param(load_cifar10, 10, "cifar-10-batches-bin", "cifar-10-binary.tar.gz", id="cifar10"),
    pytest.param(load_cifar100, 100, "cifar-100-binary", "cifar-100-binary.tar.gz", id="cifar100"),
]


@pytest.mark.parametrize(("read", "num_classes", "folder", "archive"), CIFAR)
class TestCifar:
    @pytest.mark.parametrize("packed", [False, True])
    def test_binary_version(self, tmp_path, read, num_classes, folder, archive, packed):
        files = cifar_files(num_classes)
        if packed:
            write_tar(tmp_path / archive, folder, files)
        else:
            (tmp_path / folder).mkdir()
            for name, data in files.items():
                (tmp_path / folder / name).write_bytes(data)
        got = read(tmp_path)
        assert got.test.labels.tolist() == list(range(num_classes))
        assert got.train.labels.tolist() == list(range(num_classes)) * (len(files) - 1)
        assert got.train.image_shape == (32, 32, 3)
        assert got.test.images[3, 5, 6].tolist() == [len(files) - 1, 3, 9]
        assert got.train.images[-1, 0, 0].tolist() == [len(files) - 2, num_classes - 1, 9]

    def test_python_version_is_refused(self, tmp_path, read, num_classes, folder, archive):
        pickled = tmp_path / archive.replace("binary", "python")
        pickled.write_bytes(b"\x80\x04N.")
        with pytest.raises(BadFile, match=rf"is the Python version, and nmoe never unpickles: fetch the binary version, {archive}$"):
            read(tmp_path)

    def test_missing(self, tmp_path, read, num_classes, folder, archive):
        with pytest.raises(BadFile, match=rf"^no cifar{num_classes} in .*: cifar{num_classes}_train\.npz, {folder}/ or {archive} is"):
            read(tmp_path)
        np.savez(tmp_path / f"cifar{num_classes}_train.npz", **arrays())
        with pytest.raises(BadFile, match=rf"has cifar{num_classes}_train\.npz but lacks cifar{num_classes}_test\.npz$"):
            read(tmp_path)
        (tmp_path / f"cifar{num_classes}_train.npz").unlink()
        (tmp_path / folder).mkdir()
        with pytest.raises(BadFile, match=rf"{folder} lacks \w+\.bin$"):
            read(tmp_path)

    def test_damaged_folder_and_labels(self, tmp_path, read, num_classes, folder, archive):
        (tmp_path / folder).mkdir()
        files = cifar_files(num_classes)
        for name, data in files.items():
            (tmp_path / folder / name).write_bytes(data[:-1])
        with pytest.raises(BadFile, match=rf"{folder} \(train\) is damaged: a multiple of 307[34] bytes is wanted, \d+ found$"):
            read(tmp_path)
        for name, data in files.items():
            (tmp_path / folder / name).write_bytes(b"\xff\xff" + data[2:])
        with pytest.raises(BadFile, match=rf"are not cifar{num_classes}: labels must be in 0\.\.{num_classes - 1}, got "):
            read(tmp_path)

    @pytest.mark.parametrize("damage", [lambda data: data[:-30], lambda data: data[:20], lambda data: b"no archive" * 99, lambda data: b""])
    def test_damaged_archive(self, tmp_path, read, num_classes, folder, archive, damage):
        write_tar(tmp_path / archive, folder, cifar_files(num_classes))
        (tmp_path / archive).write_bytes(damage((tmp_path / archive).read_bytes()))
        with pytest.raises(BadFile, match=rf"^cannot read .*{archive}: "):
            read(tmp_path)

    def test_archive_without_a_file(self, tmp_path, read, num_classes, folder, archive):
        files = cifar_files(num_classes)
        files.pop("test.bin" if num_classes == 100 else "test_batch.bin")
        write_tar(tmp_path / archive, folder, files)
        with pytest.raises(BadFile, match=rf"{archive} lacks {folder}/test"):
            read(tmp_path)


class TestSums:
    def test_listed_hash_must_match(self, tmp_path):
        folder = tmp_path / "vision"
        folder.mkdir()
        for part in ("train", "test"):
            np.savez(folder / f"fashion_mnist_{part}.npz", images=GREY, labels=TENS)
        digest = hashlib.sha256((folder / "fashion_mnist_test.npz").read_bytes()).hexdigest()
        (tmp_path / "SHA256SUMS").write_text(f"{digest}  vision/fashion_mnist_test.npz\n")
        for data_dir in (tmp_path, folder):
            assert len(load_fashion_mnist(data_dir).test) == 20
        (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64} *vision/fashion_mnist_test.npz\n")
        for data_dir in (tmp_path, folder):
            with pytest.raises(BadFile, match=r"fashion_mnist_test\.npz is damaged: its SHA-256 is not the one in .*SHA256SUMS$"):
                load_fashion_mnist(data_dir)

    def test_other_folders_do_not_count_and_bad_lists_are_named(self, tmp_path):
        (tmp_path / "inner").mkdir()
        (tmp_path / "inner" / "a").write_text("a")
        (tmp_path / "SHA256SUMS").write_text("no list\n")
        verify(tmp_path / "inner" / "a", tmp_path / "inner")
        with pytest.raises(BadFile, match=r"SHA256SUMS line 1 is not '<sha256>  <name>'$"):
            verify(tmp_path / "inner" / "a", tmp_path)


class TestCatalog:
    def test_digits_and_paths(self, tmp_path):
        assert load("digits").train.name == "digits"
        np.savez(tmp_path / "mine.npz", **arrays())
        assert load(str(tmp_path / "mine.npz"), seed=3).train.name == "mine"
        assert len(load(str(tmp_path / "mine.npz"), test=tmp_path / "mine.npz").test) == 10

    def test_unknown_name_lists_the_known(self):
        with pytest.raises(ValueError, match=f"^a data set must be one of {', '.join(NAMES)} or the path of an .npz file, got 'mnist'$"):
            load("mnist")

    @pytest.mark.parametrize("name", [name for name in NAMES if name != "digits"])
    def test_data_dir_is_needed(self, name, tmp_path):
        with pytest.raises(ValueError, match=rf"^{name} needs a data folder \(--data-dir\) with its files, got none$"):
            load(name)
        with pytest.raises(BadFile, match=r"^there is no data folder .*absent$"):
            load(name, data_dir=tmp_path / "absent")
        with pytest.raises(BadFile, match=r"^no "):
            load(name, data_dir=tmp_path)

    def test_test_file_wants_a_path(self, tmp_path):
        with pytest.raises(ValueError, match=r"^a test file goes with the path of an \.npz file, got .* with digits$"):
            load("digits", test=tmp_path / "b.npz")


def test_decode_a_flat_and_a_wave_by_hand():
    """A constant block has only the lowest coefficient, 8 times its value; Cr moves red by Cr / 0.713."""
    coefficients = np.zeros((3, 8, 8, 2, 1, 2), np.int8)
    coefficients[0, 0, 0, 1, 0, 1] = 4  # 4 * 10 / 8 = 5 grey levels
    coefficients[2, 0, 0, 0, 0, 0] = 8  # Cr 10
    images = decode(coefficients, 10)
    assert images.shape == (2, 8, 16, 3)
    assert (images[1, :, :8] == 128).all()
    assert (images[1, :, 8:] == 133).all()
    assert images[0, 0, 0].tolist() == [round(128 + 10 / 0.713), round((128 - 0.299 * (128 + 10 / 0.713) - 0.114 * 128) / 0.587), 128]
    coefficients = np.zeros((3, 8, 8, 1, 1, 1), np.int8)
    coefficients[0, 1, 0] = 10
    column = decode(coefficients, 10)[0, :, 3, 0]
    assert column.tolist() == [round(128 + 100 * 0.5 * np.sqrt(1 / 8) * np.cos(np.pi * (2 * y + 1) / 16)) for y in range(8)]
