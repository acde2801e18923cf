"""Benchmark of the market's server: bids accepted in a second, each on the disk before it is acknowledged; and what a kill leaves of them.

The server is a process of its own with its real command; this process is its clients, on keep-alive connections that each send the next bid
when the last one is acknowledged. In the end the server is killed with SIGKILL in the middle of bids, started again, and the epoch closed:
every acknowledged bid must be in its record. Beside it: one SQLite transaction per bid in the same folder, without any server.
"""

import asyncio
import itertools
import json
import os
import platform
import secrets
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nmoe.core.errors import EngineError
from nmoe.http import ServerError
from nmoe.market.service import MarketClient

Row = dict[str, Any]
CONNECTIONS = (1, 16, 64, 256)
CLOSE_S = 120.0
TASK = {"workload": "resnet50", "accuracy": 0.7, "latency_s": 0.2, "tasks": 1.0, "device_flops": 1e10, "uplink_bps": 2e7}


def bench_market_service(
    *, seconds: float, connections: Sequence[int], folder: Path | None, as_json: bool, say: Callable[[str], None]
) -> None:
    """Measure, and print the table, or JSON with ``name, machine, rows``.

    Args:
        seconds: of bidding per case, at least 0.1.
        connections: at a time, at least 1 each; a case for each.
        folder: on whose disk the database is; the system's temporary one if not given.
        as_json: JSON instead of a table.
        say: prints a line.

    Raises:
        ServerError: when the server does not start.
        EngineError: when an acknowledged bid is lost.
        ValueError: when a number is too small.
    """
    if seconds < 0.1 or not connections or min(connections) < 1:
        raise ValueError(f"at least 0.1 s and 1 connection wanted, got {seconds:g} s and {list(connections)}")
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-market-") as temporary:
        rows = measure(Path(temporary), seconds=seconds, connections=connections)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    if as_json:
        say(json.dumps({"name": "market-service", "machine": machine, "rows": rows}))
        return
    for row in rows:
        say(f"{row['system']:<32}{row['case']:<44}{row['metric']:<40}{row['value']:>12.4g} {row['unit']}")


def measure(folder: Path, *, seconds: float, connections: Sequence[int]) -> list[Row]:
    """Return the benchmark's rows; see ``bench_market_service``."""
    rows = [_row("sqlite3, no server", "a transaction per bid", "bids on the disk", _plain_rate(folder, seconds), "1/s")]
    database, token, names = folder / "market.sqlite", secrets.token_hex(16), itertools.count()
    known: set[str] = set()
    with _serving(database, token) as server:
        for kind, need in (("units", {"demand": 1}), ("a task", TASK)):
            for number in connections:
                load = Load(server.address, names, need)
                load.run(number, seconds)
                known |= load.acknowledged.keys()
                rows += _rows_of(f"{number} connections, bids for {kind}", load, seconds)
        load = Load(server.address, names, {"demand": 1})
        load.run(max(connections), seconds, kill=server.process)
        known |= load.acknowledged.keys()
    with _serving(database, token) as server, MarketClient(server.address, timeout_s=CLOSE_S, attempts=1) as client:
        began_s = time.perf_counter()
        client.close_epoch(1, token)
        took_s = time.perf_counter() - began_s
        kept = {bid["id"] for bid in client.epoch(1)["bids"]}
    case = f"SIGKILL while {max(connections)} bid, {len(known):,} acknowledged"
    rows.append(_row("nmoe", case, "acknowledged bids that are lost", len(known - kept), "1"))
    rows.append(_row("nmoe", f"{len(kept):,} bids", "time to close and clear the epoch", took_s, "s"))
    if known - kept:
        raise EngineError(f"{len(known - kept)} acknowledged bids are not in the epoch")
    return rows


