"""Learners: seats, conduct, clearing, the door to TorchRL, training, exploitability; the whole targets in a slow test."""

import multiprocessing
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from nmoe.core.seeds import numpy_generator
from nmoe.market.incentive.asosa import upper_layer
from nmoe.market.incentive.base import POOL
from nmoe.market.incentive.draws import GameRanges, draw_recruitment
from nmoe.market.incentive.joint import joint_equilibrium
from nmoe.market.incentive.learners.accuracy import errors_in, errors_of
from nmoe.market.incentive.learners.clearing import clear, penalty_for
from nmoe.market.incentive.learners.clipped import ClippedLoss, Transitions, estimate_advantages
from nmoe.market.incentive.learners.conduct import BestReplies, SteadyPrices, play
from nmoe.market.incentive.learners.exploitability import Gains, retrain_owner, retrain_worker, search_owner_gains, search_worker_gains
from nmoe.market.incentive.learners.mappo import new_mappo
from nmoe.market.incentive.learners.networks import CentralCritic, GaussianPolicy, log_density
from nmoe.market.incentive.learners.ppo import PPO
from nmoe.market.incentive.learners.seats import OwnerSeats, PlannerSeat, WorkerSeats, blank_actions, look
from nmoe.market.incentive.learners.single_agent import new_planner
from nmoe.market.incentive.learners.slots import STEEPEST, SlotGame, begin, standing
from nmoe.market.incentive.learners.team import Team
from nmoe.market.incentive.learners.training import Schedule
from nmoe.market.incentive.learners.workers import EPISODES, price_range
from nmoe.recipes.market_learn import RANGES

TINY = PPO(width=16, num_envs=4, epochs=2, minibatches=2)


def a_recruitment(seed=0, *, pool=False, cap=np.inf):
    return draw_recruitment(GameRanges(owners=3, workers_per_owner=4, factor=60.0, pooled=pool, cap=cap), np.random.default_rng(seed))


def a_case(seed=0, *, horizon=50, **kinds):
    """Return a game and the orders of its joint equilibrium."""
    recruitment = a_recruitment(seed, **kinds)
    orders = upper_layer(recruitment, joint_equilibrium(recruitment).prices)
    return SlotGame(recruitment=recruitment, price_max=price_range(recruitment), horizon=horizon), orders


@pytest.mark.parametrize("pool", [False, True])
def test_clearing_prices_fetch_the_targets_and_rises_are_a_difference(pool):
    recruitment = a_recruitment(pool=pool)
    targets = np.array([3.0, 0.0, 5.0])
    found = clear(recruitment, targets)

    def supplied(prices):
        """A naive sum over workers."""
        workers = recruitment.workers
        sums = np.zeros(3)
        for alpha, beta, owner in zip(workers.alpha, workers.beta, workers.owner, strict=True):
            sums[owner if owner != POOL else 0] += max(0.0, (prices[max(owner, 0)] - beta) / (2 * alpha))
        return sums

    wanted = np.array([8.0, 0.0, 0.0]) if pool else targets
    assert np.allclose(supplied(found.prices), wanted, atol=1e-8)
    more = clear(recruitment, targets + np.array([0.01, 0.0, 0.0])).prices[0]
    assert found.rises[0] == pytest.approx(targets[0] * (more - found.prices[0]) / 0.01, rel=1e-3)


def test_a_penalty_makes_the_target_the_best_price_of_a_grid_and_without_it_an_owner_buys_less():
    game, orders = a_case()
    owner = int(np.argmax(orders.targets))
    cleared = clear(game.recruitment, orders.targets).prices
    grid = np.linspace(0.3, 1.0, 701) * game.price_max
    prices = np.tile(cleared, (len(grid), 1))
    prices[:, owner] = grid

    def best(penalty):
        played = play(
            game, standing(orders, penalty, len(grid)), [SteadyPrices(prices=prices), BestReplies()], generator=np.random.default_rng(0)
        )
        return grid[np.argmax(played.owner_rewards[:, owner])]

    assert best(penalty_for(game.recruitment, orders.targets, factor=2.0)) == pytest.approx(cleared[owner], rel=2e-3)
    assert best(np.zeros(3)) < 0.97 * cleared[owner]


