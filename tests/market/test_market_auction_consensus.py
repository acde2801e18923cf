"""The consensus estimate against its definition, and the lemma about when different values agree."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe.market.auction.consensus import check_base, consensus_estimate, exponents
from nmoe.market.auction.expectation import midpoints
from nmoe.market.auction.guarantees import consensus_probability, consensus_value

bases = st.floats(1.01, 20)
draws = st.floats(0, 1, exclude_max=True)
values = st.floats(1e-12, 1e12)


@given(values, bases, draws)
def test_it_is_the_largest_power_that_is_not_above_the_value(value, base, draw):
    (rounded,) = consensus_estimate(np.array([value]), base=base, draw=draw)
    (exponent,) = exponents(np.array([value]), base=base, draw=draw)
    assert rounded == np.power(base, exponent + draw)
    assert rounded <= value < np.power(base, exponent + 1 + draw)


@given(values, values, bases, draws)
def test_it_keeps_the_order(one, other, base, draw):
    low, high = consensus_estimate(np.sort([one, other]), base=base, draw=draw)
    assert low <= high


def test_exact_powers_stay_and_nothing_stays_nothing():
    assert consensus_estimate(np.array([8.0, 7.999, 0.0]), base=2, draw=0.0).tolist() == [8, 4, 0]


@pytest.mark.parametrize(("base", "shrink"), [(2, 1.25), (2, 1.9), (math.e, 2), (4, 3), (1.5, 1.1), (3, 1)])
def test_the_consensus_lemma_by_integration(base, shrink):
    value = 5.7
    within = np.linspace(value / shrink, value, 7)
    rounded = np.array([consensus_estimate(within, base=base, draw=draw) for draw in midpoints(4000)])
    agree = (rounded == rounded[:, -1:]).all(1)
    assert agree.mean() == pytest.approx(consensus_probability(base, shrink), abs=1e-3)
    assert (rounded[:, -1] * agree).mean() / value == pytest.approx(consensus_value(base, shrink), abs=1e-3)


@pytest.mark.parametrize("base", [1.0, 0.5, math.inf, math.nan, -2.0])
def test_a_base_is_above_one(base):
    with pytest.raises(ValueError, match="base must be finite and above 1"):
        check_base(base)
