"""Rejected: a request that gets an error status in place of an answer, with one line that says why."""

from typing import Any

import msgspec
from starlette.responses import Response

MAX_TEXT = 400  # characters of a reason


class Rejected(Exception):
    """A request that is not answered.

    Args:
        status: HTTP status, 400 or more.
        reason: one line: what was wanted and what came.
        retry_after_s: when to try again; None to not say.
    """

    def __init__(self, status: int, reason: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


def shown(value: Any) -> str:
    """Return a value as it may stand in a reason: on one line, printable, not long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def error_response(status: int, reason: str, *, retry_after_s: int | None = None) -> Response:
    """Return ``{"error": reason}`` with a status."""
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    line = " ".join(reason.split())[:MAX_TEXT]
    return Response(msgspec.json.encode({"error": line}), status, headers, media_type="application/json")