def test_more_than_workers_can_gather_is_penalised_like_all_they_can():
    recruitment = a_recruitment(cap=1.0)
    most, beyond = (penalty_for(recruitment, np.array([amount, 1.0, 1.0]), factor=2.0) for amount in (4.0, 40.0))
    assert beyond[0] == pytest.approx(most[0])
    with pytest.raises(ValueError, match=r"the penalty's factor must be finite and above 1, got 1"):
        penalty_for(recruitment, np.ones(3), factor=1)


def test_exact_conduct_at_clearing_prices_is_the_joint_equilibrium():
    game, orders = a_case(3)
    found = joint_equilibrium(game.recruitment)
    steady = SteadyPrices(prices=found.prices)
    played = play(game, standing(orders, np.ones(3), 1), [steady, BestReplies()], generator=np.random.default_rng(0))
    assert np.allclose(played.efforts[0], found.efforts, rtol=1e-6)
    assert np.allclose(played.collected[0], orders.targets, rtol=1e-6)
    assert np.allclose(orders.reward * played.owner_rewards[0], found.owner_utilities, rtol=1e-6)
    assert np.allclose(played.worker_rewards[0], found.worker_utilities, rtol=1e-6)


def test_advantages_are_those_of_a_naive_sum():
    draws = torch.Generator().manual_seed(0)
    rewards, values = torch.randn((5, 2, 3), generator=draws), torch.randn((6, 2, 3), generator=draws)
    advantage, target = estimate_advantages(rewards, values, discount=0.9, trace=0.8)
    surprise = rewards + 0.9 * values[1:] - values[:-1]
    for slot in range(5):
        naive = sum(surprise[later] * 0.72 ** (later - slot) for later in range(slot, 5))
        assert torch.allclose(advantage[slot], naive, atol=1e-5)
    assert torch.allclose(target, advantage + values[:-1])


def test_the_clipped_loss_is_the_formula():
    draws = torch.Generator().manual_seed(0)
    policy = GaussianPolicy(num_features=3, num_actions=2, width=8, generator=draws)
    critic = CentralCritic(num_features=4, width=8, generator=draws)
    features, central = torch.randn((6, 2, 3), generator=draws), torch.randn((6, 2, 4), generator=draws)
    raw, old = torch.randn((6, 2, 2), generator=draws), -2 + 0.3 * torch.randn((6, 2), generator=draws)
    advantage, target = torch.randn((6, 2), generator=draws), torch.randn((6, 2), generator=draws)
    batch = Transitions(features, central, raw, old, advantage, target)
    found = ClippedLoss(policy, critic, clip=0.2)(batch)
    gaussian = policy(features)
    standard = (advantage - advantage.mean(dim=0)) / advantage.std(dim=0).clamp(min=1e-6)
    ratio = (log_density(gaussian, raw) - old).exp()
    gain = torch.minimum(ratio * standard, ratio.clamp(0.8, 1.2) * standard).mean()
    assert found.policy.item() == pytest.approx(-gain.item(), abs=1e-5)
    assert found.critic.item() == pytest.approx(((critic(central)[..., 0] - target) ** 2).mean().item(), rel=1e-5)


def test_the_door_to_torchrl_leaves_the_way_to_start_processes():
    before = multiprocessing.get_start_method(allow_none=True)
    estimate_advantages(torch.zeros((2, 1, 1)), torch.zeros((3, 1, 1)), discount=0.9, trace=0.9)
    assert multiprocessing.get_start_method(allow_none=True) == before


