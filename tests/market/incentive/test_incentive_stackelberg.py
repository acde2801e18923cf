"""The leader: against scipy, for every value of data; with many peaks; the posted price."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from nmoe.market.incentive import LogValue, PowerValue, Publisher, SaturatingValue, best_posted_price, best_reward, nash_shares
from nmoe.market.incentive.contest import totals_for
from nmoe.market.incentive.stackelberg import largest_reward, search_reward
from nmoe.market.incentive.supply import flat_curves

VALUES = [LogValue(), PowerValue(exponent=0.3), SaturatingValue(limit=50.0)]


@pytest.mark.parametrize("data_value", VALUES, ids=lambda value: type(value).__name__)
@given(total=st.floats(0, 500), step=st.floats(0.01, 20))
def test_values_of_data_are_what_their_abstract_class_says(data_value, total, step):
    points = np.array([total, total + step, total + 2 * step])
    low, middle, high = data_value.value(points)
    assert data_value.value(np.zeros(1)) == 0
    assert data_value.slope(np.zeros(1)) == pytest.approx(1)
    assert low < middle or data_value.slope(points)[0] < 1e-6
    assert middle >= (low + high) / 2
    assert data_value.total_at(data_value.slope(points)) == pytest.approx(points, rel=1e-6, abs=1e-9)
    assert data_value.total_at(np.array([1.5])) == 0
    assert (data_value.value(np.array([total + 1e-6])) - data_value.value(np.array([total]))) / 1e-6 == pytest.approx(
        data_value.slope(points)[0], rel=1e-3, abs=1e-6
    )


@pytest.mark.parametrize("data_value", VALUES, ids=lambda value: type(value).__name__)
def test_the_reward_is_scipy_s(draw_game, data_value):
    for seed in range(40):
        game = draw_game(seed)
        publisher = Publisher(factor=game.publisher.factor, data_value=data_value)
        efficiency = nash_shares(game.owners.unit_cost / game.owners.quality).efficiency
        reward = best_reward(publisher, efficiency)
        high = largest_reward(publisher, efficiency)
        found = minimize_scalar(
            lambda one: -float(publisher.utility(np.array(efficiency * one), np.array(one))),  # noqa: B023
            bounds=(0, high),
            method="bounded",
            options={"xatol": 1e-10},
        )
        assert float(publisher.utility(np.array(efficiency * reward), np.array(reward))) >= -found.fun - 1e-9
        assert reward == pytest.approx(found.x, rel=1e-4, abs=1e-4)


def test_the_reward_is_lambda_less_what_a_sample_costs():
    assert best_reward(Publisher(factor=10.0, data_value=LogValue()), 0.25) == pytest.approx(6.0)
    assert best_reward(Publisher(factor=4.0, data_value=LogValue()), 0.25) == 0  # lambda eta = 1: no task is published
    assert best_reward(Publisher(factor=10.0, data_value=LogValue()), 0.0) == 0


def test_the_search_finds_the_highest_of_many_peaks(draw_game):
    many = 0
    for seed in range(15):
        game = draw_game(seed, stock=(0.0, 5.0))
        curves = flat_curves(np.random.default_rng(seed).uniform(0.1, 1, len(game.owners)))
        high = largest_reward(game.publisher, float((game.owners.quality / game.owners.unit_cost).max()))

        def follow(rewards, game=game, curves=curves):
            return totals_for(game.owners, curves, rewards)

        grid = np.linspace(high / 4000, high, 4000)
        values = np.concatenate([game.publisher.utility(follow(part), part) for part in np.array_split(grid, 8)])
        many += int(((values[1:-1] > values[:-2]) & (values[1:-1] > values[2:])).sum() > 1)
        reward = search_reward(game.publisher, follow, high=high)
        assert float(game.publisher.utility(follow(np.array([reward])), np.array([reward]))[0]) >= values.max() - 1e-7
    assert many > 0


def test_a_posted_price_is_the_best_of_a_fine_grid(draw_game):
    for seed in range(20):
        game = draw_game(seed)
        growth = np.random.default_rng(seed).uniform(0.02, 0.2, len(game.owners))
        found = best_posted_price(game.publisher, game.owners, growth)
        best = 0.0
        for price in np.linspace(0, 5, 2001):
            samples = np.maximum(0, (price * game.owners.quality - game.owners.unit_cost) / (2 * growth))
            total = float((game.owners.quality * samples).sum())
            best = max(best, game.publisher.factor * np.log(1 + total) - price * total)
        assert found.publisher_utility >= best - 1e-9
        assert (found.owner_utilities >= 0).all()


def test_no_price_is_posted_where_none_is_worth_it(write_game):
    game = write_game([2.0, 3.0], factor=1.5)
    found = best_posted_price(game.publisher, game.owners, np.array([0.1, 0.1]))
    assert found.price == 0
    assert found.samples.sum() == 0
    with pytest.raises(ValueError, match="growth of cost must be one number per owner, 2"):
        best_posted_price(game.publisher, game.owners, np.array([0.1, -0.1]))
