"""Strategies: every one of them settles every game; menus of contracts keep their promises; plans are files."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe.core.errors import BadFile
from nmoe.core.files import read_json, write_json
from nmoe.market.incentive import STRATEGIES, joint_equilibrium, plan_json, read_plan
from nmoe.market.incentive.contract import best_menu, virtual_types
from nmoe.market.incentive.strategies import UndampedStrategy

GAMES = {
    "plain": {},
    "stock": {"stock": (0.0, 5.0)},
    "pool": {"pooled": True},
    "caps": {"cap": 0.3},
    "pooled caps": {"cap": 0.3, "pooled": True},
}


SHORT = [UndampedStrategy(max_steps=10) if strategy.name == "undamped" else strategy for strategy in STRATEGIES]


@pytest.mark.parametrize("kind", GAMES)
@pytest.mark.parametrize("strategy", SHORT, ids=lambda strategy: strategy.name)
def test_every_strategy_settles_every_game(draw_game, strategy, kind):
    for seed in range(1 if kind == "stock" else 2):
        game = draw_game(seed, most_owners=5, **GAMES[kind])
        found = strategy.settle(game, np.random.default_rng(seed))
        again = strategy.settle(game, np.random.default_rng(seed))
        assert (found.samples == again.samples).all()
        for column in (found.samples, found.efforts, found.wages, found.spent, found.shares):
            assert np.isfinite(column).all()
            assert (column >= 0).all()
        assert found.shares.sum() == pytest.approx(1 if found.total > 0 else 0)
        assert (found.efforts <= game.workers.cap * (1 + 1e-9)).all()
        assert found.efforts.sum() >= found.bought.sum() - 1e-6 * max(1, found.bought.sum())  # nothing is trained on that nobody gathered
        assert found.wages.sum() == pytest.approx(found.spent.sum(), abs=1e-6)
        assert found.method
        assert (found.total > 0) == (found.why_empty == "")
        plan_json(found)


def test_nobody_does_better_for_the_publisher_than_one_who_foresees_all(draw_game):
    """Of the contests that settle; a publisher may gain from owners who err (greedy) or who are left nothing (equal split, contract)."""
    for seed in range(5):
        game = draw_game(seed)
        found = {strategy.name: strategy.settle(game, np.random.default_rng(seed)).publisher_utility for strategy in STRATEGIES}
        assert found["anticipating"] >= max(found["asosa"], found["oracle"]) - 1e-9
        assert found["asosa"] == pytest.approx(found["oracle"], rel=1e-6)
        assert found["no-worker"] == 0


@given(alpha=st.lists(st.floats(0.02, 0.2), min_size=1, max_size=12), target=st.floats(0, 30), beta=st.floats(0.1, 0.6))
def test_a_menu_makes_every_type_take_its_own_item(alpha, target, beta):
    menu = best_menu(np.array(alpha), np.full(len(alpha), beta), target)
    assert menu.amounts.sum() == pytest.approx(target)
    assert (np.diff(menu.amounts) <= 1e-9).all()
    types = np.sort(alpha)
    for place, one in enumerate(types):
        utility = menu.wages - one * menu.amounts**2 - beta * menu.amounts
        assert utility[place] >= utility.max() - 1e-8
        assert utility[place] >= -1e-8
    costs = types * menu.amounts**2 + beta * menu.amounts
    assert menu.wages[-1] == pytest.approx(costs[-1])  # the dearest is left nothing


def test_virtual_types_rise_and_are_pooled_where_they_would_not():
    assert virtual_types(np.array([1.0, 2.0, 3.0])) == pytest.approx([1, 3, 5])
    pooled = virtual_types(np.array([1.0, 2.0, 2.1]))  # 1, 3, 2.3
    assert pooled[1] == pooled[2] == pytest.approx(2 / (1 / 3 + 1 / 2.3))


def test_a_plan_survives_its_file(tmp_path, draw_game):
    found = joint_equilibrium(draw_game(4))
    path = tmp_path / "plan.json"
    write_json(path, plan_json(found))
    plan = read_plan(path)
    assert plan.nodes == found.recruitment.owners.ids
    assert plan.samples == tuple(int(count) for count in np.floor(found.samples))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "other"}, "is not a plan of nmoe market recruit"),
        ({"version": 2}, "version 2, wanted 1"),
        ({"nodes": []}, "no list of nodes"),
        ({"nodes": [{"samples": 1}]}, "node 1 has no id"),
        ({"nodes": [{"id": "node-0", "samples": -1}]}, "samples of node-0 must be a whole number of at least 0, got -1"),
        ({"nodes": [{"id": "node-0", "samples": 1}] * 2}, "has a node twice"),
    ],
)
def test_a_plan_that_is_none_is_refused(tmp_path, draw_game, change, message):
    path = tmp_path / "plan.json"
    write_json(path, plan_json(joint_equilibrium(draw_game(4))) | change)
    with pytest.raises(BadFile, match=message):
        read_plan(path)
    assert read_json(path)
