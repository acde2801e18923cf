"""All R_i at once against one at a time."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe.market.auction import FAMILIES
from nmoe.market.auction.leave_one_out import leave_one_out_targets


def naive(value, demand, base, draw):
    """r(F2(P minus i)) straight from the definition."""
    targets = []
    for i in range(len(value)):
        rest = [(w, d) for j, (w, d) in enumerate(zip(value, demand, strict=True)) if j != i]
        best = max((rest[m][0] * sum(d for _, d in rest[: m + 1]) for m in range(1, len(rest))), default=0.0)
        exponent = math.floor(math.log(best, base) - draw) if best > 0 else 0
        targets.append(base ** (exponent + draw) if best > 0 else 0.0)
    return targets


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0, 6.0])
@pytest.mark.parametrize("base", [1.05, 2.0, 9.0])
def test_families_with_equal_and_very_different_demands(family, spread, base):
    generator = np.random.default_rng(3)
    for users in (1, 2, 3, 17, 18, 60):
        value = np.sort(FAMILIES[family](users, generator))[::-1]
        demand = generator.lognormal(0, spread, users)
        draw = generator.random()
        found = leave_one_out_targets(value, demand, base=base, draw=draw)
        np.testing.assert_allclose(found, naive(value.tolist(), demand.tolist(), base, draw), rtol=1e-9)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 30)), min_size=17, max_size=40), st.floats(1.02, 8), st.floats(0.001, 0.999))
def test_ties_and_nothings(users, base, draw):
    value, demand = np.array(sorted(users, reverse=True), dtype=float).T
    found, wanted = leave_one_out_targets(value, demand, base=base, draw=draw), naive(value.tolist(), demand.tolist(), base, draw)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_the_few_who_dominate_are_found():
    value, demand = np.r_[9.0, 9.0, np.full(30, 1e-9)], np.r_[1e6, 2.0, np.ones(30)]
    found = leave_one_out_targets(value, demand, base=2.0, draw=0.3)
    np.testing.assert_allclose(found, naive(value.tolist(), demand.tolist(), 2.0, 0.3), rtol=1e-9)
    assert len(set(found)) > 1


def test_a_base_next_to_one_ends():
    value, demand = np.r_[9.0, 5.0, 3.0, 1.0], np.ones(4)
    found = leave_one_out_targets(value, demand, base=1 + 1e-9, draw=0.3)
    np.testing.assert_allclose(found, [6.0, 6.0, 10.0, 10.0], rtol=1e-8)


def test_nobody():
    assert leave_one_out_targets(np.empty(0), np.empty(0), base=2.0, draw=0.3).size == 0
