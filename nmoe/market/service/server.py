"""Market server: a market over HTTP, in a thread and an event loop of its own."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nmoe.http import HEADER_S, HttpThread, ServerError, beside, listen
from nmoe.market.service.api import MarketApi
from nmoe.market.service.app import create_market_app
from nmoe.market.service.commitment import SECRET_BYTES
from nmoe.market.service.ledger import Ledger
from nmoe.market.service.market_metrics import market_metrics
from nmoe.market.service.sealed_market import SealedMarket
from nmoe.market.service.terms import MarketSettings

MAX_CONNECTIONS = 4096
DRAIN_S = 5.0  # for requests under way when it stops
LONGEST_NAP_S = 0.5  # between two looks at the clock, which may be set


class MarketServer:
    """The server of a market's database.

    Args:
        database: an SQLite file; made if it is not there.
        host: where to listen.
        port: likewise; 0 for any free one.
        settings: of the market.

    Raises:
        BadFile: when the file is no market's database, or damaged.
        LedgerError: when another server holds it.
    """

    def __init__(self, database: Path, host: str, port: int, *, settings: MarketSettings) -> None:
        self._host, self._port = host, port
        self._ledger = Ledger(database, secret=secrets.token_bytes(SECRET_BYTES))
        self._market = SealedMarket(self._ledger, settings, now=time.time)
        metrics = market_metrics(self._market)
        self._api = MarketApi(self._market, metrics)
        self._http = HttpThread(
            create_market_app(self._api, metrics, sorted(settings.workloads)),
            name="nmoe-market",
            drain_s=DRAIN_S,
            header_s=HEADER_S,
            lifespan=self._lifespan,
            limit_concurrency=MAX_CONNECTIONS,
        )

    def start(self) -> str:
        """Listen, answer from now on, and return the address as ``host:port``.

        Raises:
            ServerError: when the address is taken or not this machine's.
            BadFile: when a stored epoch or bid is damaged.
            ValueError: when an epoch that is not cleared was opened with other workloads.
        """
        try:
            return self._http.start(listen(self._host, self._port))
        except BaseException:
            self.stop()
            raise

    @property
    def running(self) -> bool:
        """Whether it answers."""
        return self._http.running

    def check(self) -> None:
        """Raise if it has ended by itself.

        Raises:
            ServerError: when it has; says why if it is known.
        """
        failure = self._ledger.failure or self._market.failure
        if failure is not None and not self.running:
            raise ServerError(failure)
        self._http.check()

    def stop(self) -> None:
        """Take no more connections, let requests under way end, and let go of the database. May be called twice."""
        self._api.leaving = True
        self._http.stop()
        self._ledger.close()

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        await self._market.start(self._http.leave)
        try:
            async with beside(self._tick()):
                yield
        finally:
            await self._market.stop()

    async def _tick(self) -> None:
        """End epochs when their time is over."""
        while True:
            remaining_s = self._market.remaining_s()
            await asyncio.sleep(LONGEST_NAP_S if remaining_s is None else min(remaining_s, LONGEST_NAP_S))
            self._market.tick()
