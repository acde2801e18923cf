"""``nmoe reproduce learned-workers``: owners' prices and workers' efforts by MAPPO, held against the closed form, as a run folder.

The games are drawn as the specification of this project says (section 3.7); no number of the paper (arXiv 2509.10512) is known.
"""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nmoe.core.seeds import numpy_generator
from nmoe.market.incentive.asosa import upper_layer
from nmoe.market.incentive.base import Orders
from nmoe.market.incentive.draws import GameRanges, draw_recruitment
from nmoe.market.incentive.joint import joint_equilibrium
from nmoe.market.incentive.learners.accuracy import errors_of
from nmoe.market.incentive.learners.exploitability import retrain_owner, retrain_worker, search_owner_gains, search_worker_gains
from nmoe.market.incentive.learners.mappo import new_mappo
from nmoe.market.incentive.learners.policies import write_policies
from nmoe.market.incentive.learners.ppo import PPO
from nmoe.market.incentive.learners.single_agent import new_planner
from nmoe.market.incentive.learners.slots import SlotGame
from nmoe.market.incentive.learners.team import Team
from nmoe.market.incentive.learners.training import Schedule
from nmoe.market.incentive.learners.workers import EPISODES, price_range
from nmoe.recipes.channel_curves import mean_and_std
from nmoe.recipes.reproduction import hardware, write_reproduction
from nmoe.recipes.run_folder import claim
from nmoe.recipes.watch import Progress
from nmoe.report.figures import png_bytes
from nmoe.report.figures.learned_workers import training_figure
from nmoe.report.learned_workers import learned_workers_table

NAME = "learned-workers"
QUICK_EPISODES = 64
RANGES = GameRanges(owners=3, workers_per_owner=8, factor=60.0)
Numbers = dict[tuple[str, str], float]  # by method and metric
Curve = dict[str, Any]  # seed, method, and mean reward of every batch by learner


