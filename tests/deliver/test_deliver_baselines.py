"""Baselines: who gets which model and who is admitted, by hand and against brute force."""

import itertools

import numpy as np
import pytest

from nmoe.deliver.baselines import AnyModel, AscendingNeed, BySize, EqualShares, Heaviest, LeastNeed, RandomOrder

INF = np.inf
NEEDS = np.array([[0.5, 0.2, 0.3], [2.0, 0.1, INF], [3.0, INF, 4.0]])
BYTES = np.array([[30.0, 10.0, 20.0], [30.0, 10.0, 0.0], [30.0, 10.0, 20.0]])
ONES = np.ones(5)
ADMISSIONS = [AscendingNeed(), RandomOrder(), EqualShares(), Heaviest()]
NEED = np.array([0.5, 0.1, INF, 0.3, 0.15])


@pytest.mark.parametrize(
    ("rule", "models"), [(LeastNeed(), [1, 1, 0]), (BySize(largest=True), [0, 1, 0]), (BySize(largest=False), [1, 1, 0])]
)
def test_models_by_hand(rule, models):
    assert rule.provide(NEEDS, BYTES, generator=None).tolist() == models


def test_any_model_is_drawn_from_the_users_list_alone():
    generator = np.random.default_rng(0)
    drawn = np.stack([AnyModel().provide(NEEDS, BYTES, generator=generator) for _ in range(100)])
    assert [set(column.tolist()) for column in drawn.T] == [{0, 1, 2}, {0, 1}, {0, 1, 2}]


def test_ascending_need_admits_the_longest_prefix():
    assert AscendingNeed().admit(NEED, ONES, generator=None).tolist() == [0, 0.1, 0, 0.3, 0.15]


def test_equal_shares_serve_those_for_whom_they_are_enough():
    assert EqualShares().admit(NEED, ONES, generator=None).tolist() == [0, 0.2, 0, 0, 0.2]


def test_random_order_admits_until_nothing_fits_and_draws_each_time():
    generator = np.random.default_rng(0)
    found = {tuple(RandomOrder().admit(NEED, ONES, generator=generator).tolist()) for _ in range(50)}
    assert len(found) > 1
    for shares in found:
        assert sum(shares) <= 1
        assert all(share or sum(shares) + need > 1 for share, need in zip(shares, NEED.tolist(), strict=True))


def test_heaviest_is_the_best_of_all_subsets():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        need, weight = rng.uniform(0.02, 0.6, 9), rng.uniform(0.1, 5, 9)
        if seed % 2:
            need = np.round(need, 1) + 0.1  # many ties, sums next to 1
        shares = Heaviest().admit(need, weight, generator=None)
        assert shares.sum() <= 1 + 1e-15
        subsets = itertools.product([0, 1], repeat=9)
        best = max(weight @ subset for subset in subsets if np.cumsum(need[np.flatnonzero(subset)])[-1:].sum() <= 1 + 1e-12)
        assert weight[shares > 0].sum() == pytest.approx(best)


def test_heaviest_takes_one_heavy_user_over_two_light_ones():
    need = np.array([0.9, 0.4, 0.4])
    assert Heaviest().admit(need, np.array([3.0, 1, 1]), generator=None).tolist() == [0.9, 0, 0]
    assert Heaviest().admit(need, np.array([1.5, 1, 1]), generator=None).tolist() == [0, 0.4, 0.4]
    assert Heaviest().admit(np.array([INF, 2.0]), np.array([1.0, 1]), generator=None).tolist() == [0, 0]


@pytest.mark.parametrize(
    "draw", [lambda: AnyModel().provide(NEEDS, BYTES, generator=None), lambda: RandomOrder().admit(NEED, ONES, generator=None)]
)
def test_rules_that_draw_want_a_generator(draw):
    with pytest.raises(ValueError, match="generator wanted"):
        draw()


@pytest.mark.parametrize("rule", ADMISSIONS)
@pytest.mark.parametrize("users", [1, 2, 3, 7, 10, 49, 100])
def test_needs_that_are_just_all_of_the_bandwidth_fit(rule, users):
    for factor, served in [(1.0, users), (1 + 1e-13, users), (1 - 1e-13, users)]:
        shares = rule.admit(np.full(users, factor / users), np.ones(users), generator=np.random.default_rng(0))
        assert (shares > 0).sum() == served
        assert shares.sum() == pytest.approx(1, abs=1e-11)
    assert (rule.admit(np.full(users, (1 + 1e-9) / users), np.ones(users), generator=np.random.default_rng(0)) > 0).sum() < users


@pytest.mark.parametrize("largest", [True, False])
def test_a_model_that_needs_just_all_of_the_bandwidth_can_be_had(largest):
    needs, sizes = np.array([[1 + 1e-13, 2.0, 0.9]]), np.array([[30.0 if largest else 1.0, 40.0, 20.0]])
    assert BySize(largest=largest).provide(needs, sizes, generator=None).tolist() == [0]


@pytest.mark.parametrize("weights", [[1e300, 1e-300, 1e-300], [1.0, 1e-12, 1e-11], [1.0, 1.0, 1.0]])
def test_heaviest_leaves_nobody_out_who_fits(weights):
    assert Heaviest().admit(np.array([0.5, 0.25, 0.25]), np.array(weights), generator=None).tolist() == [0.5, 0.25, 0.25]
    light = Heaviest().admit(np.array([0.5, 0.4, 0.3]), np.array(weights), generator=None) > 0
    assert light.sum() == 2
