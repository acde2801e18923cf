"""Delivery server: a folder of models over HTTP, each transfer at its user's pace, in a thread and an event loop of its own."""

import asyncio
import os
import socket
import time
from pathlib import Path

from nmoe.deliver.server.api import DeliveryApi
from nmoe.deliver.server.app import create_app
from nmoe.deliver.server.folder import ModelFolder
from nmoe.deliver.server.metrics import DeliveryMetrics
from nmoe.deliver.server.replanner import DeliverySettings, Replanner
from nmoe.deliver.server.transfer import Timing
from nmoe.http import HEADER_S, HttpThread, beside, listen

MAX_HEADER_BYTES = 16 << 10  # of a header that is not whole yet; one that comes whole in one read may fill that read, 256 KiB
MAX_CONNECTIONS = 1024
TICK_S = 0.1
UNSENT_BYTES = 64 << 10  # that the kernel holds for a connection; more would hide how slow a link is
GRACE_S = 1.0  # for transfers to see that the server is closed; then they are cancelled


class DeliveryServer:
    """A folder's server.

    Args:
        folder: with model files.
        host, port: where to listen; port 0 for any free one.
        settings: what is shared.
        drain_s: how long transfers may go on after ``stop``.

    Raises:
        BadFile: when there is no such folder.
    """

    def __init__(self, folder: Path, host: str, port: int, *, settings: DeliverySettings, drain_s: float = 1.0) -> None:
        self.replanner = Replanner(settings=settings)
        self._host, self._port, self._drain_s = host, port, drain_s
        metrics = DeliveryMetrics(self.replanner)
        timing = Timing(now=time.monotonic, sleep=asyncio.sleep)
        self._api = DeliveryApi(ModelFolder(folder), self.replanner, timing=timing, metrics=metrics)
        self._http = HttpThread(
            create_app(self._api, metrics),
            name="nmoe-deliver",
            drain_s=drain_s + GRACE_S,
            header_s=HEADER_S,
            abandon=True,
            lifespan=lambda: beside(self._tick()),
            http="h11",  # slower than httptools, but it answers a header that grows too long
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            limit_concurrency=MAX_CONNECTIONS,
        )

    def start(self) -> str:
        """Listen, answer from now on, and return the address as ``host:port``.

        Raises:
            ServerError: when the address is taken or not this machine's.
        """
        listening = listen(self._host, self._port)
        if "linux" in os.uname().sysname.lower():
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)  # what it accepts inherits this
        return self._http.start(listening)

    @property
    def running(self) -> bool:
        """Whether it answers."""
        return self._http.running

    def check(self) -> None:
        """Raise if it has ended by itself.

        Raises:
            ServerError: when it has.
        """
        self._http.check()

    def stop(self) -> None:
        """Take no more connections, let transfers end within ``drain_s``, and return when all is over. May be called twice."""
        self._http.leave()
        self._http.wait(self._drain_s)
        self.replanner.closed = True
        self._http.stop()

    async def _tick(self) -> None:
        """Measure, expire and plan anew. A plan that fails is our bug: it ends the server rather than leave a stale plan in force."""
        try:
            while True:
                await asyncio.sleep(TICK_S)
                await self._api.tick()
        except Exception:
            self._http.leave()
            raise
