"""Contract: workers who choose from a menu of (samples, wage), for owners who know the distribution of their costs but not whose is whose.

Source: the classical optimal menu under hidden information (L. Mussa and S. Rosen, "Monopoly and product quality", 1978), which is what
J. Huang, B. Ma, Y. Wu, Y. Chen, X. Shen, "A hierarchical incentive mechanism for federated learning", IEEE TMC 2024 (HUMA), has in this
game's lower layer by its abstract; their contract is not known to us.

| symbol | here | unit |
|---|---|---|
| theta_1 < ... < theta_J | types: the group's alphas, sorted, each with probability 1/J | money/sample^2 |
| theta'_j = theta_j + (j - 1)(theta_j - theta_{j-1}) | virtual | money/sample^2 |
| b | the group's mean beta | money/sample |
| mu | price: of the owner's marginal sample | money/sample |
| (s_j, w_j) | amounts, wages of a menu | sample, money |

    s_j = max(0, (mu - b)/(2 theta'_j));    w_J = cost_J(s_J),  w_j = w_{j+1} + cost_j(s_j) - cost_j(s_{j+1});    mu so that sum_j s_j = S

Where theta' does not rise neighbours are pooled to their mean. A worker takes the item that is best for it by its true costs, or none.

Departures: the whole is ours, and only like HUMA. One hidden number per worker: menus for two (alpha and beta) have no closed form, so
owners take every beta for the mean and a menu may bring more or less than was ordered. No worker takes an item beyond its cap.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from nmoe.market.incentive.base import Orders, Recruitment, WorkerLayer, WorkerResponse, Workers
from nmoe.market.incentive.exact_workers import TOLERANCE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Menu:
    """What a group of workers can choose from.

    Attributes:
        price: mu, of the owner's marginal sample.
        amounts: samples of every item, falling.
        wages: of every item.
    """

    price: float
    amounts: Float[ndarray, " item"]
    wages: Float[ndarray, " item"]


def virtual_types(types: Float[ndarray, " item"]) -> Float[ndarray, " item"]:
    """Return theta' of ascending types, pooled where it would fall."""
    steps = np.diff(types, prepend=types[:1])
    virtual = types + np.arange(len(types)) * steps
    blocks: list[list[float]] = []  # [mean of 1/theta', count]: amounts are proportional to 1/theta'
    for inverse in 1 / virtual:
        blocks.append([float(inverse), 1])
        while len(blocks) > 1 and blocks[-1][0] > blocks[-2][0]:
            mean, count = blocks.pop()
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * count) / (blocks[-1][1] + count), blocks[-1][1] + count]
    return np.repeat([1 / mean for mean, _ in blocks], [int(count) for _, count in blocks])


def best_menu(alpha: Float[ndarray, " worker"], beta: Float[ndarray, " worker"], target: float) -> Menu:
    """Return the cheapest menu that brings ``target`` samples from a group, at least 0, if all betas are their mean."""
    types, mean = np.sort(alpha), float(beta.mean())
    rate = 1 / (2 * virtual_types(types))
    price = mean + target / float(rate.sum())
    amounts = (price - mean) * rate
    costs = types * amounts**2 + mean * amounts
    below = np.append(amounts[1:], 0.0)
    rises = costs - (types * below**2 + mean * below)  # w_j - w_{j+1}
    return Menu(price=price, amounts=amounts, wages=np.cumsum(rises[::-1])[::-1])


def choose(menu: Menu, workers: Workers, group: Bool[ndarray, " worker"]) -> tuple[Float[ndarray, " worker"], Float[ndarray, " worker"]]:
    """Return the samples and wage that each worker of a group chooses, 0 and 0 for none; items beyond its cap are not for it."""
    amounts, wages = np.append(menu.amounts, 0.0), np.append(menu.wages, 0.0)
    alpha, beta, cap = (column[group][:, None] for column in (workers.alpha, workers.beta, workers.cap))
    utility = np.where(amounts <= cap, wages - alpha * amounts**2 - beta * amounts, -np.inf)
    chosen = np.argmax(np.round(utility, 12), axis=1)
    return amounts[chosen], wages[chosen]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ContractWorkers(WorkerLayer):
    """Workers who are offered menus.

    Attributes:
        recruitment: whose workers they are.
    """

    recruitment: Recruitment

    @property
    def tolerance(self) -> float:
        return TOLERANCE

    def opening_prices(self) -> Float[ndarray, " owner"]:
        nothing = np.zeros(len(self.recruitment.owners))
        return self.respond(Orders(targets=nothing, samples=nothing, reward=0.0, efficiency=0.0, costs=nothing)).prices

    def respond(self, orders: Orders) -> WorkerResponse:
        workers, sellers = self.recruitment.workers, self.recruitment.sellers()
        prices, collected = np.full(len(sellers), np.inf), np.zeros(len(sellers))
        efforts, wages = np.zeros(len(workers)), np.zeros(len(workers))
        for seller in np.unique(sellers):
            group, buyers = workers.owner == seller, sellers == seller
            if not group.any():
                continue
            ordered = float(orders.targets[buyers].sum())
            menu = best_menu(workers.alpha[group], workers.beta[group], ordered)
            efforts[group], wages[group] = choose(menu, workers, group)
            prices[buyers] = menu.price
            if ordered > 0:
                collected[buyers] = orders.targets[buyers] / ordered * efforts[group].sum()
        return WorkerResponse(prices=prices, collected=collected, efforts=efforts, wages=wages)