def learn_market(
    *,
    ranges: GameRanges,
    seeds: int,
    episodes: int | None,
    retrained: int | None,
    brief: bool,
    ppo: PPO,
    out: Path,
    force: bool,
    command: str,
    progress: Progress,
) -> dict[str, Any]:
    """Train MAPPO and the single planner on drawn games, and write a run folder; policies are under ``checkpoint``.

    Args:
        ranges: what games are drawn from.
        seeds: how many games, each with a training of its own, at least 1.
        episodes: of every training, at least 1; None for the specification's, or few where it is brief.
        retrained: episodes of every training of one agent against the others; None for half as many as ``episodes``.
        brief: end within a minute.
        ppo: hyperparameters.
        out: run folder.
        force: replace an earlier run in it.
        command: what the user typed.
        progress: told of every batch.

    Returns:
        What results.json holds.

    Raises:
        ValueError: when an argument is out of range, or the folder is not free.
        EngineError: when TorchRL is not installed.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    episodes = (QUICK_EPISODES if brief else EPISODES) if episodes is None else episodes
    again = Schedule(episodes=-(-episodes // 2) if retrained is None else retrained)
    claim(out, force=force, resumable=False)
    began_s = time.perf_counter()
    found: list[Numbers] = []
    curves: list[Curve] = []
    for seed in range(seeds):
        numbers, of_seed = learn_game(ranges, episodes, again, seed=seed, ppo=ppo, out=out, progress=progress)
        found.append(numbers)
        curves.extend(of_seed)
    results: dict[str, Any] = {"name": NAME, "scale": "cpu", "quick": brief, "seeds": seeds, "command": command}
    results |= {"hardware": hardware(torch.device("cpu")), "episodes": episodes, "retrained": again.episodes}
    results |= {"rows": rows_of(found, f"{ranges.owners} owners of {ranges.workers_per_owner} workers"), "curves": curves}
    results["seconds"] = time.perf_counter() - began_s
    write_reproduction(
        results, out, table=learned_workers_table(results), figures={f"{NAME}-training": png_bytes(training_figure(results))}
    )
    return results


def learn_game(
    ranges: GameRanges, episodes: int, again: Schedule, *, seed: int, ppo: PPO, out: Path, progress: Progress
) -> tuple[Numbers, list[Curve]]:
    """Train both learners on one drawn game; write their policies.

    Args:
        ranges: what the game is drawn from.
        episodes: of both trainings, at least 1.
        again: of one agent against the others.
        seed: of the game and of all training.
        ppo: hyperparameters.
        out: run folder.
        progress: told of every batch.

    Returns:
        Numbers by method and metric, and the mean rewards of every batch.
    """
    recruitment = draw_recruitment(ranges, numpy_generator(seed, NAME, "game"))
    orders = upper_layer(recruitment, joint_equilibrium(recruitment).prices)
    game = SlotGame(recruitment=recruitment, price_max=price_range(recruitment))
    numbers: Numbers = {}
    curves: list[Curve] = []
    teams = [new_mappo(game, ppo=ppo, seed=seed), new_planner(game, ppo=ppo, seed=seed)]
    for team in teams:
        numbers |= accuracy_of(team, orders, named=f"{team.method} untrained")
        curves.append({"seed": seed, "method": team.method, "rewards": _train(team, orders, episodes, seed, numbers, progress)})
        numbers |= accuracy_of(team, orders, named=team.method)
        write_policies(out / "checkpoint" / f"{team.method}-{seed}", team, episodes=episodes)
    return numbers | gains_of(teams[0], orders, again, seed=seed), curves


def accuracy_of(team: Team, orders: Orders, *, named: str) -> Numbers:
    """Return the errors of a team against the closed form, by method and metric."""
    return {(named, f"{name}_error"): value for name, value in errors_of(team, orders)._asdict().items()}


def gains_of(team: Team, orders: Orders, again: Schedule, *, seed: int) -> Numbers:
    """Return what agents could gain alone: searched for all, and trained anew for the owner who orders most and for its busiest worker."""
    owner = int(np.argmax(orders.targets))
    best = np.where(team.game.recruitment.workers.owner == owner, team.play(orders).best[0], -1.0)
    gains = {
        "owner_gain_searched": search_owner_gains(team, orders),
        "worker_gain_searched": search_worker_gains(team, orders),
        "owner_gain_retrained": retrain_owner(team, orders, owner, schedule=again, seed=seed),
        "worker_gain_retrained": retrain_worker(team, orders, int(np.argmax(best)), schedule=again, seed=seed),
    }
    return {(team.method, name): gain.relative for name, gain in gains.items()}


def rows_of(found: Iterable[Numbers], setting: str) -> list[dict[str, Any]]:
    """Return rows (method, setting, metric, mean, std, n) of the numbers of all seeds."""
    numbers: dict[tuple[str, str], list[float]] = {}
    for one in found:
        for key, value in one.items():
            numbers.setdefault(key, []).append(value)
    rows = []
    for (method, metric), values in numbers.items():
        mean, std = mean_and_std(values)
        rows.append({"method": method, "setting": setting, "metric": metric, "mean": mean, "std": std, "n": len(values), "values": values})
    return rows


def _train(team: Team, orders: Orders, episodes: int, seed: int, numbers: Numbers, progress: Progress) -> dict[str, list[float]]:
    """Train a team, note how long it took, and return the mean reward of every batch by learner."""

    def report(done: int, total: int, _: Mapping[str, float]) -> None:
        progress.stage(f"{team.method}, game {seed + 1}", done, total)

    began_s = time.perf_counter()
    curve = team.train(orders, Schedule(episodes=episodes), stage="all", report=report)
    numbers[team.method, "seconds"] = time.perf_counter() - began_s
    return {learner.name: [rewards[learner.name] for rewards in curve] for learner in team.learners}
