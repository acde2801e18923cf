"""Owners' contest with constant costs: closed form against searches, laws, and what an average cost leads to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from nmoe.market.incentive import deviation_gains, nash_shares
from nmoe.market.incentive.contest import settle_contest, totals_for
from nmoe.market.incentive.joint import settled
from nmoe.market.incentive.supply import flat_curves

COSTS = st.lists(st.floats(0.05, 20), min_size=2, max_size=12)


def best_reply_dynamics(costs, reward, turns=4000):
    """Let owners reply to each other in turn, damped, until nobody moves."""
    amounts = np.full(len(costs), reward / sum(costs))
    for turn in range(turns):
        owner = turn % len(costs)
        others = amounts.sum() - amounts[owner]
        amounts[owner] += 0.5 * (max(0.0, np.sqrt(reward * others / costs[owner]) - others) - amounts[owner])
    return amounts


def test_two_equal_owners_by_hand():
    nash = nash_shares(np.array([2.0, 2.0]))
    assert nash.efficiency == pytest.approx(1 / 4)
    assert nash.amounts(16.0) == pytest.approx([2.0, 2.0])
    assert nash.utilities(16.0) == pytest.approx([4.0, 4.0])


def test_best_replies_lead_to_it():
    costs = np.array([0.8, 1.0, 1.1, 1.3, 4.0])
    assert nash_shares(costs).amounts(10.0) == pytest.approx(best_reply_dynamics(costs, 10.0), abs=1e-6)


@given(costs=COSTS, reward=st.floats(0.1, 500))
def test_shares_sum_to_one_and_no_owner_gains_alone(costs, reward):
    nash = nash_shares(np.array(costs))
    amounts = nash.amounts(reward)
    assert nash.shares.sum() == pytest.approx(1)
    assert amounts.sum() == pytest.approx(nash.efficiency * reward)
    for owner, cost in enumerate(costs):
        others = amounts.sum() - amounts[owner]
        grid = np.linspace(0, reward / cost, 2000)
        assert (reward * grid / (others + grid) - cost * grid).max() <= nash.utilities(reward)[owner] + 1e-9 * reward


@given(cost=st.floats(0.05, 20), reward=st.floats(0.1, 500), others=st.floats(0.01, 100), first=st.floats(0, 100), step=st.floats(0.01, 50))
def test_an_owner_s_utility_is_strictly_concave_where_others_train(cost, reward, others, first, step):
    points = first + step * np.array([0.0, 0.5, 1.0])
    left, middle, right = reward * points / (others + points) - cost * points
    assert middle > (left + right) / 2


def test_owners_who_cannot_train_take_no_part():
    nash = nash_shares(np.array([1.0, np.inf, 1.0]))
    assert nash.shares == pytest.approx([0.5, 0, 0.5])
    assert nash_shares(np.array([1.0, np.inf])).efficiency == 0
    with pytest.raises(ValueError, match="at least 2 owners wanted, got 1"):
        nash_shares(np.array([1.0]))
    with pytest.raises(ValueError, match="costs must be above 0, got nan in row 2"):
        nash_shares(np.array([1.0, np.nan]))


def test_the_search_agrees_with_the_closed_form(draw_game):
    for seed in range(30):
        game = draw_game(seed)
        prices = np.random.default_rng(seed).uniform(0.1, 1, len(game.owners))
        nash = nash_shares((game.owners.unit_cost + prices) / game.owners.quality)
        curves = flat_curves(prices)
        contest = settle_contest(game.owners, curves, lambda efficiency: efficiency * 40.0)
        assert contest.efficiency == pytest.approx(nash.efficiency, rel=1e-12)
        assert contest.samples * game.owners.quality == pytest.approx(nash.amounts(40.0), abs=1e-10)
        assert totals_for(game.owners, curves, np.array([40.0])) == pytest.approx([contest.total], rel=1e-12)


def test_no_owner_with_a_stock_gains_alone_in_200_games(draw_game):
    kinked = 0
    for seed in range(200):
        game = draw_game(seed, stock=(0.0, 5.0))
        prices = np.random.default_rng(seed).uniform(0.1, 1, len(game.owners))
        reward = game.publisher.factor / 2
        contest = settle_contest(game.owners, flat_curves(prices), lambda efficiency, reward=reward: efficiency * reward)
        assert (game.owners.quality * contest.samples).sum() == pytest.approx(contest.total, rel=1e-9)
        kinked += int((contest.samples == game.owners.stock).sum())
        assert deviation_gains(settled(game, contest, method="nash")).max() <= 1e-9 * reward
    assert kinked > 100  # the case with its own branch is there


def test_an_average_cost_is_no_equilibrium(write_game):
    """The specification's pitfall: a loop over (c x + p S)/(q x) settles as well, but owners could gain there."""
    game = write_game([1.0, 1.2, 0.9], quality=[0.8, 0.9, 1.0], stock=[3.0, 4.0, 2.0])
    prices, reward = np.array([0.5, 0.6, 0.4]), 60.0
    costs = game.owners.unit_cost / game.owners.quality
    for _ in range(500):
        samples = nash_shares(costs).amounts(reward) / game.owners.quality
        bought = np.maximum(samples - game.owners.stock, 0)
        average = (game.owners.unit_cost + prices * bought / samples) / game.owners.quality
        costs = 0.9 * costs + 0.1 * average
    assert costs == pytest.approx(average, rel=1e-9)  # it settled
    true = settle_contest(game.owners, flat_curves(prices), lambda efficiency: efficiency * reward)
    settlement = settled(game, true, method="nash")
    assert deviation_gains(settlement).max() <= 1e-9 * reward
    others = (game.owners.quality * samples).sum() - game.owners.quality * samples

    def utility(owner, count):
        effective = game.owners.quality[owner] * count
        bought = max(0.0, count - game.owners.stock[owner])
        return reward * effective / (others[owner] + effective) - game.owners.unit_cost[owner] * count - prices[owner] * bought

    gains = []
    for owner in range(3):
        best = minimize_scalar(lambda count, owner=owner: -utility(owner, count), bounds=(0, 60), method="bounded")
        gains.append(-best.fun - utility(owner, samples[owner]))
    assert max(gains) > 0.01
