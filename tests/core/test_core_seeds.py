"""Seeds: equal paths give equal streams, different paths different ones, for ever the same."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmoe.core.seeds import derive_seed, numpy_generator, torch_generator

labels = st.one_of(st.integers(0, 1000), st.text(alphabet="abcdefgh_", min_size=1, max_size=8))
paths = st.lists(labels, max_size=5)


def test_seeds_never_change():
    """Golden numbers: a change of any of them would change every published run."""
    assert derive_seed(0) == 2033344993903900207
    assert derive_seed(0, "fedsc", "train", 3, 7) == 5132961090888576884
    assert torch.rand(1, generator=torch_generator(0, "x")).item() == pytest.approx(0.9183396697, abs=1e-7)
    assert numpy_generator(0, "x").random() == pytest.approx(0.7824002720381771, abs=1e-12)


@given(st.integers(0, 2**70), paths)
def test_seed_is_the_shifted_start_of_a_sha256(seed, path):
    digest = hashlib.sha256("/".join(map(str, [seed, *path])).encode()).digest()
    value = derive_seed(seed, *path)
    assert value == int.from_bytes(digest[:8], "little") // 2
    assert 0 <= value < 2**63


@given(st.integers(0, 100), paths, st.integers(0, 100), paths)
def test_different_paths_have_different_seeds(seed, path, other_seed, other_path):
    same = [seed, *map(str, path)] == [other_seed, *map(str, other_path)]
    assert (derive_seed(seed, *path) == derive_seed(other_seed, *other_path)) is same


def test_streams_of_two_paths_are_uncorrelated_and_of_one_path_equal():
    def draw(*path):
        return torch.randn(20_000, generator=torch_generator(1, *path))

    first, second = draw("node", 0), draw("node", 1)
    assert torch.equal(first, draw("node", 0))
    assert abs(float(torch.corrcoef(torch.stack((first, second)))[0, 1])) < 0.03  # 4 standard deviations of 1/sqrt(n)
    assert np.array_equal(numpy_generator(1, "a").random(5), numpy_generator(1, "a").random(5))


@pytest.mark.parametrize("make", [derive_seed, torch_generator, numpy_generator])
def test_negative_seed_is_refused(make):
    with pytest.raises(ValueError, match="at least 0, got -1"):
        make(-1, "x")
