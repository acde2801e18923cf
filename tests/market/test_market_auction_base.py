"""The auctions' records: what is no market is refused with the row's name."""

import numpy as np
import pytest

from nmoe.market.auction.base import BadBids, Bids, Outcome, Reason, Supply


def bids(amount=(3.0, 2.0), demand=(1.0, 1.0), ids=("a", "b"), provider=None):
    return Bids(ids=ids, amount=np.array(amount), demand=np.array(demand), provider=None if provider is None else np.array(provider))


def test_an_empty_market_is_a_market():
    assert len(bids((), (), ())) == 0


def test_demands_may_be_nothing_or_infinite():
    assert len(bids(demand=(0.0, np.inf))) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"amount": (1.0,)}, r"amount must have one number per user, 2, got shape \(1,\)"),
        ({"ids": ("a", "a")}, "user 'a' is there twice, in rows 1 and 2"),
        ({"ids": ("a", "")}, "row 2 has an empty id"),
        ({"amount": (1.0, np.nan)}, r"bid of user 'b' \(row 2\) must be finite and at least 0, got nan"),
        ({"amount": (-1.0, 1.0)}, r"bid of user 'a' \(row 1\)"),
        ({"amount": (np.inf, 1.0)}, r"bid of user 'a' \(row 1\)"),
        ({"demand": (1.0, np.nan)}, r"demand of user 'b' \(row 2\) must be at least 0, got nan"),
        ({"demand": (-1.0, 1.0)}, r"demand of user 'a'"),
        ({"provider": (0, -1)}, r"provider of user 'b' \(row 2\) must be at least 0, got -1"),
    ],
)
def test_bad_bids_name_the_row(wrong, message):
    with pytest.raises(BadBids, match=message):
        bids(**wrong)


@pytest.mark.parametrize(
    ("supply", "message"),
    [
        ({"capacity": -1.0}, "capacity must be at least 0, got -1"),
        ({"capacity": np.nan}, "capacity must be at least 0, got nan"),
        ({"unit_cost": -1.0}, "unit cost must be finite and at least 0, got -1"),
        ({"unit_cost": np.inf}, "unit cost must be finite"),
    ],
)
def test_a_bad_supply_is_refused(supply, message):
    with pytest.raises(ValueError, match=message):
        Supply(**supply)


def test_profit_is_what_is_paid_less_what_is_sold_costs():
    outcome = Outcome(
        mechanism="x",
        draw=0.0,
        reason=np.array([Reason.SERVED, Reason.OUTBID]),
        unit_price=np.array([2.0, 2.0]),
        payment=np.array([6.0, 0.0]),
        demand=np.array([3.0, 5.0]),
        unit_cost=0.5,
        estimates={},
    )
    assert outcome.served.tolist() == [True, False]
    assert (outcome.revenue, outcome.profit) == (6.0, 4.5)
