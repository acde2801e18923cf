"""Learned workers as ASOSA's lower layer, and the recipe that measures learning."""

import numpy as np
import pytest

from nmoe.core.errors import BadFile, EngineError
from nmoe.market.incentive.asosa import Asosa, upper_layer
from nmoe.market.incentive.draws import GameRanges, draw_recruitment
from nmoe.market.incentive.joint import joint_equilibrium
from nmoe.market.incentive.learners import clipped
from nmoe.market.incentive.learners.ppo import PPO
from nmoe.market.incentive.learners.workers import learned_workers, price_range
from nmoe.recipes.market_learn import RANGES

SMALL = PPO(width=16, num_envs=4, epochs=2, minibatches=2)


def a_recruitment(*, pooled=False, factor=60.0):
    return draw_recruitment(GameRanges(owners=3, workers_per_owner=4, factor=factor, pooled=pooled), np.random.default_rng(0))


@pytest.mark.parametrize("pooled", [False, True])
def test_a_response_has_the_shape_of_an_exact_one(pooled):
    recruitment = a_recruitment(pooled=pooled)
    told = []
    layer = learned_workers(recruitment, seed=0, episodes=4, ppo=SMALL, progress=lambda *one: told.append(one))
    opening = layer.opening_prices()
    orders = upper_layer(recruitment, opening)
    found = layer.respond(orders)
    assert np.isfinite(opening).all()
    assert found.prices.shape == found.collected.shape == (3,)
    assert found.efforts.shape == found.wages.shape == (12,)
    assert np.all((found.prices >= 0) & (found.prices <= price_range(recruitment)))
    assert np.all((found.collected >= 0) & (found.collected <= orders.targets))
    assert found.policy_change == 1.0
    assert layer.tolerance == 1e-2
    again = layer.respond(orders)
    assert 0 < again.policy_change < 1
    assert layer.trained == 5
    assert [one[:2] for one in told] == [(4, 4), (1, 1)]


def test_an_owner_who_orders_nothing_gets_nothing_and_has_a_price():
    recruitment = a_recruitment()
    orders = upper_layer(recruitment, np.array([0.1, 50.0, 0.1]))
    assert orders.targets[1] == 0
    found = learned_workers(recruitment, seed=0, episodes=4, ppo=SMALL).respond(orders)
    assert found.collected[1] == 0
    assert np.isfinite(found.prices[1])
    mine = recruitment.workers.owner == 1
    assert np.all(found.efforts[mine] == 0)
    assert np.all(found.wages[mine] == 0)


def test_asosa_runs_over_learned_workers():
    recruitment = a_recruitment()
    loop = Asosa(max_steps=3, fall_back=False).run(recruitment, learned_workers(recruitment, seed=0, episodes=4, ppo=SMALL))
    assert 1 <= len(loop.steps) <= 3
    assert np.isfinite(loop.settlement.prices).all()


def test_saved_policies_answer_as_before_and_go_on_learning(tmp_path):
    recruitment = a_recruitment()
    orders = upper_layer(recruitment, np.full(3, 0.4))
    layer = learned_workers(recruitment, seed=0, episodes=4, ppo=SMALL)
    layer.respond(orders)
    layer.save(tmp_path)
    kept = learned_workers(recruitment, seed=0, more_episodes=0, policies=tmp_path)
    assert np.array_equal(kept.respond(orders).prices, layer.team.play(orders).prices[0])
    assert kept.trained == 4
    more = learned_workers(recruitment, seed=0, more_episodes=4, policies=tmp_path)
    assert not np.array_equal(more.respond(orders).prices, kept.respond(orders).prices)
    assert more.trained == 8
    with pytest.raises(BadFile, match=r"of another game"):
        learned_workers(a_recruitment(factor=50.0), seed=0, policies=tmp_path)


def test_callers_mistakes_are_named(monkeypatch):
    recruitment = a_recruitment()
    with pytest.raises(ValueError, match=r"episodes must be at least 1, got 0"):
        learned_workers(recruitment, seed=0, episodes=0)
    with pytest.raises(ValueError, match=r"further episodes must be at least 0, got -1"):
        learned_workers(recruitment, seed=0, more_episodes=-1)
    with pytest.raises(ValueError, match=r"learned workers need somebody to buy from them: lambda 0.1 is too low"):
        learned_workers(a_recruitment(factor=0.1), seed=0)
    monkeypatch.setattr(clipped, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"learned workers need the extra market: pip install nmoe\[market\]"):
        learned_workers(recruitment, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_asosa_with_learned_workers_settles_near_the_joint_equilibrium():
    recruitment = draw_recruitment(RANGES, np.random.default_rng(0))
    loop = Asosa(max_steps=30, fall_back=False).run(recruitment, learned_workers(recruitment, seed=0))
    exact = joint_equilibrium(recruitment)
    assert loop.converged
    assert np.allclose(loop.settlement.prices, exact.prices, rtol=0.05)
    assert loop.settlement.reward == pytest.approx(exact.reward, rel=0.05)
