"""Timers: one thread that calls what is due."""

import heapq
import itertools
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

MIN_SWEEP = 256  # cancelled timers before it is worth sweeping them out


@dataclass(slots=True, eq=False)
class Timer:
    """What is to be called; None once it was, or was cancelled."""

    call: Callable[[], None] | None


class Timers:
    """Calls functions at their times, on one thread; they must be quick.

    Args:
        name: of the thread.
        on_gap: called with the seconds lost when this thread did not run for longer than ``gap_s``: the process was stopped, or its
            machine.
        gap_s: how long is too long.
    """

    def __init__(self, name: str, *, on_gap: Callable[[float], None] | None = None, gap_s: float = 1.0) -> None:
        self._on_gap = on_gap
        self._gap_s = gap_s
        self._wake = threading.Condition()
        self._heap: list[tuple[float, int, Timer]] = []
        self._cancelled = 0
        self._count = itertools.count()
        self._open = True
        self.thread = threading.Thread(target=self._run, name=name)

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def at(self, time_s: float, call: Callable[[], None]) -> "Timer":
        """Call a function at a time of the monotonic clock, or as soon as possible when that is past, unless it is cancelled first."""
        timer = Timer(call)
        with self._wake:
            heapq.heappush(self._heap, (time_s, next(self._count), timer))
            if self._heap[0][0] == time_s:
                self._wake.notify()
        return timer

    def cancel(self, timer: "Timer") -> None:
        """Do not call it; what it holds is let go at once."""
        if timer.call is None:
            return
        timer.call = None
        with self._wake:
            self._cancelled += 1
            if self._cancelled > MIN_SWEEP and 2 * self._cancelled > len(self._heap):
                self._heap = [entry for entry in self._heap if entry[2].call is not None]
                heapq.heapify(self._heap)
                self._cancelled = 0

    def close(self) -> None:
        """Forget what is not due yet and end the thread."""
        with self._wake:
            self._open = False
            self._wake.notify()
        if self.thread.ident is not None:
            self.thread.join()

    def _run(self) -> None:
        seen_s = time.monotonic()
        while True:
            with self._wake:
                if not self._open:
                    return
                now_s = time.monotonic()
                longest_s = self._gap_s / 4 if self._on_gap else None
                left_s = self._heap[0][0] - now_s if self._heap else None
                if left_s is None or left_s > 0:
                    waits = [wait for wait in (left_s, longest_s) if wait is not None]
                    self._wake.wait(min(waits) if waits else None)
                    call = None
                else:
                    timer = heapq.heappop(self._heap)[2]
                    call, timer.call = timer.call, None
            seen_s, before_s = time.monotonic(), seen_s
            if self._on_gap is not None and seen_s - before_s > self._gap_s:
                self._on_gap(seen_s - before_s)
            if call is not None:
                try:
                    call()
                except Exception:  # noqa: BLE001  # our bug: shown; a dead thread would let every later deadline pass unanswered
                    traceback.print_exc()
