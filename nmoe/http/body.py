"""Body: what came with a request, in bounded space and time."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from nmoe.http.rejected import Rejected, quoted

_JSON = "application/json"
_Decoded = TypeVar("_Decoded")


async def read_body(request: Request, *, max_bytes: int, within_s: float, hold: Callable[[int], None] | None = None) -> bytearray:
    """Return a request's body.

    Args:
        request: whose body has not been read.
        max_bytes: of the body.
        within_s: seconds for all of it to arrive.
        hold: told how many bytes came, before they are kept; may raise.

    Raises:
        Rejected: 400, 408 or 413.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(within_s):
            async for chunk in request.stream():
                if len(body) + len(chunk) > max_bytes:
                    raise Rejected(413, f"a body of at most {max_bytes} bytes wanted")
                if hold is not None:
                    hold(len(chunk))
                body += chunk
    except TimeoutError as error:
        raise Rejected(408, f"the whole body wanted within {within_s:g} s, {len(body)} bytes came") from error
    except ClientDisconnect as error:
        raise Rejected(400, "the client went away before the body's end") from error
    return body


async def read_json(request: Request, *, max_bytes: int, within_s: float) -> bytes:
    """Return a request's body, which is JSON if it says what it is.

    Args:
        request: whose body has not been read.
        max_bytes: of the body.
        within_s: seconds for all of it to arrive.

    Raises:
        Rejected: 400, 408, 413 or 415.
    """
    media = request.headers.get("content-type", _JSON).partition(";")[0].strip().lower()
    if media != _JSON:
        raise Rejected(415, f"content type {_JSON} wanted, got {quoted(media)}")
    return bytes(await read_body(request, max_bytes=max_bytes, within_s=within_s))


def decode_json(decoder: "msgspec.json.Decoder[_Decoded]", data: bytes | bytearray | memoryview) -> _Decoded:
    """Return what JSON says.

    Raises:
        Rejected: 400.
    """
    try:
        return decoder.decode(data)
    except RecursionError as error:
        raise Rejected(400, "a body without deep nesting wanted") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Rejected(400, f"the JSON cannot be read: {error}") from error
