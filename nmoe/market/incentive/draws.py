"""Draws: random games, for reproductions and tests.

Source: the ranges are this project's (section 3.7 of its notes on J. Cao, Y. Gao, J. Huang, arXiv 2509.10512, whose settings are not
known).
"""

from dataclasses import dataclass

import numpy as np

from nmoe.market.incentive.base import POOL, Owners, Publisher, Recruitment, Workers
from nmoe.market.incentive.data_value import LogValue

Range = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class GameRanges:
    """What a random game is drawn from, uniformly.

    Attributes:
        owners: their number, at least 2.
        workers_per_owner: their number.
        factor: lambda.
        unit_cost: c^0, money per sample.
        quality: q.
        stock: x^0, samples.
        alpha: money per sample squared.
        beta: money per sample.
        cap: samples that a worker can gather.
        pooled: all workers sell to all owners.
    """

    owners: int = 8
    workers_per_owner: int = 10
    factor: float = 100.0
    unit_cost: Range = (0.5, 1.5)
    quality: Range = (0.6, 1.0)
    stock: Range = (0.0, 0.0)
    alpha: Range = (0.02, 0.2)
    beta: Range = (0.1, 0.6)
    cap: float = float("inf")
    pooled: bool = False


def draw_recruitment(ranges: GameRanges, generator: np.random.Generator) -> Recruitment:
    """Draw a game; owners are called ``node-0`` and on, workers ``worker-0`` and on, dealt to owners in order."""
    num_workers = ranges.owners * ranges.workers_per_owner
    owners = Owners(
        ids=tuple(f"node-{number}" for number in range(ranges.owners)),
        quality=generator.uniform(*ranges.quality, ranges.owners),
        unit_cost=generator.uniform(*ranges.unit_cost, ranges.owners),
        stock=generator.uniform(*ranges.stock, ranges.owners),
    )
    workers = Workers(
        ids=tuple(f"worker-{number}" for number in range(num_workers)),
        alpha=generator.uniform(*ranges.alpha, num_workers),
        beta=generator.uniform(*ranges.beta, num_workers),
        cap=np.full(num_workers, ranges.cap),
        owner=np.full(num_workers, POOL) if ranges.pooled else np.arange(num_workers) // max(ranges.workers_per_owner, 1),
    )
    return Recruitment(publisher=Publisher(factor=ranges.factor, data_value=LogValue()), owners=owners, workers=workers)
