"""Games that tests draw and write down."""

import numpy as np
import pytest

from nmoe.market.incentive import GameRanges, LogValue, Owners, Publisher, Recruitment, Workers, draw_recruitment


def draw_game(seed, *, stock=(0.0, 0.0), cap=float("inf"), pooled=False, most_owners=11):
    """Draw one of the games that the derivation was verified on: 2 to 11 owners, lambda from 20 to 200."""
    generator = np.random.default_rng([seed, 2509])
    ranges = GameRanges(
        owners=int(generator.integers(2, most_owners + 1)),
        workers_per_owner=int(generator.integers(5, 21)),
        factor=float(generator.uniform(20, 200)),
        stock=stock,
        cap=cap,
        pooled=pooled,
    )
    return draw_recruitment(ranges, generator)


def write_game(unit_cost, *, quality=None, stock=None, factor=100.0, workers=((), (), ()), cap=None, data_value=None):
    """Write a game down; workers are three columns: alpha, beta, owner."""
    alpha, beta, owner = workers
    size = len(unit_cost)
    return Recruitment(
        publisher=Publisher(factor=factor, data_value=data_value or LogValue()),
        owners=Owners(
            ids=tuple(f"node-{number}" for number in range(size)),
            quality=np.ones(size) if quality is None else np.asarray(quality, float),
            unit_cost=np.asarray(unit_cost, float),
            stock=np.zeros(size) if stock is None else np.asarray(stock, float),
        ),
        workers=Workers(
            ids=tuple(f"worker-{number}" for number in range(len(alpha))),
            alpha=np.asarray(alpha, float),
            beta=np.asarray(beta, float),
            cap=np.full(len(alpha), np.inf) if cap is None else np.asarray(cap, float),
            owner=np.asarray(owner, int),
        ),
    )


@pytest.fixture(scope="session", name="draw_game")
def give_draw_game():
    return draw_game


@pytest.fixture(scope="session", name="write_game")
def give_write_game():
    return write_game
