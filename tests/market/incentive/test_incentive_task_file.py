"""Task files: TOML and CSV read as the same game; every mistake is one line that names its place."""

import numpy as np
import pytest

from nmoe.core.errors import BadFile
from nmoe.market.incentive import POOL, BadRecruitment, PowerValue, SaturatingValue, joint_equilibrium
from nmoe.market.incentive.task_file import example_task, parse_value, read_recruitment

TASK = """
lambda = 50
[[owners]]
id = "node-0"
quality = 0.9
unit_cost = 1.0
stock = 4
[[owners]]
id = "node-1"
quality = 1
unit_cost = 0.8
[[workers]]
id = "worker-0"
alpha = 0.1
beta = 0.3
owner = "node-1"
[[workers]]
id = "worker-1"
alpha = 0.05
beta = 0.2
cap = 7.5
"""


def write(tmp_path, text):
    path = tmp_path / "task.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_tables_are_read(tmp_path):
    game = read_recruitment(write(tmp_path, TASK))
    assert game.publisher.factor == 50
    assert game.owners.ids == ("node-0", "node-1")
    assert game.owners.stock.tolist() == [4, 0]
    assert game.workers.owner.tolist() == [1, POOL]
    assert game.workers.cap.tolist() == [np.inf, 7.5]


def test_csv_files_are_the_same_game(tmp_path):
    (tmp_path / "owners.csv").write_text("id,quality,unit_cost,stock\nnode-0,0.9,1.0,4\nnode-1,1,0.8,\n")
    (tmp_path / "workers.csv").write_text("id,alpha,beta,cap,owner\nworker-0,0.1,0.3,,node-1\nworker-1,0.05,0.2,7.5,pool\n")
    one = read_recruitment(write(tmp_path, 'lambda = 50\nowners = "owners.csv"\nworkers = "workers.csv"\n'))
    other = read_recruitment(write(tmp_path, TASK))
    assert joint_equilibrium(one).samples.tolist() == joint_equilibrium(other).samples.tolist()


def test_an_example_reads_back(tmp_path, draw_game):
    game = draw_game(5, stock=(0.0, 5.0))
    again = read_recruitment(write(tmp_path, example_task(game)))
    assert again.owners.ids == game.owners.ids
    assert again.owners.quality == pytest.approx(game.owners.quality, abs=5e-4)
    assert again.workers.owner.tolist() == game.workers.owner.tolist()


def test_values_of_data_parse():
    assert parse_value("power:0.5") == PowerValue(exponent=0.5)
    assert parse_value("saturating:40") == SaturatingValue(limit=40)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lambda = 50", "", "the task has no lambda"),
        ("lambda = 50", "lambda = nan", "lambda must be finite and above 0, got nan"),
        ("lambda = 50", 'lambda = "much"', "task: lambda must be a number, got 'much'"),
        ("lambda = 50", "lambda = 50\nreward = 3", "a task has lambda, owners, value, workers, got 'reward'"),
        ("lambda = 50", 'lambda = 50\nvalue = "cubic"', "value must be log, power:A or saturating:B, got 'cubic'"),
        ("lambda = 50", 'lambda = 50\nvalue = "power:2"', "exponent must be above 0 and below 1, got 2"),
        ("quality = 0.9", "quality = 0", r"quality of owner 'node-0' \(row 1\) must be above 0 and at most 1, got 0"),
        ("quality = 0.9", "", "owner 'node-0' has no quality"),
        ("quality = 0.9", "quality = true", "owner 'node-0': quality must be a number, got True"),
        ("stock = 4", "stock = -4", r"stock of owner 'node-0' \(row 1\) must be finite and at least 0, got -4"),
        ("stock = 4", "colour = 4", "owner 'node-0': the fields are id, quality, unit_cost, stock, got 'colour'"),
        ('id = "node-0"', 'id = "node-1"', "owner 'node-1' is there twice"),
        ('id = "node-1"', 'id = "pool"', "an owner cannot be called pool"),
        ('id = "node-1"', "id = 1", "owner in row 2: id must be text, got 1"),
        ('id = "node-1"', "", "owner in row 2 has no id"),
        ('owner = "node-1"', 'owner = "node-7"', "worker 'worker-0': owner must be an owner's id or pool, got 'node-7'"),
        ('id = "worker-1"', 'id = "worker-0"', "worker 'worker-0' is there twice"),
        ("cap = 7.5", "cap = 0", r"cap of worker 'worker-1' \(row 2\) must be above 0, got 0"),
        ("lambda = 50", "lambda = 50\nworkers = 3", "Cannot|workers"),
    ],
)
def test_mistakes_are_named(tmp_path, old, new, message):
    assert old in TASK
    with pytest.raises((BadFile, ValueError), match=message) as caught:
        read_recruitment(write(tmp_path, TASK.replace(old, new, 1)))
    assert "\n" not in str(caught.value)


def test_fewer_than_two_owners_are_refused(tmp_path):
    with pytest.raises(BadRecruitment, match=r"at least 2 owners wanted, .* got 1"):
        read_recruitment(write(tmp_path, 'lambda = 50\n[[owners]]\nid = "a"\nquality = 1\nunit_cost = 1\n'))


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(BadFile, match="cannot read"):
        read_recruitment(tmp_path / "nowhere.toml")
    with pytest.raises(BadFile, match="is not valid TOML"):
        read_recruitment(write(tmp_path, "lambda ="))
    with pytest.raises(BadFile, match=r"cannot read .*owners\.csv"):
        read_recruitment(write(tmp_path, 'lambda = 50\nowners = "owners.csv"'))
    (tmp_path / "owners.csv").write_text("id,quality,unit_cost\nnode-0,0.9\n")
    with pytest.raises(BadFile, match="row 1 does not have one cell per column, 3"):
        read_recruitment(write(tmp_path, 'lambda = 50\nowners = "owners.csv"'))
