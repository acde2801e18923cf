"""Serve a market until told to stop."""

import os
from pathlib import Path

from nmoe.http import serve_until_told
from nmoe.market.auction.workloads import builtin_workloads, read_workloads
from nmoe.market.service import MarketServer, MarketSettings


def market_serve(
    database: Path,
    *,
    http: str,
    mechanism: str,
    base: float | None,
    price: float | None,
    capacity: float,
    unit_cost: float,
    epoch_s: float,
    max_bids: int,
    operator_token: str,
    workloads: Path | None,
    lifeline: int | None = None,
) -> None:
    """Serve; prints ``ready http://host:port`` once it does.

    Args:
        database: SQLite file; made if it is not there.
        http: where to listen, such as ``127.0.0.1:8090``.
        mechanism: see ``MarketSettings``, as the next seven.
        base: of its rounding.
        price: of the mechanism with a fixed one.
        capacity: units.
        unit_cost: of a unit.
        epoch_s: length of an epoch.
        max_bids: of an epoch.
        operator_token: ends epochs.
        workloads: file with other workloads than the built-in ones.
        lifeline: file descriptor whose end ends the server.

    Raises:
        ValueError: when the address is none, or a setting is out of range.
        BadFile: when the database or the workloads are damaged.
        LedgerError: when another server holds the database.
        ServerError: when it cannot listen, or broke down.
    """
    host, colon, port = http.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"an HTTP address looks like 127.0.0.1:8090, got {http!r}")
    settings = MarketSettings(
        mechanism=mechanism,
        base=base,
        price=price,
        capacity=capacity,
        unit_cost=unit_cost,
        epoch_s=epoch_s,
        max_bids=max_bids,
        operator_token=operator_token,
        workloads=builtin_workloads() if workloads is None else read_workloads(workloads),
    )
    server = MarketServer(database, host.strip("[]"), int(port), settings=settings)
    serve_until_told(server, tell=_tell, lifeline=lifeline)


def _tell(line: str) -> None:
    os.write(1, f"{line}\n".encode())
