"""Supply: against a sum over workers one by one; the inverse; caps; pools; the exact lower layer."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe.market.incentive import POOL, Orders, exact_workers
from nmoe.market.incentive.supply import dedicated_supply, efforts_at, flat_curves, pool_supply, supply_curves


def naive_supply(workers, group, price):
    amount = 0.0
    for alpha, beta, cap in zip(workers.alpha[group], workers.beta[group], workers.cap[group], strict=True):
        amount += min(max(0.0, (price - beta) / (2 * alpha)), cap)
    return amount


def orders(targets):
    targets = np.asarray(targets, float)
    return Orders(targets=targets, samples=targets, reward=1.0, efficiency=1.0, costs=np.ones_like(targets))


@pytest.mark.parametrize("cap", [float("inf"), 1.5])
def test_curves_are_the_sums_of_their_workers(draw_game, cap):
    for seed in range(20):
        game = draw_game(seed, cap=cap)
        curves = dedicated_supply(game)
        for price in (0.0, 0.3, 0.55, 1.4):
            prices = np.full(len(game.owners), price)
            expected = [naive_supply(game.workers, game.workers.owner == owner, price) for owner in range(len(game.owners))]
            assert curves.supply(prices) == pytest.approx(expected, abs=1e-9)
            assert np.bincount(game.workers.owner, weights=efforts_at(game, prices)) == pytest.approx(expected, abs=1e-9)


def test_the_inverse_is_the_specification_s_formula(draw_game):
    """p(S) = (S + sum beta g)/sum g over the first m workers, the first m whose next beta is not below it."""
    for seed in range(20):
        game = draw_game(seed)
        wanted = np.random.default_rng(seed).uniform(0, 20, len(game.owners))
        prices = dedicated_supply(game).price(wanted)
        for owner, amount in enumerate(wanted):
            order = np.argsort(game.workers.beta[game.workers.owner == owner])
            beta, alpha = (column[game.workers.owner == owner][order] for column in (game.workers.beta, game.workers.alpha))
            slopes = 1 / (2 * alpha)
            for count in range(1, len(beta) + 1):
                price = (amount + (beta * slopes)[:count].sum()) / slopes[:count].sum()
                if count == len(beta) or price <= beta[count]:
                    break
            assert prices[owner] == pytest.approx(price, rel=1e-9)


@given(
    alpha=st.lists(st.floats(0.01, 1), min_size=1, max_size=6),
    beta=st.floats(0, 1),
    cap=st.floats(0.1, 5),
    part=st.floats(0, 0.999),
)
def test_the_inverse_inverts(write_game, alpha, beta, cap, part):
    size = len(alpha)
    game = write_game([1.0, 1.0], workers=(alpha, beta * np.arange(1, size + 1), [0] * size), cap=[cap] * size)
    curves = dedicated_supply(game)
    assert curves.most[0] == pytest.approx(size * cap)
    amount = np.array([part * curves.most[0], 0.0])
    price = curves.price(amount)
    assert curves.supply(np.where(np.isfinite(price), price, 0))[0] == pytest.approx(amount[0], abs=1e-7)
    assert price[1] == np.inf  # nobody sells to the other


def test_ends_of_a_curve(write_game):
    game = write_game([1.0, 1.0], workers=([0.1, 0.1], [0.2, 0.9], [0, 0]), cap=[1.0, 1.0])
    curves = dedicated_supply(game)
    assert curves.lowest == pytest.approx([0.2, np.inf])
    assert curves.price(np.array([0.0, 0.0])) == pytest.approx([0.2, np.inf])
    assert curves.price(np.array([1.0, 0.0]))[0] == pytest.approx(0.4)  # the second joins only at 0.9
    assert curves.price(np.array([2.0, 0.0]))[0] == pytest.approx(1.1)
    assert curves.price(np.array([2.1, 0.0]))[0] == np.inf
    assert flat_curves(np.array([0.5, np.inf])).most == pytest.approx([np.inf, 0])
    assert supply_curves(game.workers, np.array([-1, -1]), 1).most == 0


def test_owners_without_workers_of_their_own_buy_from_the_pool(write_game):
    game = write_game([1.0, 1.0, 1.0], workers=([0.1, 0.05, 0.05], [0.2, 0.3, 0.4], [0, POOL, POOL]))
    assert game.sellers().tolist() == [0, POOL, POOL]
    layer = exact_workers(game)
    assert layer.opening_prices() == pytest.approx([0.2, 0.3, 0.3])
    response = layer.respond(orders([1.0, 2.0, 3.0]))
    assert response.prices[1] == response.prices[2] == pytest.approx(pool_supply(game).price(np.array([5.0]))[0])
    assert response.collected == pytest.approx([1.0, 2.0, 3.0])
    assert response.efforts == pytest.approx([1.0, (response.prices[1] - 0.3) / 0.1, (response.prices[1] - 0.4) / 0.1])


def test_exhausted_workers_say_so(write_game):
    game = write_game([1.0, 1.0, 1.0], workers=([0.1, 0.1], [0.2, 0.3], [0, POOL]), cap=[1.0, 4.0])
    response = exact_workers(game).respond(replace(orders([3.0, 6.0, 2.0]), reward=44.0, efficiency=0.25))
    assert response.exhausted.tolist() == [True, True, True]
    assert response.limits == pytest.approx([1.0, 3.0, 1.0])
    assert response.collected == pytest.approx([1.0, 3.0, 1.0])
    assert response.efforts == pytest.approx([1.0, 4.0])


def test_demand_meets_a_gap_only_where_all_who_work_are_at_their_caps(write_game):
    """The first worker gathers at most 2, up to a price of 0.5; the second joins at 3 and is at its cap of 4 at 3.8."""
    game = write_game([1.0, 1.0], workers=([0.1, 0.1], [0.1, 3.0], [0, 0]), cap=[2.0, 4.0])
    curves = dedicated_supply(game)
    cases = {1.5: np.inf, 2.4: np.inf, 2.6: 2.0, 4.9: 2.0, 5.1: np.inf, 9.7: np.inf, 9.9: 6.0, 20.0: 6.0}
    for intercept, limit in cases.items():  # demand is the intercept less the price
        demand = np.where(np.isfinite(curves.breaks), np.maximum(intercept - curves.breaks, 0.0), 0.0)
        assert curves.limits(demand) == pytest.approx([limit, np.inf])
