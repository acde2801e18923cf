"""ASOSA: the loop meets the joint equilibrium in 200 games of 200; without its damping it does not settle; falling back is said."""

import numpy as np
import pytest

from nmoe.market.incentive import Asosa, Damping, Orders, WorkerLayer, WorkerResponse, deviation_gains, exact_workers, joint_equilibrium
from nmoe.market.incentive.strategies import undamped


def distance(found, wanted):
    """Return the largest relative difference of reward and samples, and of prices where any are bought."""
    scale = wanted.samples.max()
    return max(
        abs(found.reward / wanted.reward - 1),
        np.abs(found.samples - wanted.samples).max() / scale,
        np.abs(found.prices / wanted.prices - 1)[wanted.bought > 1e-6 * scale].max(initial=0.0),
    )


def test_the_loop_reaches_the_oracle_in_200_games(draw_game):
    turns, distances = [], []
    for seed in range(200):
        game = draw_game(seed)
        loop = Asosa(tolerance=1e-10).run(game, exact_workers(game))
        assert loop.converged
        assert not loop.fell_back
        turns.append(len(loop.steps))
        distances.append(distance(loop.settlement, joint_equilibrium(game)))
    assert max(distances) < 1e-8
    assert np.median(turns) < 60


def test_without_damping_many_games_do_not_settle(draw_game):
    settled = 0
    for seed in range(60):
        game = draw_game(seed)
        settled += undamped(game, exact_workers(game), max_steps=200).converged
    assert 5 < settled < 30  # the specification says 55 of 200


@pytest.mark.parametrize("pooled", [False, True])
def test_the_loop_reaches_the_oracle_where_workers_are_exhausted(draw_game, pooled):
    settled = 0
    for seed in range(15):
        game = draw_game(seed, cap=0.3, pooled=pooled)
        loop = Asosa(tolerance=1e-10).run(game, exact_workers(game))
        settled += loop.converged
        assert distance(loop.settlement, joint_equilibrium(game)) < 1e-7
    assert settled >= 14  # one supply curve has its gap where the price would be


def test_owners_with_stocks_settle_where_nobody_gains(draw_game):
    for seed in range(3):
        game = draw_game(seed, stock=(0.0, 5.0))
        loop = Asosa(max_steps=150).run(game, exact_workers(game))
        assert loop.converged or loop.fell_back
        assert deviation_gains(loop.settlement).max() <= 1e-4 * loop.settlement.reward


def test_falling_back_is_said(draw_game):
    game = draw_game(0)
    loop = Asosa(max_steps=2).run(game, exact_workers(game))
    assert loop.fell_back
    assert not loop.converged
    assert "fallen back" in loop.settlement.method
    assert loop.settlement.reward == joint_equilibrium(game).reward
    stubborn = Asosa(max_steps=2, fall_back=False).run(game, exact_workers(game))
    assert not stubborn.fell_back
    assert not stubborn.converged


def test_damping_follows_its_rule(draw_game):
    game = draw_game(1)
    steps = Asosa().run(game, exact_workers(game)).steps
    kappa, good, last = 0.5, 0, np.inf
    for step in steps:
        if step.residual > 0.999 * last:
            kappa, good = max(kappa / 2, 1e-3), 0
        else:
            good += 1
            if good == 10:
                kappa, good = min(0.5, 1.2 * kappa), 0
        assert step.damping == kappa
        last = step.residual
    with pytest.raises(ValueError, match="damping must be above 0 and at most 1, got 0"):
        Damping(first=0)
    with pytest.raises(ValueError, match="at least 1 step wanted, got 0"):
        Asosa(max_steps=0)


def test_a_game_that_is_not_worth_it_ends_at_once(write_game):
    game = write_game([1.0, 1.0], workers=([0.1, 0.1], [0.2, 0.2], [0, 1]), factor=2.0)
    loop = Asosa().run(game, exact_workers(game))
    assert loop.converged
    assert loop.settlement.total == 0
    assert "too low" in loop.settlement.why_empty


class Restless(WorkerLayer):
    """Exact workers who say for five turns that their policies still move."""

    def __init__(self, layer):
        self.layer, self.turns = layer, 0

    @property
    def tolerance(self):
        return 1e-2

    def opening_prices(self):
        return self.layer.opening_prices() * 3  # any guess works

    def respond(self, orders: Orders) -> WorkerResponse:
        self.turns += 1
        answer = self.layer.respond(orders)
        return WorkerResponse(
            prices=answer.prices, collected=answer.collected, efforts=answer.efforts, policy_change=1.0 if self.turns < 40 else 0.0
        )


def test_a_learned_layer_ends_when_its_policies_rest_as_well(draw_game):
    game = draw_game(2)
    layer = Restless(exact_workers(game))
    loop = Asosa().run(game, layer)
    assert loop.converged
    assert layer.turns >= 40
    assert distance(loop.settlement, joint_equilibrium(game)) < 0.05
