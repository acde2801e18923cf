"""Intake: reads the bodies of requests, none longer than the limit, not too many bytes at once, and not for ever."""

import asyncio
import zlib

from starlette.requests import ClientDisconnect, Request

from nmoe.node.http.rejected import Rejected, shown

BODIES_AT_ONCE = 16  # as many of the largest bodies may lie in memory
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # deflate is zlib's format (RFC 9110, 8.4.1.2)
_IN_THREAD_BYTES = 1 << 16  # more than this is decompressed off the event loop


class Intake:
    """The door for bodies.

    Args:
        max_body_bytes: of one body, compressed or not.
        timeout_s: for the whole body to arrive.
    """

    def __init__(self, *, max_body_bytes: int, timeout_s: float) -> None:
        self.max_body_bytes = max_body_bytes
        self.timeout_s = timeout_s
        self._held_bytes = 0

    async def read(self, request: Request, *types: str) -> bytearray:
        """Return a request's body, decompressed.

        Args:
            request: whose body has not been read.
            types: media types wanted; a request that names none will do.

        Raises:
            Rejected: 400, 408, 413, 415 or, when too many large bodies arrive at once, 503.
        """
        headers = request.headers
        media = headers.get("content-type", types[0]).partition(";")[0].strip().lower()
        if media not in types:
            raise Rejected(415, f"content type {' or '.join(types)} wanted, got {shown(media)}")
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity" and encoding not in _WINDOW_BITS:
            raise Rejected(415, f"content encoding identity, gzip or deflate wanted, got {shown(encoding)}")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.max_body_bytes:
            raise self._too_large(f"{length} bytes are announced")
        body = await self._receive(request)
        if encoding == "identity":
            return body
        bits = _WINDOW_BITS[encoding]
        if len(body) < _IN_THREAD_BYTES:
            return self._decompressed(body, encoding, bits)
        return await asyncio.to_thread(self._decompressed, body, encoding, bits)

    async def _receive(self, request: Request) -> bytearray:
        body = bytearray()
        try:
            async with asyncio.timeout(self.timeout_s):
                async for chunk in request.stream():
                    self._held_bytes += len(chunk)
                    body += chunk
                    if len(body) > self.max_body_bytes:
                        raise self._too_large("more came")
                    if self._held_bytes > BODIES_AT_ONCE * self.max_body_bytes:
                        raise Rejected(503, "busy: too many bytes of other requests are arriving", retry_after_s=1)
        except TimeoutError as error:
            raise Rejected(408, f"the whole body wanted within {self.timeout_s:g} s, {len(body)} bytes came") from error
        except ClientDisconnect as error:
            raise Rejected(400, "the client went away before the body's end") from error
        finally:
            self._held_bytes -= len(body)
        return body

    def _decompressed(self, body: bytearray, encoding: str, bits: int) -> bytearray:
        machine = zlib.decompressobj(bits)
        try:
            whole = machine.decompress(body, self.max_body_bytes + 1)
        except zlib.error as error:
            raise Rejected(400, f"the body is not {encoding}: {error}") from error
        if len(whole) > self.max_body_bytes:
            raise self._too_large("decompressed it has more")
        if not machine.eof or machine.unused_data:
            raise Rejected(400, f"the body is not one whole {encoding} stream")
        return bytearray(whole)

    def _too_large(self, what: str) -> Rejected:
        return Rejected(413, f"a body of at most {self.max_body_bytes} bytes wanted, {what}")
