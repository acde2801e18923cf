"""What holds for every mechanism: searched by the checker, and laws of outcomes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe.market.auction import (
    MECHANISMS,
    AeriaIC,
    Bids,
    FixedPrice,
    Mechanism,
    Omniscient,
    Reason,
    Supply,
    check_mechanism,
    mechanism_named,
)

each = pytest.mark.parametrize("name", MECHANISMS)


def made(name: str) -> Mechanism:
    return mechanism_named(name, price=1.0 if name == "fixed-price" else None)


@each
def test_it_has_no_flaw_that_it_claims_to_be_free_of(name):
    tries = 2000 if name == "aeria-ic" else 800
    report = check_mechanism(made(name), tries=tries, seed=7)
    assert report.passed, str(report)
    assert report.deviations >= tries


@pytest.mark.slow
@each
def test_no_profitable_deviation_in_many_tries(name):
    tries = 100_000 if name.startswith("aeria") else 20_000
    report = check_mechanism(made(name), tries=tries, seed=1)
    print(report)
    assert report.passed, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("base", [1.16, 1.43, 4.0])
def test_no_profitable_deviation_from_aeria_ic_with_other_bases(base):
    report = check_mechanism(AeriaIC(base=base), tries=30_000, seed=2)
    assert report.passed, str(report)


markets = st.lists(
    st.tuples(st.sampled_from([0.0, 0.3, 1.0, 2.0, 5.0, 40.0]), st.sampled_from([0.0, 0.1, 1.0, 2.5, math.inf]), st.integers(0, 1)),
    max_size=8,
)


@each
@settings(max_examples=40)
@given(
    users=markets,
    capacity=st.sampled_from([0.0, 1.0, 3.6, math.inf]),
    cost=st.sampled_from([0.0, 0.3]),
    draw=st.floats(0, 1, exclude_max=True),
    apart=st.booleans(),
)
def test_every_outcome_is_sound(name, users, capacity, cost, draw, apart):
    amount, demand, provider = np.array(users, dtype=float).reshape(-1, 3).T
    ids = tuple(f"user {row}" for row in range(len(users)))
    bids = Bids(ids=ids, amount=amount, demand=demand, provider=provider.astype(int) if apart else None)
    outcome = made(name).clear(bids, Supply(capacity=capacity, unit_cost=cost), draw=draw)
    served = outcome.served
    assert (outcome.mechanism, outcome.draw, outcome.unit_cost) == (name, draw, cost)
    assert (demand[served] > 0).all()
    assert demand[served].sum() <= capacity * (1 + 1e-9)
    assert (outcome.payment[served] <= amount[served]).all()
    assert (outcome.payment[served] >= cost * demand[served] * (1 - 1e-9)).all()
    assert (outcome.payment[~served] == 0).all()
    np.testing.assert_allclose(outcome.payment[served], outcome.unit_price[served] * demand[served])
    lost = ~served & (demand > 0) & np.isfinite(demand)
    assert (amount[lost] / demand[lost] <= outcome.unit_price[lost] * (1 + 1e-9)).all()
    assert ((outcome.reason == Reason.LOCAL) == (demand == 0)).all()
    assert ((outcome.reason == Reason.UNSERVABLE) == np.isinf(demand)).all()
    assert (outcome.unit_price[demand == 0] == 0).all()
    assert np.isinf(outcome.unit_price[np.isinf(demand)]).all()
    assert all(np.isfinite(number) for number in outcome.estimates.values())
    assert outcome.profit >= -1e-9


@each
@settings(max_examples=15)
@given(values=st.lists(st.floats(0.01, 100), min_size=1, max_size=10, unique=True), draw=st.floats(0.001, 0.999))
def test_no_mechanism_of_one_price_earns_more_than_the_omniscient_one(name, values, draw):
    bids = Bids(ids=tuple(map(str, range(len(values)))), amount=np.array(values), demand=np.ones(len(values)))
    outcome = made(name).clear(bids, Supply(), draw=draw)
    if len(np.unique(outcome.unit_price[outcome.served])) <= 1:
        assert outcome.profit <= Omniscient().clear(bids, Supply(), draw=draw).profit * (1 + 1e-9)


@each
def test_money_and_units_have_no_scale(name):
    generator = np.random.default_rng(4)
    bids = Bids(ids=tuple("abcdefgh"), amount=generator.random(8) * 5, demand=generator.integers(1, 4, 8).astype(float))
    wide = Bids(ids=bids.ids, amount=bids.amount * 4, demand=bids.demand * 8)  # powers of two: nothing is rounded
    mechanism = made(name)
    if isinstance(mechanism, FixedPrice):
        return
    for draw in (0.1, 0.5, 0.9):
        one, other = (mechanism.clear(each_bids, Supply(capacity=c), draw=draw) for each_bids, c in ((bids, 9.0), (wide, 72.0)))
        assert one.served.tolist() == other.served.tolist()
        np.testing.assert_allclose(other.payment, one.payment * 4)


@each
def test_numbers_at_the_ends_of_the_floats_clear(name):
    generator = np.random.default_rng(5)
    ends = [0.0, 5e-324, 1e-308, 1e-150, 1e-9, 1.0, 3.0, 1e9, 1e150, 1e300, 1.7e308]
    for _ in range(100):
        users = int(generator.integers(0, 20))
        amount, demand = generator.choice(ends, users), generator.choice([*ends, math.inf], users)
        supply = Supply(capacity=float(generator.choice([*ends, math.inf])), unit_cost=float(generator.choice([0.0, 5e-324, 1.0, 1e300])))
        bids = Bids(ids=tuple(map(str, range(users))), amount=amount, demand=demand)
        outcome = made(name).clear(bids, supply, draw=float(generator.random()))
        assert np.isfinite(outcome.payment).all()
        assert (outcome.payment <= amount).all()
        assert not np.isnan(outcome.unit_price).any()
        assert all(np.isfinite(number) for number in outcome.estimates.values())


def test_names_make_mechanisms():
    assert mechanism_named("aeria-ic", base=3.0) == AeriaIC(base=3.0)
    assert mechanism_named("fixed-price", price=2.0) == FixedPrice(price=2.0)
    assert {name: kind.name for name, kind in MECHANISMS.items()} == {name: name for name in MECHANISMS}


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("aeria", {}, "mechanism must be one of aeria-ic, .*, got 'aeria'"),
        ("vickrey", {"base": 2.0}, "mechanism 'vickrey' takes no base, got 2.0"),
        ("aeria-ic", {"price": 2.0}, "mechanism 'aeria-ic' takes no price, got 2.0"),
        ("fixed-price", {}, "mechanism 'fixed-price' needs a price per unit, got none"),
        ("fixed-price", {"price": -1.0}, "price must be finite and at least 0, got -1.0"),
        ("aeria-ef", {"base": 1.0}, "base must be finite and above 1, got 1.0"),
    ],
)
def test_names_and_parameters_that_do_not_fit_are_refused(name, given, message):
    with pytest.raises(ValueError, match=message):
        mechanism_named(name, **given)


def test_the_library_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, nmoe.market.auction; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
