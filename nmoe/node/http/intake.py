"""Intake: reads the bodies of requests, none longer than the limit, not too many bytes at once, and not for ever."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from nmoe.http import Rejected, quoted, read_body

MAX_HELD_BYTES = 128 << 20  # of all bodies together; two of the largest, in a node of 300 MiB
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # deflate is zlib's format (RFC 9110, 8.4.1.2)
_STEP_BYTES, _PIECE_BYTES = 1 << 16, 1 << 20  # decompressed at a time: at most so much read, so much written


class Intake:
    """The door for bodies.

    Args:
        max_body_bytes: of one body, compressed or not.
        timeout_s: for the whole body to arrive.
        max_held_bytes: of all bodies that have not been handed on.
    """

    def __init__(self, *, max_body_bytes: int, timeout_s: float, max_held_bytes: int = MAX_HELD_BYTES) -> None:
        self.max_body_bytes = max_body_bytes
        self.timeout_s = timeout_s
        self.max_held_bytes = max_held_bytes
        self._held_bytes = 0

    @asynccontextmanager
    async def read(self, request: Request, *types: str) -> AsyncIterator[bytearray]:
        """Yield a request's body, decompressed; it counts as held until the block ends.

        Args:
            request: whose body has not been read.
            types: media types wanted; a request that names none will do.

        Raises:
            Rejected: 400, 408, 413, 415 or, when the bodies of all requests are too many bytes, 503.
        """
        encoding = self._encoding(request, types)
        held = _Held()
        try:
            body = await read_body(
                request, max_bytes=self.max_body_bytes, within_s=self.timeout_s, hold=lambda count: self._hold(count, held)
            )
            yield body if encoding == "identity" else await self._decompressed(body, encoding, held)
        finally:
            self._held_bytes -= held.count

    def _encoding(self, request: Request, types: tuple[str, ...]) -> str:
        """Return the content encoding of a request whose header promises a body that is wanted."""
        headers = request.headers
        media = media_type(request) or types[0]
        if media not in types:
            raise Rejected(415, f"content type {' or '.join(types)} wanted, got {quoted(media)}")
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity" and encoding not in _WINDOW_BITS:
            raise Rejected(415, f"content encoding identity, gzip or deflate wanted, got {quoted(encoding)}")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.max_body_bytes:
            raise self._too_large(f"{length} bytes are announced")
        return encoding

    async def _decompressed(self, body: bytearray, encoding: str, held: "_Held") -> bytearray:
        """Return the body decompressed, a piece at a time: the first, often the only one, here, the others off the event loop."""
        whole = bytearray()
        pieces = _inflated(body, _WINDOW_BITS[encoding])
        try:
            piece = next(pieces, None)
            while piece is not None:
                if len(whole) + len(piece) > self.max_body_bytes:
                    raise self._too_large("decompressed it has more")
                self._hold(len(piece), held)
                whole += piece
                piece = await asyncio.to_thread(next, pieces, None) if len(whole) >= _STEP_BYTES else next(pieces, None)
        except (zlib.error, EOFError) as error:
            raise Rejected(400, f"the body is not one whole {encoding} stream: {error}") from error
        return whole

    def _hold(self, count: int, held: "_Held") -> None:
        if self._held_bytes + count > self.max_held_bytes:
            raise Rejected(503, "busy: the bodies of other requests fill the memory for them", {"retry-after": "1"})
        self._held_bytes += count
        held.count += count

    def _too_large(self, what: str) -> Rejected:
        return Rejected(413, f"a body of at most {self.max_body_bytes} bytes wanted, {what}")


class _Held:
    """How many bytes one request holds."""

    count = 0


def media_type(request: Request) -> str:
    """Return what a request says its body is, without parameters; empty when it does not say."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _inflated(body: bytearray, bits: int) -> Iterator[bytes]:
    """Yield what a body decompresses to, in pieces.

    Raises:
        zlib.error: when it is not compressed so.
        EOFError: when it is not one whole stream.
    """
    machine = zlib.decompressobj(bits)
    for start in range(0, len(body), _STEP_BYTES):
        rest: bytes | bytearray = body[start : start + _STEP_BYTES]
        while rest and not machine.eof:
            yield machine.decompress(rest, _PIECE_BYTES)
            rest = machine.unconsumed_tail
        if machine.eof and (machine.unused_data or start + _STEP_BYTES < len(body)):
            raise EOFError("something follows its end")
    while not machine.eof:  # what it read and had no room to write
        piece = machine.decompress(b"", _PIECE_BYTES)
        if not piece and not machine.eof:
            raise EOFError("its end is missing")
        yield piece
