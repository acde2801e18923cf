"""Recruitment as a PettingZoo parallel environment: owners post prices, workers choose what to gather. The one door to PettingZoo.

A view of one game of ``learners.slots``, which says what is observed, done and paid; observations and actions are in the units of the game.
All chance comes from the generator that ``reset`` seeds. Rewards of owners are divided by the reward R, as there.
"""

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from jaxtyping import Float
from numpy import ndarray
from pettingzoo import ParallelEnv

from nmoe.core.seeds import derive_seed
from nmoe.market.incentive.base import Orders
from nmoe.market.incentive.learners.slots import (
    STEEPEST,
    SlotActions,
    SlotGame,
    begin,
    draw,
    observe_owners,
    observe_workers,
    standing,
    step,
)

Observations = dict[str, ndarray]
Infos = dict[str, dict[str, Any]]


class RecruitmentEnv(ParallelEnv[str, ndarray, ndarray]):  # type: ignore[misc]  # PettingZoo publishes no types
    """Owners and workers in slots of time; every episode is cut off after the game's horizon.

    Agents are named ``owner:`` and ``worker:`` and their id. An owner's action is the price for the next slot; a worker's is what it
    gathers now and, where some workers are in the pool, its preference for each owner.

    Args:
        game: the rules.
        orders: what owners want; the reward must be above 0.
        penalty: mu_n, what owners lose per sample short of their target, at least 0.

    Raises:
        ValueError: when no reward is announced.
    """

    def __init__(self, game: SlotGame, orders: Orders, penalty: Float[ndarray, " owner"]) -> None:
        self.metadata = {"name": "recruitment_v0", "render_modes": []}
        self.render_mode = None
        self._game, self._orders = game, standing(orders, penalty, 1)
        self._owners = [f"owner:{one}" for one in game.recruitment.owners.ids]
        self._workers = [f"worker:{one}" for one in game.recruitment.workers.ids]
        self.possible_agents = self._owners + self._workers
        self.agents: list[str] = []
        num_owners = len(self._owners)
        state = begin(game, self._orders, np.zeros((1, num_owners)))
        owner_width, worker_width = observe_owners(state).shape[2], observe_workers(game, state).shape[2]
        self.observation_spaces = {name: Box(0.0, np.inf, (owner_width,), np.float32) for name in self._owners}
        self.observation_spaces |= {name: Box(0.0, np.inf, (worker_width,), np.float32) for name in self._workers}
        self.action_spaces = {name: Box(0.0, game.price_max, (1,), np.float32) for name in self._owners}
        steepest = np.full(num_owners if game.pooled else 0, STEEPEST)
        for name, most in zip(self._workers, game.most_effort, strict=True):
            low, high = np.concatenate([[0.0], -steepest]), np.concatenate([[most], steepest])
            self.action_spaces[name] = Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        self._generator = np.random.default_rng(0)
        self._state = state

    def observation_space(self, agent: str) -> Box:
        """Return the space of an agent's observations."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Box:
        """Return the space of an agent's actions."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observations, Infos]:
        """Begin an episode with drawn first prices.

        Args:
            seed: of all that follows; None to go on with the generator there is.
            options: none are known.

        Returns:
            Observations and empty infos by agent.
        """
        if seed is not None:
            self._generator = np.random.default_rng(derive_seed(seed, "recruitment"))
        self.agents = list(self.possible_agents)
        first = self._generator.uniform(0.0, self._game.price_max, (1, len(self._owners)))
        self._state = begin(self._game, self._orders, first)
        return self._observe(), {name: {} for name in self.agents}

    def step(self, actions: dict[str, ndarray]) -> tuple[Observations, dict[str, float], dict[str, bool], dict[str, bool], Infos]:
        """Play a slot.

        Args:
            actions: one per agent.

        Returns:
            By agent: observations, rewards, terminations (never), truncations (at the horizon), and infos with the amounts that an owner
            got or a worker did.

        Raises:
            ValueError: when an agent's action is missing.
        """
        missing = [name for name in self.agents if name not in actions]
        if missing:
            raise ValueError(f"an action for each of {len(self.agents)} agents wanted, none for {missing[0]}")
        played = step(self._game, self._state, self._read(actions), draw(self._game, 1, self._generator))
        self._state = played.state
        names, ended = list(self.agents), played.state.slot >= self._game.horizon
        rewards = np.concatenate([played.owner_rewards[0], played.worker_rewards[0]])
        amounts = np.concatenate([played.collected[0], played.efforts[0]])
        observations = self._observe()
        if ended:
            self.agents = []
        return (
            observations,
            {name: float(reward) for name, reward in zip(names, rewards, strict=True)},
            dict.fromkeys(names, False),
            dict.fromkeys(names, ended),
            {name: {"amount": float(amount)} for name, amount in zip(names, amounts, strict=True)},
        )

    def state(self) -> Float[ndarray, " feature"]:
        """Return what all agents observe, in one row: for critics that see everything."""
        return np.concatenate(list(self._observe().values()))

    def _observe(self) -> Observations:
        """Return every agent's observation."""
        rows = [*observe_owners(self._state)[0], *observe_workers(self._game, self._state)[0]]
        return {name: row.astype(np.float32) for name, row in zip(self.possible_agents, rows, strict=True)}

    def _read(self, actions: dict[str, ndarray]) -> SlotActions:
        """Return actions as arrays of one game."""
        of_workers = np.array([actions[name] for name in self._workers], dtype=float)
        preferences = of_workers[:, 1:] if self._game.pooled else np.zeros((len(self._workers), len(self._owners)))
        return SlotActions(
            prices=np.array([actions[name][0] for name in self._owners], dtype=float)[None],
            efforts=of_workers[None, :, 0],
            preferences=preferences[None],
        )
