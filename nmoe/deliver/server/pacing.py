"""Pacing: how fast bytes may leave, and how fast they are taken. Time is an argument; nothing here waits."""

import math
from typing import NamedTuple

BURST_S = 0.1  # what may be caught up with after the event loop was late
LEAST_CHUNK, MOST_CHUNK = 4 << 10, 64 << 10
CHUNK_S = 0.02  # a chunk is what the rate sends in this time, within the two limits
WINDOW_S = 1.0  # of sending, over which what a client takes is measured


class TokenBucket:
    """Bytes that may leave at a rate that can change; one for all transfers of a user.

    Args:
        now_s: the time.
    """

    def __init__(self, now_s: float) -> None:
        self.rate = 0.0  # bytes per second
        self._tokens = 0.0
        self._at_s = now_s

    @property
    def chunk(self) -> int:
        """How many bytes to send at a time."""
        return int(min(max(self.rate * CHUNK_S, LEAST_CHUNK), MOST_CHUNK))

    def set_rate(self, rate: float, now_s: float) -> None:
        """Refill at ``rate`` bytes per second, at least 0, from now on."""
        self._settle(now_s)
        self.rate = rate

    def wait_s(self, count: int, now_s: float) -> float:
        """Return how long it takes until ``count`` bytes may leave if nobody else takes any; infinite when the rate is 0."""
        self._settle(now_s)
        short = count - self._tokens
        if short <= 1e-6:  # rounding, in bytes
            return 0.0
        return short / self.rate if self.rate > 0 else math.inf

    def take(self, count: int, now_s: float) -> None:
        """Let ``count`` bytes leave."""
        self._settle(now_s)
        self._tokens -= count

    def _settle(self, now_s: float) -> None:
        limit = max(self.rate * BURST_S, 2 * self.chunk)
        self._tokens = min(self._tokens + self.rate * (now_s - self._at_s), max(limit, self._tokens))
        self._at_s = now_s


class Taken(NamedTuple):
    """What happened in one window: how many bytes the plan offered, and how many were taken."""

    offered: float
    taken: int


class RateWindow:
    """Measures what a client takes of what it is offered, while at least one transfer is under way.

    Args:
        now_s: the time.
        window_s: seconds of sending per measurement.
    """

    def __init__(self, now_s: float, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._at_s = now_s
        self._reset()

    def run(self, now_s: float, *, rate: float, active: bool) -> Taken | None:
        """Let time pass and return the measurement of a window that is full, or None.

        Args:
            now_s: the time.
            rate: offered since the last call, in bytes per second.
            active: whether a transfer was under way since then.
        """
        if active and rate > 0:
            self._offered += rate * (now_s - self._at_s)
            self._active_s += now_s - self._at_s
        self._at_s = now_s
        if self._active_s < self._window_s:
            return None
        full = Taken(self._offered, self._taken)
        self._reset()
        return full

    def took(self, count: int) -> None:
        """Take note of ``count`` bytes that the client's socket took."""
        self._taken += count

    def _reset(self) -> None:
        self._offered, self._active_s, self._taken = 0.0, 0.0, 0
