"""Explanations: the bid that would have won does win, and one just below does not."""

import numpy as np
import pytest

from nmoe.market.auction import MECHANISMS, AeriaEF, AeriaIC, Bids, FixedPrice, Reason, Supply, explain, mechanism_named, winning_bid
from nmoe.market.auction.checker import draw_trial
from nmoe.market.auction.families import FAMILIES
from nmoe.market.auction.flaws import with_amount

truthful = [name for name, kind in MECHANISMS.items() if kind.truthful]


@pytest.mark.parametrize("name", truthful)
def test_the_winning_bid_is_the_threshold(name):
    mechanism = mechanism_named(name, price=1.0 if name == "fixed-price" else None)
    generator = np.random.default_rng(6)
    for family in FAMILIES.values():
        for _ in range(3):
            trial = draw_trial(family, generator)
            bids, supply, draw = trial.bids, trial.supply, trial.draw
            outcome = mechanism.clear(bids, supply, draw=draw)
            for user in range(len(bids)):
                bid = winning_bid(mechanism, bids, supply, outcome, user)
                if not 0 < bids.demand[user] < np.inf:
                    continue
                if np.isinf(bid):
                    assert not mechanism.clear(with_amount(bids, user, 1e6), supply, draw=draw).served[user]
                    continue
                assert mechanism.clear(with_amount(bids, user, bid * (1 + 1e-9) + 1e-12), supply, draw=draw).served[user]
                if bid > 1e-9:
                    assert not mechanism.clear(with_amount(bids, user, bid * (1 - 1e-9)), supply, draw=draw).served[user]


def test_a_sentence_for_every_reason():
    bids = Bids(
        ids=tuple("abcdefgh"),
        amount=np.array([9.0, 8.0, 6.0, 3.0, 0.5, 5.0, 5.0, 99.0]),
        demand=np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, np.inf, 50.0]),
    )
    supply = Supply(capacity=3, unit_cost=1)
    outcome, would = FixedPrice(price=7).clear(bids, supply, draw=0.5), "a total bid above 7 would have won, and paid that."
    assert explain(FixedPrice(price=7), bids, supply, outcome) == (
        "Served: 1 unit at 7 each, 7 in all; it bid 9, and any bid above 7 would have won at the same price.",
        "Served: 1 unit at 7 each, 7 in all; it bid 8, and any bid above 7 would have won at the same price.",
        f"Not served: it bid 6 per unit, below its price of 7 per unit; {would}",
        f"Not served: it bid 3 per unit, and users who bid as much or more fill the capacity of 3 units; {would}",
        f"Not served: it bid 0.5 per unit, less than the 1 that a unit costs the provider; {would}",
        "Not in the market: the device meets the need alone.",
        "Not served: no amount of edge compute meets the need.",
        "Not served: it needs 50 units and the edge has 3 in all.",
    )


def test_no_price_is_no_price():
    bids = Bids(ids=("a",), amount=np.array([5.0]), demand=np.ones(1))
    outcome = AeriaIC().clear(bids, Supply(), draw=0.5)
    assert explain(AeriaIC(), bids, Supply(), outcome) == (
        "Not served: it bid 5 per unit, and the others' bids set no price; no bid would have won.",
    )


def test_without_a_price_announced_it_is_not_said_that_no_bid_would_have_won():
    """AERIA-EF's price moves with the bid: whoever bids more here is served."""
    for amount, supply in ((0.0, Supply()), (5.0, Supply(unit_cost=9))):
        bids = Bids(ids=("a",), amount=np.array([amount]), demand=np.ones(1))
        (said,) = explain(AeriaEF(), bids, supply, AeriaEF().clear(bids, supply, draw=0.5))
        assert said.endswith("no price was announced.")
        assert AeriaEF().clear(with_amount(bids, 0, 20.0), supply, draw=0.5).served[0]


def test_of_a_single_price_the_price_announced_is_told():
    bids = Bids(ids=tuple("abc"), amount=np.array([5.0, 5.0, 1.0]), demand=np.array([1.0, 1.0, 2.0]))
    outcome = AeriaEF().clear(bids, Supply(), draw=0.0)
    assert [Reason(reason) for reason in outcome.reason] == [Reason.SERVED, Reason.SERVED, Reason.OUTBID]
    assert explain(AeriaEF(), bids, Supply(), outcome)[1:] == (
        "Served: 1 unit at 4 each, 4 in all; it bid 5.",
        "Not served: it bid 0.5 per unit, below its price of 4 per unit; at the price announced its units cost 8 in all.",
    )


def test_what_is_not_demanded_costs_nothing_and_what_cannot_be_has_no_price():
    bids = Bids(ids=tuple("ab"), amount=np.ones(2), demand=np.array([0.0, np.inf]))
    outcome = AeriaIC().clear(bids, Supply(), draw=0.0)
    assert [winning_bid(AeriaIC(), bids, Supply(), outcome, user) for user in (0, 1)] == [0.0, np.inf]
