"""Benchmark of the auctions: how long a market of a million bidders takes to clear, beside the naive way of taking each bidder's price.

One thread. Bids are Pareto: the market of one unit each, one of lognormal demands with a capacity for a half, and the library's own check
of the bids are timed; reading a file is not. The naive way computes F2 without one bidder after the other, O(n^2) in vectors of n, on a
smaller market whose prices the two must agree on.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from nmoe.core.seeds import numpy_generator
from nmoe.market.auction import AeriaEF, AeriaIC, Bids, CostShare, Mechanism, Supply, consensus_estimate, two_winner_value
from nmoe.market.auction.families import pareto
from nmoe.market.auction.floor import admit

DRAW = 0.37
BASE = 2.0

Row = dict[str, Any]


def bench_market(*, users: int, naive_users: int, turns: int, as_json: bool, say: Callable[[str], None]) -> None:
    """Measure, and print the table, or JSON with ``name, machine, rows``.

    Args:
        users: in the large market, at least 10.
        naive_users: in the market that is cleared the naive way, too, at least 10.
        turns: how often a market is cleared, at least 1; the median counts.
        as_json: JSON instead of a table.
        say: prints a line.

    Raises:
        ValueError: when a number is too small.
    """
    if users < 10 or naive_users < 10 or turns < 1:
        raise ValueError(f"users and naive users must be at least 10, turns at least 1, got {users}, {naive_users} and {turns}")
    rows = measure(users=users, naive_users=naive_users, turns=turns)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    if as_json:
        say(json.dumps({"name": "market", "machine": machine, "rows": rows}))
        return
    for row in rows:
        say(f"{row['system']:<24}{row['case']:<56}{row['metric']:<40}{row['value']:>12.4g} {row['unit']}")


def measure(*, users: int, naive_users: int, turns: int) -> list[Row]:
    """Return the benchmark's rows; see ``bench_market``."""
    generator = numpy_generator(0, "bench", "market")
    rows = []
    for kind, weighted in (("one unit each", False), ("lognormal demands, half the capacity", True)):
        bids, supply = draw_market(users, generator, weighted=weighted)
        case = f"{users:,} bidders, {kind}"
        rows += [
            _row(mechanism.name, case, "median time to clear", _median_s(mechanism, bids, supply, turns), "s") for mechanism in _both()
        ]
        few, few_supply = draw_market(naive_users, generator, weighted=weighted)
        rows += _beside_naive(few, few_supply, turns, f"{naive_users:,} bidders, {kind}")
    began_s = time.perf_counter()
    replace(bids)
    return [*rows, _row("nmoe", f"{users:,} bidders", "time to check the bids", time.perf_counter() - began_s, "s")]


def draw_market(users: int, generator: Generator, *, weighted: bool) -> tuple[Bids, Supply]:
    """Return a random market with a tail of large bids.

    Args:
        users: how many, at least 1.
        generator: of values and demands.
        weighted: lognormal demands, a capacity for half of them and a cost, instead of one unit each and no limit.
    """
    value = pareto(users, generator)
    demand = generator.lognormal(0, 1, users) if weighted else np.ones(users)
    bids = Bids(ids=tuple(map(str, range(users))), amount=value * demand, demand=demand)
    return bids, Supply(capacity=float(demand.sum()) / 2, unit_cost=0.5) if weighted else Supply()


def naive_prices(bids: Bids, supply: Supply) -> Float[ndarray, " user"]:
    """Return AERIA-IC's unit prices of the users who fit, one after the other; infinite for the others."""
    found = admit(bids, supply)
    value, demand = found.value[found.members], bids.demand[found.members]
    sharing = CostShare(value=value, total=demand.cumsum())
    price: Float[ndarray, " user"] = np.full(len(bids), np.inf)
    for place, user in enumerate(found.members):
        best = np.array([two_winner_value(np.delete(value, place), np.delete(demand, place).cumsum())])
        price[user] = max(sharing.price(float(consensus_estimate(best, base=BASE, draw=DRAW)[0])), found.floor) + supply.unit_cost
    return price


def _both() -> tuple[Mechanism, Mechanism]:
    return AeriaEF(base=BASE), AeriaIC(base=BASE)


def _beside_naive(bids: Bids, supply: Supply, turns: int, case: str) -> list[Row]:
    """Return the rows of one market that is cleared by the library and the naive way."""
    mechanism = AeriaIC(base=BASE)
    own_s = _median_s(mechanism, bids, supply, turns)
    began_s = time.perf_counter()
    wanted = naive_prices(bids, supply)
    naive_s = time.perf_counter() - began_s
    members = np.isfinite(wanted)
    got = mechanism.clear(bids, supply, draw=DRAW).unit_price
    difference = float(np.abs(got[members] / wanted[members] - 1).max(initial=0.0))
    return [
        _row(mechanism.name, case, "median time to clear", own_s, "s"),
        _row("naive, bidder by bidder", case, "time to price", naive_s, "s"),
        _row("naive, bidder by bidder", case, "time, over nmoe's", naive_s / own_s, "1"),
        _row("naive, bidder by bidder", case, "largest relative difference of a price", difference, "1"),
    ]


def _median_s(mechanism: Mechanism, bids: Bids, supply: Supply, turns: int) -> float:
    times = []
    for _ in range(turns + 1):  # the first one warms memory and code
        began_s = time.perf_counter()
        mechanism.clear(bids, supply, draw=DRAW)
        times.append(time.perf_counter() - began_s)
    return statistics.median(times[1:])


def _row(system: str, case: str, metric: str, value: float, unit: str) -> Row:
    return {"system": system, "case": case, "metric": metric, "value": value, "unit": unit}
