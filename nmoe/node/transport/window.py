"""Window: how many bytes may be on their way to one node.

Why: a node that stopped reading, flooded with queries, stalls a zenoh sender's queries to healthy nodes for up to 10 s (measured, zenoh
issue 1876); with at most 512 KiB on their way to each node the healthy ones keep a p99 of 5.6 ms.

A query takes its whole weight at once or waits its turn; one heavier than the window goes alone. A query that timed out still lies in the
network's buffers, so its weight is given back only when the node is heard from again, or after ``linger_s`` (then its link is closed).
Pure: no lock, no clock; the transport brings both.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(slots=True, kw_only=True)
class Window(Generic[Item]):
    """The window to one node.

    Attributes:
        limit_bytes: bytes that may be on their way.
        max_waiting_bytes: bytes that may wait for their turn; beyond, queries are not taken.
        linger_s: how long a query that timed out still counts.
    """

    limit_bytes: int = 512 << 10
    max_waiting_bytes: int = 4 << 20
    linger_s: float = 2.0
    in_flight_bytes: int = 0
    waiting_bytes: int = 0
    waiting: deque[tuple[int, Item]] = field(default_factory=deque)
    lingering: deque[tuple[float, int]] = field(default_factory=deque)

    def offer(self, size: int, item: Item, now_s: float) -> bool:
        """Take a query in, to come out of ``ready`` in turn; False when there is no room for it."""
        self._forget(now_s)
        blocked = bool(self.lingering) and not self._fits(size)  # nobody would wake it up
        if blocked or (self.waiting and self.waiting_bytes + size > self.max_waiting_bytes):
            return False
        self.waiting.append((size, item))
        self.waiting_bytes += size
        return True

    def ready(self) -> list[Item]:
        """Return the queries that may be sent now, in order; they count as on their way."""
        items = []
        while self.waiting and self._fits(self.waiting[0][0]):
            size, item = self.waiting.popleft()
            self.waiting_bytes -= size
            self.in_flight_bytes += size
            items.append(item)
        return items

    def withdraw(self, size: int, item: Item) -> bool:
        """Take a query out that still waits for its turn; False when it does not."""
        try:
            self.waiting.remove((size, item))
        except ValueError:
            return False
        self.waiting_bytes -= size
        return True

    def unsent(self, size: int) -> None:
        """A query of this size came out of ``ready`` but did not leave: nothing is learnt of the node."""
        self.in_flight_bytes -= size

    def answered(self, size: int) -> None:
        """A query of this size has ended with a reply, or because its node is gone: nothing of it is on its way any more."""
        self.in_flight_bytes -= size
        self.lingering.clear()

    def timed_out(self, size: int, now_s: float) -> list[Item]:
        """A query of this size had no reply in time; return those that waited behind it, which are not sent any more."""
        self.in_flight_bytes -= size
        self.lingering.append((now_s + self.linger_s, size))
        items = [item for _, item in self.waiting]
        self.waiting.clear()
        self.waiting_bytes = 0
        return items

    def _fits(self, size: int) -> bool:
        used = self.in_flight_bytes + sum(weight for _, weight in self.lingering)
        return used == 0 or used + size <= self.limit_bytes

    def _forget(self, now_s: float) -> None:
        while self.lingering and self.lingering[0][0] <= now_s:
            self.lingering.popleft()
