"""Ranges: which bytes of a file a request asks for (RFC 9110, section 14), and which have been sent to whom."""

import re
from bisect import bisect_left
from typing import NamedTuple

MAX_PIECES = 4096  # separate stretches remembered per file and user
_ONE_RANGE = re.compile(r"bytes=[ \t]*(\d*)-(\d*)[ \t]*", re.IGNORECASE | re.ASCII)
_MAX_DIGITS = 18  # more would be a file of an exabyte


class Stretch(NamedTuple):
    """Bytes ``start`` to ``stop`` of a file, ``stop`` left out."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.stop - self.start


class Unsatisfiable(Exception):
    """A range that has no byte in the file; the answer is 416."""


def wanted_stretch(header: str | None, size: int) -> Stretch | None:
    """Return the bytes that a Range header asks for, or None where the whole file is the answer.

    A header that is malformed, of another unit than bytes, or of several ranges is ignored, as RFC 9110 (14.2) allows.

    Args:
        header: of the request; None if it has none.
        size: of the file in bytes.

    Raises:
        Unsatisfiable: when the range is well formed and holds no byte of the file.
    """
    found = None if header is None else _ONE_RANGE.fullmatch(header)
    if found is None or max(map(len, found.groups())) > _MAX_DIGITS:
        return None
    first, last = found.groups()
    if first:
        if last and int(last) < int(first):
            return None
        start, stop = int(first), min(int(last) + 1, size) if last else size
    elif last:
        start, stop = max(0, size - int(last)), size
    else:
        return None
    if start >= stop:
        raise Unsatisfiable
    return Stretch(start, stop)


class SentBytes:
    """The bytes of one file that one user has been sent, as separate stretches in order."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def add(self, start: int, stop: int) -> None:
        """Take note of ``start`` to ``stop``. Beyond ``MAX_PIECES`` stretches the first is forgotten: then it counts as not sent."""
        low = bisect_left(self._stops, start)  # the first that ends at start or later
        high = low
        while high < len(self._starts) and self._starts[high] <= stop:
            start, stop = min(start, self._starts[high]), max(stop, self._stops[high])
            high += 1
        self._starts[low:high], self._stops[low:high] = [start], [stop]
        if len(self._starts) > MAX_PIECES:
            del self._starts[0], self._stops[0]

    def missing(self, start: int, stop: int) -> int:
        """Return how many bytes of ``start`` to ``stop`` have not been sent."""
        left = stop - start
        for position in range(bisect_left(self._stops, start), len(self._starts)):
            if self._starts[position] >= stop:
                break
            left -= max(0, min(stop, self._stops[position]) - max(start, self._starts[position]))
        return left
