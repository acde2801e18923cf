"""Cost sharing and the benchmarks against their definitions, computed one by one."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nmoe.market.auction.benchmarks import best_count, largest_share, single_price_value, two_winner_value
from nmoe.market.auction.costshare import CostShare

markets = st.lists(st.tuples(st.floats(0, 100), st.floats(0.01, 10)), max_size=12).map(lambda users: sorted(users, reverse=True))


def columns(users):
    value, demand = np.array(users, dtype=float).reshape(-1, 2).T
    return value, demand, demand.cumsum()


def naive_worths(users):
    return [users[m][0] * sum(demand for _, demand in users[: m + 1]) for m in range(len(users))]


@given(markets)
def test_benchmarks_are_the_best_of_all_prices(users):
    value, demand, total = columns(users)
    worths = naive_worths(users)
    assert single_price_value(value, total) == pytest.approx(max(worths, default=0))
    assert two_winner_value(value, total) == pytest.approx(max(worths[1:], default=0))
    if len(users) > 1:
        winners = best_count(value, total, at_least=2)
        assert winners >= 2
        assert worths[winners - 1] == pytest.approx(max(worths[1:]))
        assert largest_share(value, demand) == pytest.approx(max(d for _, d in users[:winners]) / sum(d for _, d in users[:winners]))


def test_with_nobody_to_win_the_largest_share_is_all():
    value, demand, total = columns([(5, 1)])
    assert (best_count(value, total, at_least=2), largest_share(value, demand)) == (0, 1.0)


@given(markets, st.floats(0.001, 1.5))
def test_it_extracts_the_target_exactly_or_nothing(users, part):
    value, _, total = columns(users)
    best = single_price_value(value, total)
    assume(best > 1e-6 and abs(part - 1) > 1e-6)
    target = part * best
    sharing = CostShare(value=value, total=total)
    served, price = sharing.winners(target), sharing.price(target)
    naive = max((m + 1 for m, worth in enumerate(naive_worths(users)) if worth >= target), default=0)
    assume(all(abs(worth - target) > 1e-9 * target for worth in naive_worths(users)))
    assert served == naive
    if part > 1:
        assert (served, price) == (0, math.inf)
    else:
        assert price * total[served - 1] == pytest.approx(target)
        assert (value[:served] >= price).all()
        assert (value[served:] < price).all()  # nobody is left out who would pay


@given(markets, st.floats(0.01, 0.99))
def test_a_users_share_falls_as_others_join(users, part):
    value, _, total = columns(users)
    best = single_price_value(value, total)
    assume(best > 0)
    with_less = CostShare(value=value[:-1], total=total[:-1]).price(part * best)
    assert CostShare(value=value, total=total).price(part * best) <= with_less * (1 + 1e-9)


def utilities(reports, values, demand, target):
    """Return what users gain by reports, for a fixed target."""
    order = sorted(range(len(reports)), key=lambda user: -reports[user])
    sharing = CostShare(value=np.array([reports[user] for user in order]), total=np.array([demand[user] for user in order]).cumsum())
    winners, price = order[: sharing.winners(target)], sharing.price(target)
    return [(values[user] - price) * demand[user] if user in winners else 0.0 for user in range(len(reports))]


@settings(max_examples=20)
@given(
    st.lists(st.integers(0, 4).map(float), min_size=3, max_size=3), st.sampled_from([(1, 1, 1), (1, 2, 0.5), (3, 1, 1)]), st.integers(1, 12)
)
def test_no_group_gains_by_lying_when_the_target_is_fixed(values, demand, target):
    target += 0.37  # so that no price is exactly a value
    truth = utilities(values, values, demand, target)
    for reports in itertools.product(range(6), repeat=3):
        lied = utilities([float(report) for report in reports], values, demand, target)
        liars = [user for user in range(3) if reports[user] != values[user]]
        nobody_loses = all(lied[user] >= truth[user] - 1e-9 for user in liars)
        assert not (nobody_loses and any(lied[user] > truth[user] + 1e-9 for user in liars))


def test_nothing_is_extracted_from_nobody():
    empty = np.empty(0)
    assert CostShare(value=empty, total=empty).price(1.0) == math.inf


def test_what_is_there_but_for_rounding_is_there():
    value, total = np.full(3, 0.1), np.array([0.1, 0.1, 0.1]).cumsum()
    assert CostShare(value=value, total=total).winners(0.03) == 3


def test_the_specifications_example_of_a_demand_worth_overstating():
    """Two users of 5 and one of 4.9 with R = 10: whoever overstates its demand by 0.02 pulls the third in and pays 4.976 instead of 5."""
    truth = CostShare(value=np.array([5, 5, 4.9]), total=np.array([1, 2, 2.03]))
    assert (truth.winners(10), truth.price(10)) == (2, 5.0)
    overstated = CostShare(value=np.array([5, 5, 4.9]), total=np.array([1.02, 2.02, 2.05]))
    assert overstated.winners(10) == 3
    assert overstated.price(10) == pytest.approx(4.878, abs=5e-4)
    assert overstated.price(10) * 1.02 == pytest.approx(4.976, abs=5e-4)
