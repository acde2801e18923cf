"""Who fits and at which floor: edge cases by hand, and the longest prefix by brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe.market.auction import VCG, Bids, Reason, Supply
from nmoe.market.auction.floor import FITS, admit


def market(amount, demand, provider=None):
    return Bids(
        ids=tuple(map(str, range(len(amount)))),
        amount=np.array(amount, dtype=float),
        demand=np.array(demand, dtype=float),
        provider=None if provider is None else np.array(provider),
    )


def reasons(amount, demand, **supply):
    return [Reason(reason).name for reason in admit(market(amount, demand), Supply(**supply)).reason]


def test_who_needs_nothing_or_too_much_or_pays_too_little_is_not_in():
    found = reasons([0, 9, 1, 5, 50], [0, math.inf, 2, 2, 7], unit_cost=1.0, capacity=6)
    assert found == ["LOCAL", "UNSERVABLE", "BELOW_COST", "SERVED", "NO_ROOM"]


def test_the_floor_is_the_best_unit_bid_that_does_not_fit_even_if_a_later_one_would():
    found = admit(market([30, 20, 5, 2], [2, 2, 1, 0.5]), Supply(capacity=4.5, unit_cost=1))
    assert found.members.tolist() == [0, 1]
    assert found.floor == 4.0  # 5 per unit less the cost; the last would fit, but then it would not be a prefix


def test_of_equal_bids_the_first_in_the_market_fit_and_no_loser_bids_more_than_the_price():
    outcome = VCG().clear(market([2, 2, 2], [1, 1, 1]), Supply(capacity=2), draw=0.5)
    assert outcome.served.tolist() == [True, True, False]
    assert outcome.unit_price.tolist() == [2, 2, 2]


def test_a_user_larger_than_the_capacity_keeps_nobody_out():
    outcome = VCG().clear(market([1000, 3, 2], [10, 1, 1]), Supply(capacity=1), draw=0.5)
    assert outcome.served.tolist() == [False, True, False]
    assert outcome.unit_price.tolist() == [math.inf, 2, 2]


def test_no_capacity_serves_nobody_but_who_needs_nothing_has_nothing_to_pay():
    outcome = VCG().clear(market([1, 1], [1, 0]), Supply(capacity=0), draw=0.5)
    assert not outcome.served.any()
    assert outcome.unit_price.tolist() == [math.inf, 0]


def test_an_empty_market_clears():
    outcome = VCG().clear(market([], []), Supply(), draw=0.5)
    assert (outcome.revenue, len(outcome.reason)) == (0, 0)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_whether_demands_fit_does_not_depend_on_their_order(order):
    demand = np.array([0.1, 0.2, 0.3])[list(order)]
    assert demand.sum() == pytest.approx(0.6)  # some orders sum to more than 0.6
    assert len(admit(market(np.array([3, 2, 1]) * demand, demand), Supply(capacity=0.6)).members) == 3


def test_numbers_at_the_ends_of_the_floats_are_survived():
    found = admit(market([1e308, 1e-308, 1, 0], [1e-308, 1e308, 5e-324, 1]), Supply(capacity=1e-300))
    assert np.isfinite(found.floor)
    assert not np.isnan(found.value).any()


@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from([0.1, 0.2, 0.3, 1.0, 2.5])), max_size=9),
    st.floats(0, 8),
    st.sampled_from([0.0, 0.5, 2.0]),
)
def test_the_longest_prefix_by_brute_force(users, capacity, cost):
    supply = Supply(capacity=capacity, unit_cost=cost)
    bids = market([unit * demand for unit, demand in users], [demand for _, demand in users])
    found = admit(bids, supply)
    net = [amount / demand - cost for amount, demand in zip(bids.amount, bids.demand, strict=True)]
    queue = sorted((i for i in range(len(users)) if net[i] >= 0 and users[i][1] <= capacity * FITS), key=lambda i: (-net[i], i))
    prefix = []
    while len(prefix) < len(queue) and math.fsum(users[i][1] for i in queue[: len(prefix) + 1]) <= capacity * FITS:
        prefix.append(queue[len(prefix)])
    assert found.members.tolist() == prefix
    assert found.floor == (net[queue[len(prefix)]] if len(prefix) < len(queue) else 0)


def test_providers_share_the_capacity_and_the_floor():
    bids = market([9, 8, 7, 6, 5], [1, 1, 1, 1, 1], provider=[0, 1, 0, 1, 4])
    outcome = VCG().clear(bids, Supply(capacity=3), draw=0.5)
    assert outcome.served.tolist() == [True, True, True, False, False]
    assert set(outcome.unit_price) == {6.0}


@pytest.mark.parametrize("draw", [-0.1, 1.0, math.nan])
def test_a_draw_is_in_the_unit_interval(draw):
    with pytest.raises(ValueError, match=r"draw must be in \[0, 1\), got"):
        VCG().clear(market([1], [1]), Supply(), draw=draw)
