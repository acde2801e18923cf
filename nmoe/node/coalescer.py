"""Coalescer: lets concurrent calls share a journey to the experts.

A call that finds a flight free leaves at once, on its caller's thread. While all flights are out, calls gather; the next one to land takes
all that gathered, up to a number of rows. Under light load nothing is delayed; under heavy load each flight carries many calls.
"""

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

Call = TypeVar("Call")


class Coalescer(Generic[Call]):
    """Shares flights among calls; safe to use from any thread.

    Args:
        launch: sends calls off together; ``landed`` must follow once, from any thread.
        rows: how many rows a call has.
        max_flights: out at a time. Two keep both ends of a link busy.
        max_rows: per flight, unless one call has more.
        max_waiting: calls that may gather.
    """

    def __init__(
        self, launch: Callable[[list[Call]], None], rows: Callable[[Call], int], *, max_flights: int, max_rows: int, max_waiting: int
    ) -> None:
        self._launch = launch
        self._rows = rows
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._free = max_flights
        self._lock = threading.Lock()
        self._waiting: deque[Call] = deque()
        self._ready: SimpleQueue[list[Call] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, call: Call) -> bool:
        """Send a call off, now or with the next flight; False when too many wait."""
        with self._lock:
            if self._free > 0:
                self._free -= 1
            elif len(self._waiting) >= self._max_waiting:
                return False
            else:
                self._waiting.append(call)
                return True
        self._launch([call])
        return True

    def borrow(self) -> None:
        """Count one flight more: a launch that divides its calls ends with ``landed`` for each part."""
        with self._lock:
            self._free -= 1

    def landed(self) -> None:
        """A flight is over; the calls that gathered meanwhile leave, on a thread of this object's."""
        with self._lock:
            calls = self._gather() if self._free >= 0 else []
            if not calls:
                self._free += 1
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="nmoe-coalescer", daemon=True)
                self._thread.start()
        self._ready.put(calls)

    def close(self) -> list[Call]:
        """End the thread and return the calls that never left."""
        with self._lock:
            left = list(self._waiting)
            self._waiting.clear()
            thread = self._thread
        self._ready.put(None)
        if thread is not None:
            thread.join()
        return left

    def _gather(self) -> list[Call]:
        calls: list[Call] = []
        rows = 0
        while self._waiting and (not calls or rows + self._rows(self._waiting[0]) <= self._max_rows):
            call = self._waiting.popleft()
            rows += self._rows(call)
            calls.append(call)
        return calls

    def _run(self) -> None:
        while (calls := self._ready.get()) is not None:
            self._launch(calls)
