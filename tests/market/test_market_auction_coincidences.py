"""Coincidences: the draw is where an estimate of the market without one user jumps, and the checker then sees what rounding decides."""

import numpy as np
import pytest

from nmoe.market.auction import AeriaIC, check_mechanism, checker, leave_one_out
from nmoe.market.auction.benchmarks import two_winner_value
from nmoe.market.auction.coincidences import BASES, draw_coincidence
from nmoe.market.auction.flaws import Flaw
from nmoe.market.auction.guarantees import VICKREY_PROBABILITY


def distance_to_a_jump(trial):
    """Return how far the draw is from the nearest jump of any estimate of all users but one, in powers of the base."""
    unit_value = trial.bids.amount / trial.bids.demand - trial.supply.unit_cost
    order = np.argsort(-unit_value, kind="stable")
    draws = [trial.draw, (trial.draw - VICKREY_PROBABILITY) / (1 - VICKREY_PROBABILITY)]
    found = []
    for user in range(len(order)):
        others = np.delete(order, user)
        worth = two_winner_value(unit_value[others], trial.bids.demand[others].cumsum())
        powers = np.array([np.log(worth) / np.log(base) - draw for base in BASES for draw in draws])
        found.append(np.abs(powers - powers.round()).min())
    return min(found)


def test_the_draw_is_at_a_jump():
    generator = np.random.default_rng(0)
    trials = [draw_coincidence(generator) for _ in range(200)]
    assert max(distance_to_a_jump(trial) for trial in trials) < 1e-9
    assert all(0 <= trial.draw < 1 for trial in trials)
    assert len({trial.draw for trial in trials}) > 50


@pytest.mark.slow
def test_the_checker_finds_that_rounding_decides(monkeypatch):
    monkeypatch.setattr(checker, "COINCIDENCES", 1)
    monkeypatch.setattr(leave_one_out, "SLACK", 1.0)  # as it was once
    assert check_mechanism(AeriaIC(), tries=20_000).found[Flaw.PROFITABLE_DEVIATION] >= 1
