"""The AERIA reproduction: what each way to sell edge inference earns, and whom it serves, over workloads, bids, sizes, costs and bases.

Source: S. Li, J. Hu, G. Min, H. Huang, J. Huang, arXiv 2503.04521. The paper's workloads, valuations, baselines and numbers are not known
to this project: everything here is its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from nmoe.core.seeds import numpy_generator
from nmoe.market.auction import FAMILIES, Bids, Mechanism, Omniscient, Outcome, Supply, mechanism_named, midpoints
from nmoe.market.auction.benchmarks import largest_share, single_price_value, two_winner_value
from nmoe.market.auction.floor import admit
from nmoe.market.auction.needs import edge_demand
from nmoe.market.auction.workloads import Workload
from nmoe.recipes.aeria_users import AFFINE, MEASURED, Population, Session, draw_session

NAME = "aeria"
UNIT = "unit"  # setting in which everybody wants one unit and nothing is scarce
SAME_PRICE = 1e-9  # of a price: what rounding makes of it
YESTERDAY = 10_000  # added to a seed: another market of the same kind
POINTS = 400  # midpoints of the draw
DRAWN = ("aeria-ic", "aeria-ef", "aeria-mixture", "rsop", "sampling-extraction")  # mechanisms whose outcome depends on the draw
WITH_BASE = ("aeria-ic", "aeria-ef")
FIXED = "fixed-price"
SETTINGS = {
    UNIT: "one unit each, no limit, no cost",
    "needs": "drawn needs",
    **MEASURED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketOperation:
    """A point of operation: what is varied one at a time.

    Attributes:
        users: who come, those included whose devices manage alone or whom nobody can serve.
        capacity_flops: of the edge; infinite for no limit.
        cost_share: what a unit costs, as a share of the median value of a unit.
        base: of the consensus estimate.
        family: of values: ``AFFINE`` or one of ``nmoe.market.auction.FAMILIES``.
        workload: that all users want; empty for any of the four.
    """

    users: int = 100
    capacity_flops: float = 5e12
    cost_share: float = 0.1
    base: float = 2.0
    family: str = AFFINE
    workload: str = ""


UNIT_OPERATION = MarketOperation(family="uniform", capacity_flops=math.inf, cost_share=0.0)

SCALES: Mapping[str, Mapping[str, Sequence[float]]] = {  # values of what is varied
    "cpu": {
        "users": (20, 50, 100, 200, 500),
        "capacity_tflops": (1, 2, 5, 10, 20),
        "cost_share": (0, 0.1, 0.2, 0.3),
        "base": (1.1, 1.2, 1.43, 2, math.e, 4, 10),
    },
    "paper": {
        "users": (20, 35, 50, 75, 100, 150, 200, 350, 500, 750, 1000),
        "capacity_tflops": (1, 1.5, 2, 3, 5, 7.5, 10, 15, 20),
        "cost_share": (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
        "base": (1.05, 1.1, 1.2, 1.3, 1.43, 1.7, 2, 2.3, math.e, 3.3, 4, 6, 10),
    },
}
QUICK: Mapping[str, Sequence[float]] = {"users": (20, 100), "capacity_tflops": (2, 20), "cost_share": (0, 0.3), "base": (1.43, 2, 4)}


class MarketCell(NamedTuple):
    """One number of a reproduction: whose, where, under which value of what, and which."""

    method: str
    setting: str
    sweep: str
    value: str
    metric: str


class Place(NamedTuple):
    """Where users come from.

    Attributes:
        setting: one of ``SETTINGS``.
        population: what they have; None where everybody wants one unit.
    """

    setting: str
    population: Population | None


def varied(sweep: str, value: float | str, base: MarketOperation) -> MarketOperation:
    """Return the point of operation at which one thing has another value."""
    match sweep:
        case "users":
            return replace(base, users=int(value))
        case "capacity_tflops":
            return replace(base, capacity_flops=1e12 * float(value))
        case "cost_share":
            return replace(base, cost_share=float(value))
        case "base":
            return replace(base, base=float(value))
        case "family":
            return replace(base, family=str(value))
        case _:
            assert sweep == "workload"
            return replace(base, workload="" if value == "mixed" else str(value))


def market_of(session: Session, at: MarketOperation) -> tuple[Bids, Supply]:
    """Return truthful bids and the supply; a unit's cost is a share of its median value."""
    demand = session.edge.demand
    entering = np.isfinite(demand) & (demand > 0)
    median = float(np.median(session.value[entering] / demand[entering])) if entering.any() else 0.0
    bids = Bids(ids=tuple(f"user {row + 1}" for row in range(len(demand))), amount=session.value, demand=demand)
    return bids, Supply(capacity=at.capacity_flops, unit_cost=at.cost_share * median)


