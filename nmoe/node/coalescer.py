"""Coalescer: lets concurrent calls share a journey to the experts.

A call that finds no flight out leaves at once, on its caller's thread. While one is out, another leaves only if it carries as many rows, so
that a crowd of small calls travels together and two large ones side by side. The rest gathers; the next flight to land takes all of it, up
to a number of rows. Under light load nothing is delayed; under heavy load each flight carries many calls.
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
        self._max_flights = max_flights
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._out = 0
        self._largest = 0  # rows of the largest flight since none was out
        self._lock = threading.Lock()
        self._waiting: deque[Call] = deque()
        self._ready: SimpleQueue[list[Call] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, calls: list[Call]) -> list[Call]:
        """Send calls off, now or with the next flights; return those that found no room because too many wait."""
        with self._lock:
            room = max(0, self._max_waiting - len(self._waiting))
            self._waiting += calls[:room]
            flights = self._gather()
        for flight in flights:
            self._launch(flight)
        return calls[room:]

    def borrow(self) -> None:
        """Count one flight more: a launch that divides its calls ends with ``landed`` for each part."""
        with self._lock:
            self._out += 1

    def withdraw(self, call: Call) -> bool:
        """Take a call out that has not left yet; False when it has."""
        with self._lock:
            try:
                self._waiting.remove(call)
            except ValueError:
                return False
        return True

    def landed(self) -> None:
        """A flight is over; calls that gathered meanwhile leave, on a thread of this object's."""
        with self._lock:
            self._out -= 1
            flights = self._gather()
            if flights and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="nmoe-coalescer", daemon=True)
                self._thread.start()
        for flight in flights:
            self._ready.put(flight)

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

    def _gather(self) -> list[list[Call]]:
        """Take what may leave now out of what waits; under the lock."""
        flights = []
        while self._waiting and self._out < self._max_flights:
            if self._out == 0:
                self._largest = 0
            calls, rows = self._next_flight()
            if self._out and rows < self._largest:
                self._waiting.extendleft(reversed(calls))
                break
            self._out += 1
            self._largest = max(self._largest, rows)
            flights.append(calls)
        return flights

    def _next_flight(self) -> tuple[list[Call], int]:
        calls: list[Call] = []
        rows = 0
        while self._waiting and (not calls or rows + self._rows(self._waiting[0]) <= self._max_rows):
            call = self._waiting.popleft()
            rows += self._rows(call)
            calls.append(call)
        return calls, rows

    def _run(self) -> None:
        while (calls := self._ready.get()) is not None:
            self._launch(calls)
