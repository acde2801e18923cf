"""The mixture is Vickrey or CORE, as its draw says. That it keeps its ratio is in test_market_auction_guarantees.py."""

import numpy as np
import pytest

from nmoe.market.auction import AeriaIC, AeriaMixture, Bids, Supply, Vickrey
from nmoe.market.auction.guarantees import VICKREY_PROBABILITY

bids = Bids(ids=tuple("abcdef"), amount=np.array([9.0, 8, 7, 6, 5, 1]), demand=np.ones(6))


@pytest.mark.parametrize("draw", [0.0, 0.3, 0.59])
def test_low_draws_are_vickreys(draw):
    outcome = AeriaMixture().clear(bids, Supply(), draw=draw)
    assert outcome.payment.tolist() == Vickrey().clear(bids, Supply(), draw=draw).payment.tolist() == [8, 0, 0, 0, 0, 0]
    assert (outcome.mechanism, outcome.draw, outcome.estimates["vickrey"]) == ("aeria-mixture", draw, 1)


@pytest.mark.parametrize("draw", [0.6, 0.8, 0.99])
def test_high_draws_are_cores_with_the_rest_of_the_draw(draw):
    rest = (draw - VICKREY_PROBABILITY) / (1 - VICKREY_PROBABILITY)
    outcome = AeriaMixture().clear(bids, Supply(), draw=draw)
    assert outcome.payment.tolist() == AeriaIC(base=2).clear(bids, Supply(), draw=rest).payment.tolist()


@pytest.mark.parametrize("draw", [np.nextafter(1, 0), VICKREY_PROBABILITY, 0.0])
def test_all_draws_are_good(draw):
    assert AeriaMixture().clear(bids, Supply(), draw=float(draw)).revenue > 0


def test_a_draw_is_below_one():
    with pytest.raises(ValueError, match="draw must be in"):
        AeriaMixture().clear(bids, Supply(), draw=1.0)
