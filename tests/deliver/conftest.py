"""Random problems for the planner's tests: tight and slack ones, layers without bytes or work, static power, links of both kinds."""

from collections.abc import Callable

import numpy as np
import pytest

from nmoe.deliver.scenario import ModelProfile, Receiver, Scenario

FLOPS = 1e12  # of every device

DrawProblem = Callable[..., Scenario]


def draw_problem(rng: np.random.Generator, *, users: int = 4, models: int = 3, layers: int = 8, plain: bool = False) -> Scenario:
    """Return a scenario with up to so many users, models and layers; plain ones have nothing but the paper's terms."""
    profiles = {}
    for place in range(int(rng.integers(1, models + 1))):
        depth = int(rng.integers(1, layers + 1))
        sizes, work = (rng.exponential(1, depth) * (rng.random(depth) < (1 if plain else 0.85)) for _ in range(2))
        sizes[rng.integers(depth)] += 0.5
        work[rng.integers(depth)] += 0.5
        sizes, work = sizes / sizes.sum() * rng.uniform(0.2, 2) * 1e6, work / work.sum() * rng.uniform(0.1, 1) * FLOPS
        profiles[f"m{place}"] = ModelProfile(name=f"m{place}", layer_bytes=tuple(sizes.tolist()), layer_flops=tuple(work.tolist()))
    return Scenario(
        bandwidth_hz=8e6,
        models=profiles,
        users=tuple(draw_user(rng, f"u{place}", profiles, plain) for place in range(int(rng.integers(1, users + 1)))),
    )


def draw_user(rng: np.random.Generator, name: str, models: dict[str, ModelProfile], plain: bool) -> Receiver:
    """Return a user; about half of them are short of energy rather than of time, just above the least for one of the models."""
    power, deadline_s, batch = rng.uniform(5, 30), rng.uniform(0.5, 3), int(rng.integers(1, 3))
    work_s = batch * sum(rng.choice(list(models.values())).layer_flops) / FLOPS
    least_j = power * work_s**3 / deadline_s**2
    extra = (
        {}
        if plain
        else {
            "static_power_w": power * rng.choice([0, 0.1, 1.0]),
            "receive_power_w": power * rng.choice([0, 0.05]),
            "min_clock": float(rng.choice([0, 0.3, 0.9])),
            "fixed_power": bool(rng.random() < 0.3),
        }
    )
    return Receiver(
        id=name,
        spectral_efficiency=rng.uniform(0.5, 8),
        deadline_s=deadline_s,
        energy_j=least_j * rng.uniform(1.05, 2) if rng.random() < 0.5 else power * rng.uniform(0.05, 1.2),
        batch=batch,
        device_flops=FLOPS,
        power_w=power,
        layer_overhead_s=float(rng.choice([0, 0.01])),
        models=tuple(rng.permutation(list(models))[: rng.integers(1, len(models) + 1)].tolist()),
        weight=rng.uniform(0.5, 3),
        **extra,
    )


@pytest.fixture(scope="session", name="draw_problem")
def drawing() -> DrawProblem:
    """Give ``draw_problem`` to tests, which cannot import it."""
    return draw_problem
