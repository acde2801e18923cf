"""The project's real vision files, where they lie beside the checkout."""

from pathlib import Path

import numpy as np
import pytest

from nmoe.data import class_histogram, load_cifar10, load_cifar100, load_fashion_mnist
from nmoe.data.dct import decode
from nmoe.data.npz import read_arrays, read_dataset

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not (DATA / "vision").is_dir(), reason=f"the project's data does not lie in {DATA}")


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    error = one.astype(np.float64) - other
    return float(10 * np.log10(255**2 / np.mean(error**2)))


def test_fashion_mnist():
    fashion = load_fashion_mnist(DATA)
    assert (len(fashion.train), len(fashion.test)) == (20_000, 10_000)
    assert fashion.train.image_shape == (28, 28, 1)
    assert class_histogram(fashion.train.labels, 10).tolist() == [2000] * 10
    assert fashion.test.images.mean() == pytest.approx(73.15, abs=0.01)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_decoded_images_are_close_to_the_exact_ones(name):
    arrays = read_arrays(DATA / "vision" / f"{name}_test.npz")
    exact = read_dataset(DATA / "vision" / f"{name}_lossless_test.npz", name=name, label_names=None)
    decoded = decode(arrays["dct"][:, :, :, : len(exact)], float(arrays["step"]))
    assert np.array_equal(arrays["labels"][: len(exact)], exact.labels)
    assert psnr_db(decoded, exact.images) > 36
    assert min(psnr_db(one, other) for one, other in zip(decoded, exact.images, strict=True)) > 33.9


def test_cifar10_is_whole():
    cifar = load_cifar10(DATA / "vision")
    assert class_histogram(cifar.train.labels, 10).tolist() == [5000] * 10
    assert class_histogram(cifar.test.labels, 10).tolist() == [1000] * 10
    assert cifar.train.images.mean(dtype=np.float64) == pytest.approx(120.725, abs=0.02)
    assert cifar.test.images.mean(dtype=np.float64) == pytest.approx(121.547, abs=0.02)


def test_cifar100_names_are_those_of_the_file(tmp_path):
    for part in ("train", "test"):
        (tmp_path / f"cifar100_{part}.npz").symlink_to(DATA / "vision" / f"cifar100_lossless_{part}.npz")
    cifar = load_cifar100(tmp_path)
    assert cifar.train.label_names == tuple(read_arrays(DATA / "vision" / "cifar100_test.npz")["label_names"])
    assert class_histogram(cifar.test.labels, 100).tolist() == [2] * 100
