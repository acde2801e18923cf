"""AERIA-EF against its definition: one price, found by trying every number of winners."""

import math

import numpy as np
import pytest

from nmoe.market.auction import FAMILIES, AeriaEF, Benchmark, Bids, Reason, Supply
from nmoe.market.auction.checker import draw_trial
from nmoe.market.auction.floor import admit


def naive_price(value, demand, floor, first, base, draw):
    """Return the single net price, infinite for none."""
    worths = [value[m] * sum(demand[: m + 1]) for m in range(len(value))]
    best = max(worths[first:], default=0.0)
    if best == 0:
        return floor if floor > 0 else math.inf
    target = base ** (math.floor(math.log(best) / math.log(base) - draw) + draw)
    winners = max(m + 1 for m, worth in enumerate(worths) if worth >= target)
    return max(target / sum(demand[:winners]), floor)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("benchmark", Benchmark)
def test_one_price_and_whoever_bids_more_is_served(family, benchmark):
    generator = np.random.default_rng(2)
    for base in (1.3, 2.0, 6.0):
        for _ in range(25):
            trial = draw_trial(FAMILIES[family], generator)
            bids, supply = Bids(ids=trial.bids.ids, amount=trial.bids.amount, demand=trial.bids.demand), trial.supply
            found = admit(bids, supply)
            outcome = AeriaEF(base=base, benchmark=benchmark).clear(bids, supply, draw=trial.draw)
            price = naive_price(
                found.value[found.members].tolist(),
                bids.demand[found.members].tolist(),
                found.floor,
                0 if benchmark is Benchmark.SINGLE_PRICE else 1,
                base,
                trial.draw,
            )
            asked = outcome.unit_price[found.members] - supply.unit_cost
            np.testing.assert_allclose(asked, price, rtol=1e-9, atol=1e-12)
            margin = found.value - price if np.isfinite(price) else -np.ones(len(bids))
            inside = np.isfinite(found.value) & (bids.demand <= supply.capacity) & (abs(margin) > 1e-9)
            assert outcome.served[inside].tolist() == (margin[inside] > 0).tolist()


def test_a_single_user_pays_its_bid_rounded_down():
    bids = Bids(ids=("a",), amount=np.array([5.0]), demand=np.ones(1))
    assert AeriaEF().clear(bids, Supply(), draw=0.0).payment.tolist() == [4.0]
    outcome = AeriaEF(benchmark=Benchmark.TWO_WINNERS).clear(bids, Supply(), draw=0.0)
    assert outcome.reason.tolist() == [Reason.NO_PRICE]


def test_several_providers_have_a_price_each():
    bids = Bids(ids=tuple("abcd"), amount=np.array([8.0, 8.0, 1.0, 1.0]), demand=np.ones(4), provider=np.array([0, 0, 1, 1]))
    outcome = AeriaEF().clear(bids, Supply(), draw=0.0)
    assert outcome.unit_price.tolist() == [8, 8, 1, 1]
    assert outcome.estimates["provider 0: target"] == 16


def test_a_base_is_above_one():
    with pytest.raises(ValueError, match=r"base must be finite and above 1, got 0\.5"):
        AeriaEF(base=0.5)