def unit_market(at: MarketOperation, *, seed: int) -> tuple[Bids, Supply]:
    """Return a market in which everybody wants one unit and nothing is scarce or costs anything: what guarantees are proved for."""
    value = FAMILIES[at.family](at.users, numpy_generator(seed, NAME, UNIT, at.family))
    return Bids(ids=tuple(f"user {row + 1}" for row in range(at.users)), amount=value, demand=np.ones(at.users)), Supply()


def rule_of(name: str, at: MarketOperation, yesterday: tuple[Bids, Supply]) -> Mechanism:
    """Return a mechanism; the fixed price is the best single one of another market of the same kind."""
    if name == FIXED:
        return mechanism_named(name, price=best_price(*yesterday))
    return mechanism_named(name, base=at.base if name in WITH_BASE else None)


def best_price(bids: Bids, supply: Supply) -> float:
    """Return the price per unit that earns most of these bids; the cost where nobody pays it."""
    outcome = Omniscient().clear(bids, supply, draw=0.0)
    return float(outcome.unit_price[outcome.served].min(initial=np.inf)) if outcome.served.any() else supply.unit_cost


def benchmarks_of(bids: Bids, supply: Supply) -> dict[str, float]:
    """Return F and F2 among those who fit, and the largest share of a winner of F2."""
    admission = admit(bids, supply)
    value, demand = admission.value[admission.members], bids.demand[admission.members]
    total = demand.cumsum()
    share = largest_share(value, demand)
    return {"F": single_price_value(value, total), "F2": two_winner_value(value, total), "share": share}


def measure(rule: Mechanism, bids: Bids, supply: Supply, *, points: int = POINTS) -> dict[str, float]:
    """Clear a market for evenly spaced draws.

    Returns:
        By metric, in the mean over draws: ``over_f2`` and ``over_f`` (profit over the benchmark, absent where that is 0), ``served``,
        ``profit``, ``worth`` (of their sessions to those served), ``several``, the share of draws in which not all are asked one price, and
        ``sold``, the share of the capacity, absent where there is no limit.
    """
    draws = midpoints(points if rule.name in DRAWN else 1)
    outcomes = [rule.clear(bids, supply, draw=float(draw)) for draw in draws]
    profit = math.fsum(outcome.profit for outcome in outcomes) / len(outcomes)
    found = {"profit": profit, "served": float(np.mean([outcome.served.sum() for outcome in outcomes]))}
    found["worth"] = float(np.mean([bids.amount[outcome.served].sum() for outcome in outcomes]))
    found["several"] = float(np.mean([_several(outcome) for outcome in outcomes]))
    if 0 < supply.capacity < math.inf:
        found["sold"] = float(np.mean([bids.demand[outcome.served].sum() for outcome in outcomes])) / supply.capacity
    marks = benchmarks_of(bids, supply)
    return found | {f"over_{name.lower()}": profit / marks[name] for name in ("F", "F2") if marks[name] > 0}


def _several(outcome: Outcome) -> bool:
    """Say whether users who want units are asked different prices."""
    asked = outcome.unit_price[np.isfinite(outcome.unit_price) & (outcome.demand > 0)]
    return asked.size > 0 and float(np.ptp(asked)) > SAME_PRICE * float(asked.max())


def market_at(place: Place, workloads: Mapping[str, Workload], at: MarketOperation, *, seed: int) -> tuple[Bids, Supply]:
    """Return the market of a seed at a point of operation; one seed has the same users at every capacity, cost and base."""
    if place.population is None:
        return unit_market(at, seed=seed)
    session = draw_session(place.population, workloads, at.users, family=at.family, wanted=at.workload, seed=seed)
    return market_of(session, at)


