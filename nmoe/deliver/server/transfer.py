"""Transfer: one file, or one range of it, on its way to a client at the pace of its user's share."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nmoe.deliver.server.folder import OpenFile
from nmoe.deliver.server.ranges import Stretch
from nmoe.deliver.server.replanner import Replanner, ServedUser

BLOCK_BYTES = 256 << 10  # read at a time
LOOK_S = 0.1  # how often a transfer that waits looks whether its rate has changed
STALL_S = 30.0  # a transfer of which nothing is taken, or nothing may be sent, for so long is ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How a server tells the time and waits; in tests virtually."""

    now: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]


class Transfer(Response):
    """An answer with bytes of a file. Closes the file.

    Args:
        file: open.
        stretch: which of its bytes.
        status: 200 or 206.
        headers: of the answer.
        replanner: has the pace, and is told what was sent.
        user: whose share it is; None for what is left over.
        timing: the clock.
        model: name of the model whose layers these bytes may be; None for a file that is not paced.
    """

    def __init__(
        self,
        file: OpenFile,
        stretch: Stretch,
        *,
        status: int,
        headers: dict[str, str],
        replanner: Replanner,
        user: ServedUser | None,
        timing: Timing,
        model: str | None,
    ) -> None:
        super().__init__(None, status, {**headers, "content-length": str(stretch.size)}, media_type=file.media_type)
        self._file, self._stretch, self._model = file, stretch, model
        self._replanner, self._user, self._timing = replanner, user, timing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Returns early, which closes the connection, when the client, its user or the rest of the file has gone."""
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] == "HEAD" or not self._stretch.size:
                await send({"type": "http.response.body", "body": b""})
            else:
                await self._send_body(send, gone)
        finally:
            self._file.close()
            if self._model is not None and scope["method"] != "HEAD":
                self._replanner.end(self._user, self._timing.now())
            gone.cancel()

    async def _send_body(self, send: Send, gone: "asyncio.Future[None]") -> None:
        position, stop = self._stretch
        block = b""
        while position < stop:
            if not block:
                block = await asyncio.to_thread(os.pread, self._file.descriptor, min(BLOCK_BYTES, stop - position), position)
            count = await self._permitted(len(block), gone)
            if not count:
                return  # of the file too, when it was cut short meanwhile
            chunk, block = block[:count], block[count:]
            try:
                async with asyncio.timeout(STALL_S):
                    await send({"type": "http.response.body", "body": chunk, "more_body": position + count < stop})
            except TimeoutError:
                return
            if self._model is not None:
                self._replanner.sent(self._user, self._model, position, position + count, self._timing.now())
            position += count

    async def _permitted(self, most: int, gone: "asyncio.Future[None]") -> int:
        """Wait until something may leave, and return how many bytes; 0 when nothing ever will."""
        if self._model is None:
            return 0 if gone.done() else most
        until_s = self._timing.now() + STALL_S
        while not gone.done() and self._replanner.serves(self._user):
            bucket = self._replanner.anonymous if self._user is None else self._user.bucket
            now_s, count = self._timing.now(), min(most, bucket.chunk)
            wait_s = bucket.wait_s(count, now_s)
            if wait_s <= 0:
                bucket.take(count, now_s)
                return count
            if now_s >= until_s:
                break
            await self._timing.sleep(min(wait_s, LOOK_S))
        return 0


async def _disconnected(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
