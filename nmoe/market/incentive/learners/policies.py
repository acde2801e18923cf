"""Policies in a folder: ``card.json`` and ``policies.safetensors``, checked by size and hash before use; nothing is unpickled.

The card says which game they were trained for, and how. Critics are kept with the policies, so that training can go on.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from nmoe import __version__
from nmoe.core.errors import BadFile
from nmoe.core.files import write_bytes
from nmoe.market.incentive.learners.mappo import METHOD, new_mappo
from nmoe.market.incentive.learners.ppo import PPO
from nmoe.market.incentive.learners.single_agent import METHOD as PLANNER
from nmoe.market.incentive.learners.single_agent import new_planner
from nmoe.market.incentive.learners.slots import SlotGame
from nmoe.market.incentive.learners.team import Team

FORMAT = 1
CARD, TENSORS = "card.json", "policies.safetensors"
TEAMS: Mapping[str, Callable[..., Team]] = {METHOD: new_mappo, PLANNER: new_planner}


class PolicyCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a folder of policies says of itself.

    Attributes:
        format: version of the folder's format.
        kind: what it is.
        method: how the policies were trained.
        game: fingerprint of the game.
        price_max: of the game; money per sample.
        horizon: of the game; slots.
        shapes: of every tensor, by its name.
        ppo: hyperparameters.
        seed: of the training.
        episodes: trained for in all.
        nmoe: version that wrote it.
        bytes, sha256: of the file of tensors.
    """

    format: int
    kind: Literal["recruitment policies"] = "recruitment policies"
    method: str
    game: str
    price_max: float
    horizon: int
    shapes: dict[str, tuple[int, ...]]
    ppo: dict[str, float]
    seed: int
    episodes: int
    nmoe: str
    bytes: int
    sha256: str


def game_fingerprint(game: SlotGame) -> str:
    """Return a SHA-256 over everything that makes a game what it is but names."""
    owners, workers = game.recruitment.owners, game.recruitment.workers
    digest = hashlib.sha256()
    for column in (owners.quality, owners.unit_cost, owners.stock, workers.alpha, workers.beta, workers.cap, workers.owner):
        digest.update(str(column.shape).encode() + np.ascontiguousarray(column, dtype="<f8").tobytes())
    digest.update(json.dumps([game.price_max, game.horizon, astuple(game.drift)]).encode())
    return digest.hexdigest()


def write_policies(folder: Path, team: Team, *, episodes: int) -> PolicyCard:
    """Write a team's policies; the card goes last, so a folder with a card is whole.

    Args:
        folder: where to; made if absent.
        team: whose.
        episodes: that it was trained for in all.

    Returns:
        The card as written.
    """
    tensors = _tensors(team)
    data = save_tensors(tensors)
    card = PolicyCard(
        format=FORMAT,
        method=team.method,
        game=game_fingerprint(team.game),
        price_max=team.game.price_max,
        horizon=team.game.horizon,
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        ppo=asdict(team.ppo),
        seed=team.seed,
        episodes=episodes,
        nmoe=__version__,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    write_bytes(folder / TENSORS, data)
    write_bytes(folder / CARD, (json.dumps(msgspec.to_builtins(card), indent=2) + "\n").encode())
    return card


def read_policy_card(folder: Path) -> PolicyCard:
    """Read a card alone.

    Raises:
        BadFile: when there is none, or it is not one of this format.
    """
    path = folder / CARD
    if not path.is_file():
        raise BadFile(f"{folder} holds no policies: no {CARD} in it")
    try:
        card = msgspec.json.decode(path.read_bytes(), type=PolicyCard)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadFile(f"{path} is damaged or of another format: {error}") from error
    if card.format != FORMAT:
        raise BadFile(f"{path} has format {card.format}, this version reads {FORMAT}")
    if card.method not in TEAMS:
        raise BadFile(f"{path} has policies of {card.method!r}, wanted one of {', '.join(TEAMS)}")
    return card


def read_policies(folder: Path, game: SlotGame) -> tuple[Team, int]:
    """Read policies for a game that they were trained for.

    Args:
        folder: written by ``write_policies``.
        game: the same game.

    Returns:
        The team, which plays as it did when it was written, and the episodes that it was trained for. Training it further begins with
        optimisers that remember nothing.

    Raises:
        BadFile: when a file is missing or damaged, or the policies are of another game.
    """
    card = read_policy_card(folder)
    if card.game != game_fingerprint(game):
        raise BadFile(f"policies in {folder} are of another game: {card.game[:12]}, wanted {game_fingerprint(game)[:12]}")
    tensors = _read_tensors(folder / TENSORS, card)
    team = TEAMS[card.method](game, ppo=_ppo(folder, card), seed=card.seed)
    wanted = {name: tuple(tensor.shape) for name, tensor in _tensors(team).items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found or wanted != card.shapes:
        raise BadFile(f"policies in {folder} have other tensors than their game and width ask for")
    for learner in team.learners:
        for part, network in learner.networks.items():
            front = f"{learner.name}.{part}."
            network.load_state_dict({name.removeprefix(front): one for name, one in tensors.items() if name.startswith(front)})
    return team, card.episodes


def _tensors(team: Team) -> dict[str, Tensor]:
    """Return all tensors of a team by name."""
    networks = {f"{learner.name}.{part}.": network for learner in team.learners for part, network in learner.networks.items()}
    return {front + name: one.detach().contiguous() for front, network in networks.items() for name, one in network.state_dict().items()}


def _read_tensors(path: Path, card: PolicyCard) -> dict[str, Tensor]:
    """Return the tensors of a file that is as its card says.

    Raises:
        BadFile: when it is not.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror}") from error
    if len(data) != card.bytes or hashlib.sha256(data).hexdigest() != card.sha256:
        raise BadFile(f"{path} is damaged: it is not the file that its card names")
    try:
        tensors = load_tensors(data)
    except SafetensorError as error:
        raise BadFile(f"{path} is not a safetensors file: {error}") from error
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise BadFile(f"{path} holds numbers that are not finite")
    return tensors


def _ppo(folder: Path, card: PolicyCard) -> PPO:
    """Return a card's hyperparameters.

    Raises:
        BadFile: when they are none.
    """
    whole = {"width", "num_envs", "epochs", "minibatches", "largest_minibatch"}
    if set(card.ppo) != set(PPO.__dataclass_fields__):
        raise BadFile(f"card in {folder} has other hyperparameters than this version knows")
    try:
        return PPO(**{name: int(value) if name in whole else value for name, value in card.ppo.items()})  # type: ignore[arg-type]
    except (ValueError, OverflowError) as error:
        raise BadFile(f"card in {folder}: {error}") from error