def test_heavy_libraries_are_imported_when_they_are_used():
    code = (
        "import sys, nmoe.market.incentive.learners.slots; assert 'torch' not in sys.modules;"
        "import nmoe.market.incentive.learners.workers; assert not {'torchrl', 'tensordict', 'pettingzoo'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("pool", [False, True])
def test_seats_fill_in_their_own_actions_within_range(pool):
    game, orders = a_case(pool=pool)
    view = look(game, begin(game, standing(orders, np.ones(3), 2), np.ones((2, 3))))
    draws = np.random.default_rng(0)
    for seats, others in ((OwnerSeats(index=np.array([1])), [0, 2]), (PlannerSeat(), [])):
        agents = seats.features(view).shape[1]
        assert seats.central(view).shape[:2] == (2, agents)
        raw = draws.normal(0, 3, (2, agents, seats.num_actions(game)))
        prices = seats.act(game, blank_actions(game, 2), raw).prices
        assert np.all(prices[:, others] == 0)
        assert np.all(np.abs(prices / game.price_max - 0.5) <= 0.55)
    workers = WorkerSeats(index=np.array([0, 5]))
    raw = draws.normal(0, 3, (2, 2, workers.num_actions(game)))
    actions = workers.act(game, blank_actions(game, 2), raw)
    assert np.all(actions.efforts[:, [1, 2, 3, 4, 6]] == 0)
    assert np.all(np.abs(actions.preferences) <= STEEPEST)
    assert bool(actions.preferences.any()) == pool


def test_views_have_no_units():
    game, orders = a_case()
    state = begin(game, standing(orders, np.ones(3), 1), np.full((1, 3), 0.4))
    workers = game.recruitment.workers
    euros = replace(
        game,
        price_max=100 * game.price_max,
        recruitment=replace(game.recruitment, workers=replace(workers, alpha=100 * workers.alpha, beta=100 * workers.beta)),
    )
    cents = begin(euros, standing(orders, np.ones(3), 1), np.full((1, 3), 40.0))
    one, other = look(game, state).workers, look(euros, cents).workers
    kept = [0, 2, 3, *range(4, one.shape[2])]  # all but the logarithm of alpha
    assert torch.allclose(one[..., kept], other[..., kept])


@pytest.fixture(scope="module")
def trained():
    """A team before and after a tiny training, and what it was rewarded with."""
    game, orders = a_case(horizon=20)
    team = new_mappo(game, ppo=PPO(width=32, num_envs=8, epochs=4, minibatches=2, actor_rate=2e-3), seed=0)
    before = errors_of(team, orders)
    curve = team.train(orders, Schedule(episodes=320), stage="all")
    return team, orders, before, curve


def test_a_tiny_training_improves_rewards_and_errors(trained):
    team, orders, before, curve = trained
    after = errors_of(team, orders)
    early, late = ({role: np.mean([one[role] for one in part]) for role in ("owners", "workers")} for part in (curve[:4], curve[-4:]))
    assert late["owners"] > early["owners"]
    assert late["workers"] > early["workers"]
    assert after.effort < 0.5 * before.effort
    assert after.collected < before.collected


def weights_of(team: Team):
    return torch.cat([one.detach().flatten() for learner in team.learners for one in learner.policy.parameters()])


@pytest.mark.parametrize("build", [new_mappo, new_planner])
def test_training_is_a_function_of_the_seed(build):
    def run(seed):
        game, orders = a_case(horizon=5)
        team = build(game, ppo=TINY, seed=seed)
        return team.train(orders, Schedule(episodes=8), stage="all"), weights_of(team)

    (curve, weights), (again, same), (other, differ) = run(0), run(0), run(1)
    assert curve == again
    assert torch.equal(weights, same)
    assert curve != other
    assert not torch.equal(weights, differ)


def test_the_report_is_told_of_every_batch():
    game, orders = a_case(horizon=4)
    told = []
    new_mappo(game, ppo=TINY, seed=0).train(orders, Schedule(episodes=10), stage="all", report=lambda *one: told.append(one))
    assert [one[:2] for one in told] == [(4, 10), (8, 10), (10, 10)]
    assert set(told[0][2]) == {"owners", "workers"}


def test_errors_of_the_closed_form_itself_are_none():
    game, orders = a_case(2)
    team = new_mappo(game, ppo=TINY, seed=0)
    cleared = SteadyPrices(prices=clear(game.recruitment, orders.targets).prices)
    assert max(errors_in(team, orders, team.play(orders, instead=[cleared, BestReplies()]))) < 1e-6


def test_gains_are_none_where_all_play_best_and_found_where_one_does_not(trained):
    team, orders, *_ = trained
    exact = replace(team, learners=(), others=(SteadyPrices(prices=clear(team.game.recruitment, orders.targets).prices), BestReplies()))
    assert search_worker_gains(exact, orders).relative == pytest.approx(0, abs=1e-9)
    assert search_owner_gains(exact, orders, num_prices=400).relative < 5e-3
    wrong = replace(exact, others=(SteadyPrices(prices=np.full(3, 0.3 * team.game.price_max)), BestReplies()))
    assert search_owner_gains(wrong, orders).relative > 0.1


def test_gains_are_relative_to_what_all_have():
    gains = Gains(now=np.array([1.0, -3.0]), then=np.array([0.5, -1.0]))
    assert gains.relative == pytest.approx(0.5)
    assert gains.largest == pytest.approx(1.0)


def test_one_agent_can_be_trained_anew_and_the_others_stay(trained):
    team, orders, *_ = trained
    before = weights_of(team).clone()
    small = replace(team, ppo=TINY)
    owner = retrain_owner(small, orders, 0, schedule=Schedule(episodes=4), seed=0)
    worker = retrain_worker(small, orders, 2, schedule=Schedule(episodes=4), seed=0)
    assert owner.now.shape == owner.then.shape == worker.now.shape == worker.then.shape == (1,)
    assert np.isfinite([owner.relative, worker.relative]).all()
    assert torch.equal(weights_of(team), before)


def test_a_pool_can_be_trained_for():
    game, orders = a_case(pool=True, horizon=5)
    team = new_mappo(game, ppo=TINY, seed=0)
    curve = team.train(orders, Schedule(episodes=4), stage="all")
    assert np.isfinite(list(curve[0].values())).all()
    assert np.isfinite(errors_of(team, orders)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"actor_rate": 0.0}, "actor_rate must be finite and above 0, got 0.0"),
        ({"clip": 1.0}, "clip must be above 0 and below 1, got 1.0"),
        ({"discount": 1.5}, "discount must be between 0 and 1, got 1.5"),
        ({"last_log_std": 1.0}, "last_log_std must be finite and at most first_log_std, -1.0, got 1.0"),
        ({"minibatches": 0}, "minibatches must be at least 1, got 0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PPO(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"episodes": 1, "first_rate": 2.0}, "rates must be between 0 and 1, got 2.0 and 0.05"),
        ({"episodes": 1, "least_order": 0.0}, "orders must vary from a factor above 0 to no smaller one, got 0.0 and 1.1"),
    ],
)
def test_schedules_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**arguments)


def test_orders_without_a_reward_are_refused():
    game, orders = a_case()
    with pytest.raises(ValueError, match=r"workers are recruited for a reward above 0, got 0"):
        new_mappo(game, ppo=TINY, seed=0).play(replace(orders, reward=0.0))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
def test_learned_prices_and_efforts_are_within_5_percent_and_no_agent_gains_3_percent(seed):
    recruitment = draw_recruitment(RANGES, numpy_generator(seed, "market-learn", "game"))
    orders = upper_layer(recruitment, joint_equilibrium(recruitment).prices)
    team = new_mappo(SlotGame(recruitment=recruitment, price_max=price_range(recruitment)), ppo=PPO(), seed=seed)
    team.train(orders, Schedule(episodes=EPISODES), stage="all")
    errors = errors_of(team, orders)
    assert errors.effort < 0.05
    assert errors.price < 0.05
    assert search_owner_gains(team, orders).relative < 0.03
    assert search_worker_gains(team, orders).relative < 0.03
    assert retrain_owner(team, orders, int(np.argmax(orders.targets)), schedule=Schedule(episodes=640), seed=seed).relative < 0.03
