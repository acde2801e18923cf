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
        headers: of the answer.
    """

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers

    def response(self) -> Response:
        """Return the answer, ``{"error": reason}``."""
        line = " ".join(self.reason.split())[:MAX_TEXT].encode("utf-8", "replace").decode("utf-8")
        return Response(msgspec.json.encode({"error": line}), self.status, self.headers, media_type="application/json")


def quoted(value: Any) -> str:
    """Return a value as it may stand in a reason: on one line, printable, not long."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
