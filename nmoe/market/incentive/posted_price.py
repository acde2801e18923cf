"""Posted price: the publisher pays a fixed price per effective sample instead of sharing out a reward.

Source: this project's derivation of a variant (section 3.3 of its notes on J. Cao, Y. Gao, J. Huang, arXiv 2509.10512); since owners do not
meet in it, the abstract's Nash equilibrium points to the shared reward.

| symbol | here | unit |
|---|---|---|
| w | price | money/effective sample |
| c_n, q_n, x_n | Owners.unit_cost, quality; samples | money/sample, 1, sample |
| e_n | growth | money/sample^2 |

    U_n = w q_n x_n - c_n x_n - e_n x_n^2    =>    x_n = max(0, (w q_n - c_n)/(2 e_n));    the publisher maximises lambda g(T(w)) - w T(w)

Departures: the search over w is a grid, refined (``nmoe.market.incentive.stackelberg``). Stocks and workers have no part in it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import minimize_scalar

from nmoe.market.incentive.base import Owners, Publisher

GRID = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PostedPrice:
    """What comes of a price.

    Attributes:
        price: w; 0 where none is worth posting.
        samples: x_n.
        publisher_utility: U_TP.
        owner_utilities: U_n.
    """

    price: float
    samples: Float[ndarray, " owner"]
    publisher_utility: float
    owner_utilities: Float[ndarray, " owner"]


def answers_to_price(owners: Owners, growth: Float[ndarray, " owner"], price: Float[ndarray, "..."]) -> Float[ndarray, "... owner"]:
    """Return what every owner trains for a price per effective sample."""
    return np.asarray(np.maximum(price[..., None] * owners.quality - owners.unit_cost, 0.0) / (2 * growth))


def best_posted_price(publisher: Publisher, owners: Owners, growth: Float[ndarray, " owner"]) -> PostedPrice:
    """Find the publisher's best price and what owners answer.

    Args:
        publisher: who posts it.
        owners: who train.
        growth: how fast each owner's cost grows, e_n, finite and above 0.

    Raises:
        ValueError: when the growth is out of range.
    """
    if growth.shape != (len(owners),) or not (np.isfinite(growth) & (growth > 0)).all():
        raise ValueError(f"the growth of cost must be one number per owner, {len(owners)}, finite and above 0")
    reserve = owners.unit_cost / owners.quality
    low, high = float(reserve.min()), max(publisher.factor, float(reserve.min()))  # g' is at most 1: no sample is worth more than lambda

    def utility(prices: ndarray) -> ndarray:
        total = (owners.quality * answers_to_price(owners, growth, prices)).sum(axis=-1)
        return publisher.utility(total, prices * total)

    grid = np.unique(np.concatenate([np.linspace(low, high, GRID), reserve[(reserve >= low) & (reserve <= high)]]))
    at = int(np.argmax(utility(grid)))
    between = (float(grid[max(at - 1, 0)]), float(grid[min(at + 1, len(grid) - 1)]))
    price = float(grid[at])
    if between[1] > between[0]:
        found = minimize_scalar(lambda one: -float(utility(np.asarray(one))), bounds=between, method="bounded", options={"xatol": 1e-12})
        price = float(found.x) if -found.fun > float(utility(np.asarray(price))) else price
    value = float(utility(np.asarray(price)))
    price = price if value > 0 else 0.0
    samples = answers_to_price(owners, growth, np.asarray(price))
    return PostedPrice(
        price=price,
        samples=samples,
        publisher_utility=max(value, 0.0),
        owner_utilities=(price * owners.quality - owners.unit_cost) * samples - growth * samples**2,
    )