def sweep_point(
    cells: dict[MarketCell, list[float]],
    place: Place,
    workloads: Mapping[str, Workload],
    sweep: str,
    value: float | str,
    *,
    seed: int,
    names: Sequence[str],
    points: int,
) -> None:
    """Measure some mechanisms at one value of what is varied, for one seed, and add the numbers to the cells."""
    at = varied(sweep, value, MarketOperation() if place.population else UNIT_OPERATION)
    market = market_at(place, workloads, at, seed=seed)
    yesterday = market_at(place, workloads, at, seed=seed + YESTERDAY)
    word = value if isinstance(value, str) else f"{value:.4g}"
    for metric, number in benchmarks_of(*market).items():
        cells.setdefault(MarketCell("market", place.setting, sweep, word, metric), []).append(number)
    for name in names:
        for metric, number in measure(rule_of(name, at, yesterday), *market, points=points).items():
            cells.setdefault(MarketCell(name, place.setting, sweep, word, metric), []).append(number)


def workloads_without(workloads: Mapping[str, Workload], *, early: bool) -> dict[str, Workload]:
    """Return the workloads, without their early exits unless ``early``."""
    return {name: one if early else replace(one, exits=one.exits[-1:]) for name, one in workloads.items()}


ABLATIONS: Mapping[str, Mapping[str, bool]] = {  # early exits, cuts between device and edge, devices that do it alone
    "full": {"early": True, "split": True, "alone": True},
    "no early exit": {"early": False, "split": True, "alone": True},
    "no partition": {"early": True, "split": False, "alone": True},
    "edge only": {"early": True, "split": False, "alone": False},
    "device only": {"early": True, "split": False, "alone": True},
}


def ablate(session: Session, workloads: Mapping[str, Workload], at: MarketOperation, *, points: int) -> list[tuple[str, dict[str, float]]]:
    """Serve the same users, whose values stay, with less freedom in the first stage, by AERIA-IC.

    Returns:
        By ablation and metric: ``served`` (by edge or alone), ``alone``, ``worth`` (of their sessions to both), ``profit``, and ``demand``,
        the median of those who enter.
    """
    _, supply = market_of(session, at)  # the cost of a unit is that of the full first stage
    found = []
    for name, kept in ABLATIONS.items():
        networks = workloads_without(workloads, early=kept["early"])
        edge = edge_demand(session.needs, networks, split=kept["split"], alone=kept["alone"])
        demand = np.where(edge.demand > 0, np.inf, 0.0) if name == "device only" else edge.demand
        bids, _ = market_of(session._replace(edge=edge._replace(demand=demand)), at)
        numbers = measure(mechanism_named("aeria-ic", base=at.base), bids, supply, points=points)
        alone, entering = float((demand == 0).sum()), np.isfinite(demand) & (demand > 0)
        worth = numbers["worth"] + float(session.value[demand == 0].sum())
        kind = {"served": numbers["served"] + alone, "alone": alone, "worth": worth, "profit": numbers["profit"]}
        if entering.any():
            kind["demand"] = float(np.median(demand[entering]))
        found.append((name, kind))
    return found


def stage_one(session: Session) -> list[dict[str, Any]]:
    """Return, by workload, how many users manage alone, cannot be served, or enter, and with which partitions and exits."""
    rows = []
    for name in dict.fromkeys(sorted(session.needs.workloads)):
        of_name = np.array(session.needs.workloads) == name
        demand, cut = session.edge.demand[of_name], session.edge.partition[of_name]
        entering = np.isfinite(demand) & (demand > 0)
        rows.append(
            {
                "workload": name,
                "users": int(of_name.sum()),
                "alone": int((demand == 0).sum()),
                "unservable": int(np.isinf(demand).sum()),
                "all_on_edge": int((entering & (cut == 0)).sum()),
                "split": int((entering & (cut > 0)).sum()),
                "median_gflops": float(np.median(demand[entering]) / 1e9) if entering.any() else None,
            }
        )
    return rows