class Load:
    """Clients that bid one after the other, each with its own connection.

    Args:
        url: of the server.
        names: numbers for users.
        need: of each bid.
    """

    def __init__(self, url: str, names: Iterator[int], need: dict[str, Any]) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self._host, self._port, self._names, self._need = host, int(port), names, need
        self.acknowledged: dict[str, float] = {}
        self.num_refused = 0
        self.lasted_s = 0.0
        self._until_s = 0.0

    def run(self, connections: int, seconds: float, *, kill: subprocess.Popen[str] | None = None) -> None:
        """Bid for some time.

        Args:
            connections: at a time.
            seconds: how long.
            kill: killed when half of the time is over; the clients then end with it.
        """
        factory = None
        if find_spec("uvloop") is not None:
            import uvloop

            factory = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(self._all(connections, seconds, kill))

    async def _all(self, connections: int, seconds: float, kill: subprocess.Popen[str] | None) -> None:
        began_s = time.perf_counter()
        self._until_s = began_s + seconds
        if kill is not None:
            asyncio.get_running_loop().call_later(seconds / 2, kill.send_signal, signal.SIGKILL)
        ended = await asyncio.gather(*(self._one() for _ in range(connections)), return_exceptions=True)
        self.lasted_s = time.perf_counter() - began_s
        broken = [error for error in ended if isinstance(error, BaseException)]
        if broken and kill is None:
            raise broken[0]

    async def _one(self) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            while (began_s := time.perf_counter()) < self._until_s:
                user = f"user-{next(self._names)}"
                body = json.dumps({"id": user, "bid": 1.0 + len(self.acknowledged) % 997, **self._need}).encode()
                head = f"POST /bids HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                answer = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(answer.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))
                if answer.startswith(b"HTTP/1.1 200 "):
                    self.acknowledged[user] = time.perf_counter() - began_s
                else:
                    self.num_refused += 1
        finally:
            writer.close()


class _Serving(NamedTuple):
    """A server's process, and where it listens."""

    process: subprocess.Popen[str]
    address: str


@contextmanager
def _serving(database: Path, token: str) -> Iterator[_Serving]:
    """Run the server's command until the block ends.

    Raises:
        ServerError: when it does not start.
    """
    words = [sys.executable, "-m", "nmoe", "market", "serve", "--database", str(database), "--http", "127.0.0.1:0", "--epoch-s", "0"]
    words += ["--max-bids", "10000000", "--mechanism", "aeria-ef", "--exit-with-parent"]
    environment = {**os.environ, "NMOE_OPERATOR_TOKEN": token}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None, "it is piped"
        try:
            line = process.stdout.readline().split()
            if len(line) != 2:
                raise ServerError("the server did not start; its error stands above")
            yield _Serving(process, line[1])
        finally:
            process.terminate()


def _plain_rate(folder: Path, seconds: float) -> float:
    """Return how many transactions of one bid each SQLite syncs in a second."""
    connection = sqlite3.connect(folder / "plain.sqlite", isolation_level=None)
    for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "CREATE TABLE bid (user TEXT PRIMARY KEY, body BLOB)"):
        connection.execute(statement)
    number, began_s = 0, time.perf_counter()
    while time.perf_counter() < began_s + seconds:
        connection.execute("INSERT INTO bid VALUES (?, ?)", (f"user-{number}", b'{"id": "user", "bid": 1.0, "demand": 1.0}'))
        number += 1
    rate = number / (time.perf_counter() - began_s)
    connection.close()
    return rate


def _rows_of(case: str, load: Load, seconds: float) -> list[Row]:
    times = np.array(list(load.acknowledged.values()))
    if not len(times):
        raise EngineError(f"no bid was acknowledged within {seconds:g} s")
    return [
        _row("nmoe", case, "bids acknowledged, on the disk", len(times) / load.lasted_s, "1/s"),
        _row("nmoe", case, "median time to the acknowledgement", 1e3 * float(np.median(times)), "ms"),
        _row("nmoe", case, "99th percentile of it", 1e3 * float(np.quantile(times, 0.99)), "ms"),
        _row("nmoe", case, "bids refused", load.num_refused, "1"),
    ]


def _row(system: str, case: str, metric: str, value: float, unit: str) -> Row:
    return {"system": system, "case": case, "metric": metric, "value": value, "unit": unit}
