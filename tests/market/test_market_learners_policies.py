"""Policies in a folder: what is read is what was written, and what is damaged or foreign is refused in one line."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import save_file

from nmoe import __version__
from nmoe.core.errors import BadFile
from nmoe.market.incentive.asosa import upper_layer
from nmoe.market.incentive.base import Orders
from nmoe.market.incentive.draws import GameRanges, draw_recruitment
from nmoe.market.incentive.learners.mappo import new_mappo
from nmoe.market.incentive.learners.policies import game_fingerprint, read_policies, read_policy_card, write_policies
from nmoe.market.incentive.learners.ppo import PPO
from nmoe.market.incentive.learners.single_agent import new_planner
from nmoe.market.incentive.learners.slots import Drift, SlotGame

SMALL = PPO(width=8, num_envs=2, epochs=1, minibatches=1, actor_rate=2e-4)


def a_game(seed=0):
    recruitment = draw_recruitment(GameRanges(owners=3, workers_per_owner=2, factor=60.0), np.random.default_rng(seed))
    return SlotGame(recruitment=recruitment, price_max=1.5, horizon=6)


def orders_of(game) -> Orders:
    return upper_layer(game.recruitment, np.full(3, 0.5))


@pytest.fixture
def written(tmp_path):
    team = new_mappo(a_game(), ppo=SMALL, seed=3)
    write_policies(tmp_path, team, episodes=7)
    return tmp_path, team


@pytest.mark.parametrize("build", [new_mappo, new_planner])
def test_what_is_read_plays_as_what_was_written(build, tmp_path):
    team = build(a_game(), ppo=SMALL, seed=3)
    card = write_policies(tmp_path, team, episodes=7)
    found, episodes = read_policies(tmp_path, a_game())
    orders = orders_of(team.game)
    assert episodes == 7
    assert found.ppo == SMALL
    assert found.method == team.method
    assert np.array_equal(found.play(orders).prices, team.play(orders).prices)
    assert np.array_equal(found.play(orders).efforts, team.play(orders).efforts)
    assert read_policy_card(tmp_path) == card
    assert (card.seed, card.nmoe, card.game) == (3, __version__, game_fingerprint(team.game))
    assert card.ppo["width"] == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.json", "policies.safetensors"]


def test_equal_policies_are_equal_files(written, tmp_path_factory):
    folder, team = written
    other = tmp_path_factory.mktemp("other")
    write_policies(other, team, episodes=7)
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == [path.read_bytes() for path in sorted(other.iterdir())]


def test_fingerprints_tell_games_apart_and_names_do_not_matter():
    game = a_game()
    owners = replace(game.recruitment.owners, ids=("p", "q", "r"))
    renamed = replace(game, recruitment=replace(game.recruitment, owners=owners))
    others = [a_game(1), replace(game, price_max=1.6), replace(game, horizon=7), replace(game, drift=Drift(availability=0.9))]
    assert game_fingerprint(renamed) == game_fingerprint(game)
    assert len({game_fingerprint(one) for one in (game, *others)}) == 5


def test_policies_of_another_game_are_refused(written):
    with pytest.raises(BadFile, match=r"are of another game: \w{12}, wanted \w{12}$"):
        read_policies(written[0], a_game(1))


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_changed_byte_is_found(written, place):
    path = written[0] / "policies.safetensors"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(BadFile, match=r"policies.safetensors is damaged: it is not the file that its card names$"):
        read_policies(written[0], a_game())


def test_half_a_file_and_none_are_found(written):
    path = written[0] / "policies.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadFile, match=r"is damaged"):
        read_policies(written[0], a_game())
    path.unlink()
    with pytest.raises(BadFile, match=r"cannot read .*policies.safetensors: No such file or directory$"):
        read_policies(written[0], a_game())


def change_card(folder, **fields):
    path = folder / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 9}, "has format 9, this version reads 1"),
        ({"kind": "bundle"}, "is damaged or of another format"),
        ({"method": "dqn"}, "has policies of 'dqn', wanted one of mappo, single-ppo"),
        ({"seed": "x"}, "is damaged or of another format"),
        ({"extra": 1}, "is damaged or of another format"),
        ({"method": "single-ppo"}, "have other tensors than their game and width ask for"),
        ({"ppo": {}}, "has other hyperparameters than this version knows"),
    ],
)
def test_cards_that_are_none_are_refused(written, fields, message):
    change_card(written[0], **fields)
    with pytest.raises(BadFile, match=message):
        read_policies(written[0], a_game())


def test_hyperparameters_out_of_range_are_refused(written):
    ppo = read_policy_card(written[0]).ppo
    change_card(written[0], ppo=ppo | {"clip": 3.0})
    with pytest.raises(BadFile, match=r"clip must be above 0 and below 1, got 3.0$"):
        read_policies(written[0], a_game())
    change_card(written[0], ppo=ppo | {"width": 16})
    with pytest.raises(BadFile, match=r"have other tensors than their game and width ask for$"):
        read_policies(written[0], a_game())


def test_an_empty_folder_and_a_card_that_is_not_json_are_refused(tmp_path, written):
    with pytest.raises(BadFile, match=r"holds no policies: no card.json in it$"):
        read_policies(tmp_path / "none", a_game())
    (written[0] / "card.json").write_bytes(b"\xff{")
    with pytest.raises(BadFile, match=r"card.json is damaged or of another format"):
        read_policies(written[0], a_game())


def test_weights_that_are_not_finite_are_refused(written):
    folder, team = written
    with_nan = {f"{learner.name}.policy.log_std": learner.policy.log_std.detach() * float("nan") for learner in team.learners}
    save_file(with_nan, folder / "policies.safetensors")
    data = (folder / "policies.safetensors").read_bytes()
    import hashlib

    change_card(folder, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(BadFile, match=r"holds numbers that are not finite$"):
        read_policies(folder, a_game())
