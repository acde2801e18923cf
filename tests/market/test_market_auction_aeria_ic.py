"""AERIA-IC against the specification's five steps, followed literally for one user at a time."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe.market.auction import AeriaIC, Bids, Reason, Supply
from nmoe.market.auction.checker import draw_trial
from nmoe.market.auction.families import FAMILIES
from nmoe.market.auction.flaws import Trial, find_deviation


def naive_clear(bids, supply, base, draw):
    """Return unit prices (net, infinite for none) and payments of the users in P."""
    rows = [i for i in range(len(bids)) if 0 < bids.demand[i] < math.inf and bids.demand[i] <= supply.capacity * (1 + 1e-9)]
    net = {i: bids.amount[i] / bids.demand[i] - supply.unit_cost for i in rows}
    order = sorted((i for i in rows if net[i] >= 0), key=lambda i: (-net[i], i))
    count = 0
    while count < len(order) and math.fsum(bids.demand[order[: count + 1]]) <= supply.capacity * (1 + 1e-9):
        count += 1
    inside, floor = order[:count], net[order[count]] if count < len(order) else 0.0
    price = {}
    for i in inside:
        mates = [j for j in inside if bids.provider is None or bids.provider[j] == bids.provider[i]]
        others = [j for j in mates if j != i]
        best = max((net[others[m]] * sum(bids.demand[others[: m + 1]]) for m in range(1, len(others))), default=0.0)
        if best == 0:
            price[i] = floor if floor > 0 else math.inf
            continue
        target = base ** (math.floor(math.log(best) / math.log(base) - draw) + draw)
        shares = [target / sum(bids.demand[mates[: m + 1]]) for m in range(len(mates))]
        large = [m for m in range(len(mates)) if net[mates[m]] >= shares[m]]
        price[i] = max(shares[max(large)] if large else math.inf, floor)
    return price, {i: (supply.unit_cost + price[i]) * bids.demand[i] for i in inside if net[i] >= price[i]}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_five_steps(family):
    generator = np.random.default_rng(11)
    for base in (1.2, 2.0, 5.0):
        for _ in range(25):
            trial = draw_trial(FAMILIES[family], generator)
            outcome = AeriaIC(base=base).clear(trial.bids, trial.supply, draw=trial.draw)
            price, paid = naive_clear(trial.bids, trial.supply, base, trial.draw)
            assert set(np.flatnonzero(outcome.served)) == set(paid)
            np.testing.assert_allclose(outcome.payment[list(paid)], list(paid.values()), rtol=1e-9)
            np.testing.assert_allclose(outcome.unit_price[list(price)], np.array(list(price.values())) + trial.supply.unit_cost, rtol=1e-9)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(0, 8), st.floats(0, 10), st.floats(0.001, 0.999))
def test_a_winners_own_bid_moves_neither_its_price_nor_its_payment(amounts, place, more, draw):
    user = place % len(amounts)
    bids = Bids(ids=tuple(map(str, range(len(amounts)))), amount=np.array(amounts, dtype=float), demand=np.ones(len(amounts)))
    supply = Supply(capacity=max(1, len(amounts) // 2))
    before = AeriaIC().clear(bids, supply, draw=draw)
    amount = bids.amount.copy()
    amount[user] += more
    after = AeriaIC().clear(Bids(ids=bids.ids, amount=amount, demand=bids.demand), supply, draw=draw)
    if before.served[user]:
        assert after.served[user]
        assert after.payment[user] == pytest.approx(before.payment[user], rel=1e-12)


@pytest.mark.parametrize("base", [1.1, 2.0, 10.0])
def test_round_numbers_and_a_draw_at_which_an_estimate_jumps_leave_nothing_to_gain(base):
    """The order of the users, which a bid changes, changes sums by a rounding error: that must not decide whether F2 reaches c^(i + u)."""
    generator = np.random.default_rng(3)
    for _ in range(25):
        users = int(generator.integers(4, 10))
        demand = generator.choice([0.1, 0.3, 0.7]) * generator.integers(1, 4, users)
        unit_value = generator.choice([1.0, 2, 3, 4, 5, 8, 10], users)
        others = np.sort(np.delete(np.arange(users), generator.integers(users)))
        others = others[np.argsort(-unit_value[others], kind="stable")]
        jumps_at = (unit_value[others] * demand[others].cumsum())[1:].max()
        draw = float(np.log(jumps_at) / np.log(base) % 1)
        bids = Bids(ids=tuple(map(str, range(users))), amount=unit_value * demand, demand=demand)
        trial = Trial(bids=bids, supply=Supply(), draw=draw)
        found, _ = find_deviation(AeriaIC(base=base), trial, generator, list(range(users)))
        assert found is None, str(found)


def test_one_or_two_users_without_a_floor_have_no_price():
    for amount in ([5.0], [5.0, 4.0]):
        bids = Bids(ids=("a", "b")[: len(amount)], amount=np.array(amount), demand=np.ones(len(amount)))
        outcome = AeriaIC().clear(bids, Supply(), draw=0.4)
        assert set(outcome.reason) == {Reason.NO_PRICE}
        assert np.isinf(outcome.unit_price).all()


def test_with_a_floor_they_are_offered_that():
    bids = Bids(ids=("a", "b"), amount=np.array([5.0, 4.0]), demand=np.ones(2))
    outcome = AeriaIC().clear(bids, Supply(capacity=1, unit_cost=1), draw=0.4)
    assert outcome.payment.tolist() == [4.0, 0.0]
    assert [Reason(reason).name for reason in outcome.reason] == ["SERVED", "NO_ROOM"]


def test_a_base_is_above_one():
    with pytest.raises(ValueError, match="base must be finite and above 1, got 1"):
        AeriaIC(base=1)
