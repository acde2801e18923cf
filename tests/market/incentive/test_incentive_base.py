"""Records: what is refused, and in which words; what a settlement says of itself."""

from dataclasses import replace

import numpy as np
import pytest

from nmoe.market.incentive import BadRecruitment, LogValue, Publisher, joint_equilibrium


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("quality", 0.0, r"quality of owner 'node-1' \(row 2\) must be above 0 and at most 1, got 0.0"),
        ("quality", 1.5, "at most 1, got 1.5"),
        ("quality", np.nan, "got nan"),
        ("unit_cost", 0.0, r"unit cost of owner 'node-1' \(row 2\) must be finite and above 0, got 0.0"),
        ("unit_cost", np.inf, "got inf"),
        ("stock", -1.0, r"stock of owner 'node-1' \(row 2\) must be finite and at least 0, got -1.0"),
        ("stock", np.nan, "got nan"),
    ],
)
def test_owners_out_of_range_are_named(write_game, column, value, message):
    owners = write_game([1.0, 1.0]).owners
    with pytest.raises(BadRecruitment, match=message):
        replace(owners, **{column: np.array([0.5, value])})


def test_owners_are_at_least_two_and_different(write_game):
    owners = write_game([1.0, 1.0]).owners
    with pytest.raises(BadRecruitment, match=r"at least 2 owners wanted, .* got 1"):
        write_game([1.0])
    with pytest.raises(BadRecruitment, match="owner 'a' is there twice"):
        replace(owners, ids=("a", "a"))
    with pytest.raises(BadRecruitment, match="owner in row 2 has an empty id"):
        replace(owners, ids=("a", ""))
    with pytest.raises(BadRecruitment, match="stock must have one number per owner, 2, got shape"):
        replace(owners, stock=np.zeros(3))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("alpha", 0.0, r"alpha of worker 'worker-0' \(row 1\) must be finite and above 0"),
        ("beta", -0.1, "beta of worker 'worker-0' .* finite and at least 0, got -0.1"),
        ("cap", np.nan, "cap of worker 'worker-0' .* above 0, got nan"),
        ("owner", 7, "owner of worker 'worker-0' .* below 2, the number of owners, got 7"),
        ("owner", -2, "an owner's index or the pool, got -2"),
    ],
)
def test_workers_out_of_range_are_named(write_game, column, value, message):
    game = write_game([1.0, 1.0], workers=([0.1], [0.2], [0]))
    with pytest.raises(BadRecruitment, match=message):
        replace(game, workers=replace(game.workers, **{column: np.array([value])}))


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_publisher_out_of_range_is_refused(factor):
    with pytest.raises(BadRecruitment, match="lambda must be finite and above 0"):
        Publisher(factor=factor, data_value=LogValue())


def test_utilities_of_a_settlement_are_those_of_the_game(draw_game):
    settlement = joint_equilibrium(draw_game(3, stock=(0.0, 5.0)))
    owners, workers = settlement.recruitment.owners, settlement.recruitment.workers
    total = sum(owners.quality * settlement.samples)
    assert settlement.publisher_utility == pytest.approx(settlement.recruitment.publisher.factor * np.log(1 + total) - settlement.reward)
    for row in range(len(owners)):
        bought = max(0.0, settlement.samples[row] - owners.stock[row])
        income = settlement.reward * owners.quality[row] * settlement.samples[row] / total
        expected = income - owners.unit_cost[row] * settlement.samples[row] - settlement.prices[row] * bought
        assert settlement.owner_utilities[row] == pytest.approx(expected)
    for row in range(len(workers)):
        effort = settlement.efforts[row]
        expected = settlement.prices[workers.owner[row]] * effort - workers.alpha[row] * effort**2 - workers.beta[row] * effort
        assert settlement.worker_utilities[row] == pytest.approx(expected)
    assert settlement.wages.sum() == pytest.approx(settlement.spent.sum())
