"""The recruitment game in slots: PettingZoo's own tests, one game against many, and laws of the transition."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pettingzoo.test import parallel_api_test
from pettingzoo.test.seed_test import parallel_seed_test

from nmoe.market.incentive.base import POOL, Orders, Owners, Publisher, Recruitment, Workers
from nmoe.market.incentive.data_value import LogValue
from nmoe.market.incentive.learners.slots import (
    MEMORY,
    STEEPEST,
    Draws,
    Drift,
    SlotActions,
    SlotGame,
    begin,
    best_efforts,
    best_preferences,
    observe_owners,
    observe_workers,
    standing,
    step,
)
from nmoe.market.incentive.recruitment_env import RecruitmentEnv
from nmoe.market.incentive.supply import efforts_at

STILL = Drift()
DRIFTS = [STILL, Drift(persistence=0.8, shock=0.3, availability=0.7, refresh=0.6)]
KINDS = ["dedicated", "pool", "mixed"]


def a_game(kind="dedicated", *, seed=0, drift=STILL, horizon=12, caps=False):
    draws = np.random.default_rng(seed)
    owner = {"dedicated": [0, 0, 1, 1, 2], "pool": [POOL] * 5, "mixed": [0, 0, POOL, POOL, POOL]}[kind]
    owners = Owners(ids=("a", "b", "c"), quality=draws.uniform(0.6, 1, 3), unit_cost=draws.uniform(0.5, 1.5, 3), stock=np.zeros(3))
    workers = Workers(
        ids=("v", "w", "x", "y", "z"),
        alpha=draws.uniform(0.02, 0.2, 5),
        beta=draws.uniform(0.1, 0.6, 5),
        cap=draws.uniform(0.5, 3, 5) if caps else np.full(5, np.inf),
        owner=np.array(owner),
    )
    recruitment = Recruitment(publisher=Publisher(factor=60.0, data_value=LogValue()), owners=owners, workers=workers)
    return SlotGame(recruitment=recruitment, price_max=1.5, horizon=horizon, drift=drift)


def some_orders(seed=0):
    draws = np.random.default_rng(seed)
    targets = draws.uniform(1, 8, 3)
    return Orders(targets=targets, samples=targets + np.arange(3), reward=30.0, efficiency=0.5, costs=draws.uniform(1, 3, 3))


def an_env(kind="dedicated", drift=STILL, *, horizon=12):
    return RecruitmentEnv(a_game(kind, drift=drift, horizon=horizon), some_orders(), np.array([1.0, 2.0, 3.0]))


def random_actions(game, num_envs, seed):
    draws = np.random.default_rng(seed)
    num_workers, num_owners = game.buyers.shape
    return SlotActions(
        prices=draws.uniform(-0.2, 1.2, (num_envs, num_owners)) * game.price_max,
        efforts=draws.uniform(-0.2, 1.2, (num_envs, num_workers)) * game.most_effort,
        preferences=draws.uniform(-3, 3, (num_envs, num_workers, num_owners)),
    )


def random_draws(game, num_envs, seed):
    draws = np.random.default_rng(seed + 1000)
    shape = (num_envs, len(game.recruitment.workers))
    return Draws(shocks=draws.standard_normal(shape), presence=draws.random(shape))


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("kind", KINDS)
def test_pettingzoo_accepts_the_environment(kind, drift):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(an_env(kind, drift), num_cycles=40)


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_give_equal_episodes(kind, drift):
    parallel_seed_test(lambda: an_env(kind, drift), num_cycles=30)


def test_an_episode_is_cut_off_at_the_horizon_and_another_can_begin():
    env = an_env(horizon=3)
    for _ in range(2):
        env.reset(seed=1)
        for slot in range(3):
            assert len(env.agents) == 8
            _, _, ended, cut, _ = env.step({name: env.action_space(name).sample() for name in env.agents})
            assert not any(ended.values())
            assert all(cut.values()) == any(cut.values()) == (slot == 2)
        assert env.agents == []


def test_a_missing_action_is_named():
    env = an_env()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"an action for each of 8 agents wanted, none for worker:z"):
        env.step({name: env.action_space(name).sample() for name in env.agents[:-1]})


def test_the_state_is_what_all_observe_together():
    env = an_env("mixed")
    seen, _ = env.reset(seed=3)
    assert np.array_equal(env.state(), np.concatenate([seen[name] for name in env.possible_agents]))


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("kind", KINDS)
def test_many_games_at_once_are_those_games_one_by_one(kind, drift):
    game, orders, num_envs = a_game(kind, drift=drift, caps=True), some_orders(), 4
    penalty = np.array([1.0, 2.0, 3.0])
    envs = [RecruitmentEnv(game, orders, penalty) for _ in range(num_envs)]
    seen = [env.reset(seed=seed)[0] for seed, env in enumerate(envs)]
    first = np.array([[one[f"owner:{name}"][2] for name in "abc"] for one in seen], dtype=float)  # the price posted
    chances = [np.random.default_rng(0) for _ in envs]
    for env, chance in zip(envs, chances, strict=True):
        chance.bit_generator.state = env._generator.bit_generator.state
    state = begin(game, standing(orders, penalty, num_envs), first)
    for slot in range(game.horizon):
        acts = [{name: env.action_space(name).sample() for name in env.agents} for env in envs]
        played = [env.step(act) for env, act in zip(envs, acts, strict=True)]
        of_workers = np.array([[act[f"worker:{name}"] for name in "vwxyz"] for act in acts], dtype=float)
        actions = SlotActions(
            prices=np.array([[act[f"owner:{name}"][0] for name in "abc"] for act in acts], dtype=float),
            efforts=of_workers[:, :, 0],
            preferences=of_workers[:, :, 1:] if game.pooled else np.zeros((num_envs, 5, 3)),
        )
        chance = [(one.standard_normal(5), one.random(5)) for one in chances]
        draws = Draws(shocks=np.array([shocks for shocks, _ in chance]), presence=np.array([presence for _, presence in chance]))
        outcome = step(game, state, actions, draws)
        state = outcome.state
        for place, (observations, rewards, *_) in enumerate(played):
            together = np.concatenate([outcome.owner_rewards[place], outcome.worker_rewards[place]])
            assert np.allclose(list(rewards.values()), together, rtol=1e-5, atol=1e-5), slot  # prices posted first are single precision
            rows = [*observe_owners(state)[place], *observe_workers(game, state)[place]]
            assert all(np.allclose(one, row, rtol=1e-5, atol=1e-5) for one, row in zip(observations.values(), rows, strict=True))


@given(seed=st.integers(0, 10_000), kind=st.sampled_from(KINDS), drift=st.sampled_from(DRIFTS), caps=st.booleans())
def test_money_and_samples_are_conserved_and_rewards_are_the_formulas(seed, kind, drift, caps):
    game, orders, penalty = a_game(kind, seed=seed, drift=drift, caps=caps), some_orders(seed), np.array([1.0, 2.0, 3.0])
    owners, workers = game.recruitment.owners, game.recruitment.workers
    state = begin(game, standing(orders, penalty, 2), np.random.default_rng(seed).uniform(0, 1.5, (2, 3)))
    for slot in range(3):
        before, outcome = state, step(game, state, random_actions(game, 2, seed + slot), random_draws(game, 2, seed + slot))
        state = outcome.state
        assert np.all(outcome.efforts >= 0)
        assert np.all(outcome.efforts <= before.capacity + 1e-12)
        bought = (game.buyers.any(axis=1) * outcome.efforts).sum(axis=1)
        assert np.allclose(outcome.collected.sum(axis=1), bought)
        assert np.allclose((before.posted * outcome.collected).sum(axis=1), outcome.wages.sum(axis=1))
        for env in range(2):
            samples = orders.samples - orders.targets + outcome.collected[env]
            effective = owners.quality * samples
            for n in range(3):
                share = effective[n] / effective.sum()
                bill = owners.unit_cost[n] * samples[n] + before.posted[env, n] * outcome.collected[env, n]
                short = max(0.0, orders.targets[n] - outcome.collected[env, n])
                assert outcome.owner_rewards[env, n] == pytest.approx((30 * share - bill - penalty[n] * short) / 30, abs=1e-9)
            for m in range(5):
                done = outcome.efforts[env, m]
                cost = workers.alpha[m] * done**2 + before.beta[env, m] * done
                assert outcome.worker_rewards[env, m] == pytest.approx(outcome.wages[env, m] - cost, abs=1e-9)


@given(seed=st.integers(0, 10_000))
def test_workers_change_as_the_drift_says(seed):
    drift = Drift(persistence=0.5, shock=0.2, availability=0.6, refresh=0.25)
    game = a_game(seed=seed, drift=drift, caps=True)
    state = begin(game, standing(some_orders(), np.ones(3), 3), np.full((3, 3), 1.0))
    fatigue = np.zeros((3, 5))
    for slot in range(4):
        chance = random_draws(game, 3, seed + slot)
        before, outcome = state, step(game, state, random_actions(game, 3, seed + slot), chance)
        state = outcome.state
        mean = game.recruitment.workers.beta
        wanted = np.maximum(mean + 0.5 * (before.beta - mean) + 0.2 * mean * chance.shocks, 0)
        assert np.allclose(state.beta, wanted)
        fatigue = np.maximum(fatigue + outcome.efforts - 0.25 * game.capacity, 0)
        assert np.allclose(state.capacity, np.where(chance.presence < 0.6, game.capacity - fatigue, 0))
        assert np.all(state.capacity >= -1e-12)


def test_workers_without_drift_stay_and_are_fresh_in_every_slot():
    game = a_game(caps=True)
    state = begin(game, standing(some_orders(), np.ones(3), 2), np.full((2, 3), 1.0))
    for slot in range(3):
        state = step(game, state, random_actions(game, 2, slot), random_draws(game, 2, slot)).state
        assert np.allclose(state.beta, game.recruitment.workers.beta)
        assert np.allclose(state.capacity, game.capacity)


def test_memories_hold_the_last_slots_in_order():
    game = a_game()
    state = begin(game, standing(some_orders(), np.ones(3), 1), np.full((1, 3), 0.3))
    posted, collected = [], []
    for slot in range(MEMORY + 2):
        outcome = step(game, state, random_actions(game, 1, slot), random_draws(game, 1, slot))
        posted.append(state.posted[0])
        collected.append(outcome.collected[0])
        state = outcome.state
    assert np.allclose(state.prices[0], np.array(posted[-MEMORY:]).T)
    assert np.allclose(state.collected[0], np.array(collected[-MEMORY:]).T)
    seen = observe_owners(state)[0]
    assert np.allclose(seen[:, 0], some_orders().targets)
    assert np.allclose(seen[:, 1], np.maximum(some_orders().targets - collected[-1], 0))
    assert np.allclose(seen[:, 2], state.posted[0])
    assert np.allclose(seen[:, -3:-1], [30.0, 0.5])


@pytest.mark.parametrize("caps", [False, True])
def test_best_replies_are_those_of_the_exact_layer(caps):
    game = a_game(caps=caps)
    posted = np.array([0.4, 0.9, 1.4])
    state = begin(game, standing(some_orders(), np.ones(3), 1), posted[None])
    assert np.allclose(best_efforts(game, state)[0], efforts_at(game.recruitment, posted))


def test_no_other_effort_pays_a_worker_more_than_its_best_reply():
    game = a_game("pool")
    tries = 200
    state = begin(game, standing(some_orders(), np.ones(3), tries), np.tile([0.4, 0.9, 1.4], (tries, 1)))
    best = best_efforts(game, state)
    preferences = best_preferences(game, state.posted)
    exact = step(game, state, SlotActions(prices=state.posted, efforts=best, preferences=preferences), random_draws(game, tries, 0))
    other = random_actions(game, tries, 5)
    tried = step(
        game, state, SlotActions(prices=state.posted, efforts=other.efforts, preferences=other.preferences), random_draws(game, tries, 0)
    )
    assert np.all(tried.worker_rewards <= exact.worker_rewards + 1e-5)
    assert np.exp(-2 * STEEPEST) < 1e-6  # what the softmax keeps from the best buyer


def test_workers_nobody_buys_from_deliver_nothing():
    draws = a_game("mixed").recruitment
    owner = np.array([0, 1, 2, POOL, POOL])
    workers = Workers(ids=draws.workers.ids, alpha=draws.workers.alpha, beta=draws.workers.beta, cap=draws.workers.cap, owner=owner)
    game = SlotGame(recruitment=Recruitment(publisher=draws.publisher, owners=draws.owners, workers=workers), price_max=1.0)
    state = begin(game, standing(some_orders(), np.ones(3), 1), np.full((1, 3), 0.5))
    outcome = step(game, state, random_actions(game, 1, 1), random_draws(game, 1, 1))
    assert np.allclose(outcome.wages[0, 3:], 0)
    assert np.allclose(best_efforts(game, state)[0, 3:], 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"price_max": 0.0}, "the highest price must be finite and above 0, got 0.0"),
        ({"price_max": float("nan")}, "the highest price must be finite and above 0, got nan"),
        ({"price_max": 1.0, "horizon": 0}, "horizon must be at least 1 slot, got 0"),
    ],
)
def test_games_that_are_none_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SlotGame(recruitment=a_game().recruitment, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"persistence": 1.0}, "persistence must be at least 0 and below 1, got 1.0"),
        ({"shock": -1.0}, "shock must be finite and at least 0, got -1.0"),
        ({"availability": 0.0}, "availability must be above 0 and at most 1, got 0.0"),
        ({"refresh": 2.0}, "refresh must be above 0 and at most 1, got 2.0"),
    ],
)
def test_drifts_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Drift(**arguments)


def test_a_task_that_is_not_published_is_no_game():
    orders = Orders(targets=np.zeros(3), samples=np.zeros(3), reward=0.0, efficiency=0.0, costs=np.ones(3))
    with pytest.raises(ValueError, match=r"workers are recruited for a reward above 0, got 0.0"):
        standing(orders, np.ones(3), 1)
