"""``nmoe market auction``: read bids, find what needs come to, clear one market, and say why each user is served or not."""

import csv
import io
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import RenderableType

from nmoe.core.errors import BadFile
from nmoe.core.files import write_bytes, write_json
from nmoe.core.table import Table, read_table
from nmoe.market.auction import Bids, Mechanism, Supply, mechanism_named
from nmoe.market.auction.base import BadBids
from nmoe.market.auction.needs import EdgeDemand, Needs, edge_demand
from nmoe.market.auction.workloads import Workload, builtin_workloads, read_workloads
from nmoe.report.market import market_record, market_tables

NEEDS = ("accuracy", "latency_s", "tasks", "device_flops", "uplink_bps")
SIMPLE = ("id", "bid", "demand")
FULL = ("id", "bid", "workload", *NEEDS)
DRAW_BITS = 53  # of a float


class Market(NamedTuple):
    """Bids as they were read.

    Attributes:
        bids: with the demands that were given, or that needs came to.
        needs: of the users; None where demands were given.
        edge: exits and partitions; None where demands were given.
        providers: names of the providers that the bids' numbers mean; empty where there is one.
    """

    bids: Bids
    needs: Needs | None
    edge: EdgeDemand | None
    providers: tuple[str, ...]


def market_auction(
    path: Path,
    *,
    mechanism: str,
    capacity: float,
    unit_cost: float,
    base: float | None,
    price: float | None,
    draw: float | None,
    workloads: Path | None,
    as_json: bool,
    out: Path | None,
    say: Callable[[str], None],
    show: Callable[[RenderableType], None],
) -> dict[str, Any]:
    """Clear one market.

    Args:
        path: table of bids, see ``read_market``.
        mechanism: one of ``nmoe.market.auction.MECHANISMS``.
        capacity: units for sale, at least 0; infinite for no limit.
        unit_cost: what a unit costs the provider, finite and at least 0.
        base: of the consensus estimate, above 1; None for the mechanism's own.
        price: per unit, of the mechanism that has a fixed one.
        draw: in [0, 1); None for one from the operating system.
        workloads: file of the user's own; None for the four built in.
        as_json: print the outcome as JSON instead of tables.
        out: folder for market.json, market.png and bids.csv; None for none.
        say: prints a line.
        show: prints a table.

    Returns:
        The outcome as JSON has it.

    Raises:
        BadFile: when a file cannot be read or is no such table.
        ValueError: when an argument, a bid or a need is not what is wanted.
        NoMarket: when the mechanism has no outcome for these bids.
    """
    supply = Supply(capacity=capacity, unit_cost=unit_cost)
    rule = mechanism_named(mechanism, base=base, price=price)
    if draw is not None and not 0 <= draw < 1:
        raise ValueError(f"draw must be in [0, 1), got {draw}")
    if out is not None:
        _check_folder(out)
    market = read_market(path, None if workloads is None else read_workloads(workloads))
    if not len(market.bids):
        raise BadBids(f"no bids: {path} has a header and no row below it")
    drawn = secrets.randbits(DRAW_BITS) / 2**DRAW_BITS if draw is None else draw
    outcome = rule.clear(market.bids, supply, draw=drawn)
    record = market_record(rule, market.bids, supply, outcome, edge=market.edge)
    if out is not None:
        write_market(record, market, out)
    if as_json:
        say(json.dumps(record, allow_nan=False))
        return record
    show(market_tables(record, about=_about(rule)))
    if out is not None:
        say(f"market.json, market.png and bids.csv in {out}")
    return record


def read_market(path: Path, workloads: dict[str, Workload] | None) -> Market:
    """Read a table of bids: of units (columns id, bid, demand) or of needs (``FULL``); a column provider may come with either.

    Args:
        path: a CSV file; other columns are ignored.
        workloads: that needs may name; None for the four built in.

    Returns:
        The market; without rows it is empty.

    Raises:
        BadFile: when the file cannot be read, lacks a column, holds a word where a number should be, or names a provider in some rows only.
        BadBids: when a number is not in its range, an id is there twice, or a workload is unknown.
    """
    table = read_table(path, empty=True)
    simple = "demand" in table.columns
    if not simple and "workload" not in table.columns:
        raise BadFile(f"{path} should have columns {', '.join(SIMPLE)}, or {', '.join(FULL)}; it has {', '.join(table.columns)}")
    table.require(SIMPLE if simple else FULL)
    needs, edge = None, None
    if simple:
        demand = np.array(table.floats("demand"))
    else:
        needs = Needs(workloads=table.columns["workload"], **{name: np.array(table.floats(name), dtype=float) for name in NEEDS})
        edge = edge_demand(needs, builtin_workloads() if workloads is None else workloads)
        demand = edge.demand
    number_of, provider = _providers(table)
    bids = Bids(ids=table.columns["id"], amount=np.array(table.floats("bid"), dtype=float), demand=demand, provider=provider)
    return Market(bids, needs, edge, tuple(number_of))


def _providers(table: Table) -> tuple[dict[str, int], np.ndarray | None]:
    """Return the numbers of the providers in the order in which they are first named, and that of each user.

    Raises:
        BadFile: when a user names none.
    """
    if "provider" not in table.columns:
        return {}, None
    if "" in table.columns["provider"]:
        raise BadFile(f"{table.where(table.columns['provider'].index(''))}: provider should not be empty")
    numbers: dict[str, int] = {}
    found = [numbers.setdefault(name, len(numbers)) for name in table.columns["provider"]]
    return numbers, np.array(found, dtype=np.int64)


def write_market(record: dict[str, Any], market: Market, out: Path) -> None:
    """Write market.json, market.png and bids.csv into a folder; nothing is written before all of it is made."""
    from nmoe.report.figures.market import market_figure
    from nmoe.report.figures.style import png_bytes

    png = png_bytes(market_figure(record))
    write_bytes(out / "bids.csv", bids_csv(market).encode())
    write_bytes(out / "market.png", png)
    write_json(out / "market.json", record)


def bids_csv(market: Market) -> str:
    """Return the bids as they were used, demands included, such that reading them clears the same market."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    bids = market.bids
    columns: dict[str, list[Any]] = {"id": list(bids.ids), "bid": bids.amount.tolist(), "demand": bids.demand.tolist()}
    if bids.provider is not None:
        columns["provider"] = [market.providers[number] for number in bids.provider]
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _about(rule: Mechanism) -> str:
    promises = [word for word, kept in (("truthful", rule.truthful), ("free of envy", rule.envy_free)) if kept]
    return f"{rule.name}: {' and '.join(promises)} for every draw" if promises else rule.name


def _check_folder(out: Path) -> None:
    """Raise ValueError when a folder of that name cannot be made, for there is a file."""
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"out: a folder wanted, {path} is a file")
