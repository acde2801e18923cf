"""Bid families, and the expectation over a draw."""

import numpy as np
import pytest

from nmoe.market.auction import FAMILIES, AeriaEF, Bids, FixedPrice, Supply, expected_profit, midpoints
from nmoe.market.auction.guarantees import envy_free_revenue


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("users", [1, 2, 50])
def test_a_family_has_positive_values_for_all_and_is_the_generators(name, users):
    one, other = (FAMILIES[name](users, np.random.default_rng(5)) for _ in range(2))
    assert one.shape == (users,)
    assert (one > 0).all()
    assert (one == other).all()


def test_what_the_families_are_for():
    generator = np.random.default_rng(0)
    ordered = {name: np.sort(family(40, generator))[::-1] for name, family in FAMILIES.items()}
    worths = ordered["equal-revenue"] * np.arange(1, 41)
    np.testing.assert_allclose(worths, 40)
    assert (ordered["one-giant"] > 1).sum() == 1
    assert (ordered["two-giants"] > 1).sum() == 2
    assert len(set(ordered["all-equal"])) == 1


def test_the_expectation_of_one_user_is_the_closed_form():
    bids = Bids(ids=("a",), amount=np.array([5.0]), demand=np.ones(1))
    assert expected_profit(AeriaEF(base=3), bids, Supply(), points=2000) == pytest.approx(5 * envy_free_revenue(3), rel=1e-3)
    assert expected_profit(FixedPrice(price=4), bids, Supply(unit_cost=1), points=1) == 3


def test_no_points_are_refused():
    with pytest.raises(ValueError, match="points must be at least 1, got 0"):
        midpoints(0)
