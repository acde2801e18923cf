"""Clock: virtual time. What is to happen waits in order; deadlines, which come in order anyway, in a line of their own that costs less.

Only what happens in the present slot of time is in a heap; what is later lies unsorted by slot until its slot comes, for with tens of
thousands of events under way, as in a large mesh, most of what a single heap compares would not be in the processor's inner cache.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np

from nmoe.node.batcher import Batcher
from nmoe.node.protocol import Origin
from nmoe.node.world.recording import Step

SLOTS_PER_S = 1000
Call = Callable[["Node", Any], None]


class Away(IntEnum):
    """Whether a node acts."""

    HERE = 0
    FROZEN = 1  # as by SIGSTOP: what happens to it waits until it is thawed
    GONE = 2  # as by kill -9; the same place may start again, as another ``Node``


class Node:
    """One life of a simulated node.

    Args:
        index: its place in the layout.
        name: its name.
        origin: decides.
        step: ``origin.step``, or what stands in for it.
        batcher: what waits for its workers.
        row, place: of the network's matrix.
        pace: seconds it takes for what a node of mean speed does in one.
        byte_s: of its line.
    """

    __slots__ = (
        "away",
        "batcher",
        "byte_s",
        "draining",
        "free",
        "held",
        "index",
        "loss",
        "name",
        "open",
        "origin",
        "pace",
        "place",
        "row",
        "run_own",
        "step",
    )

    def __init__(
        self,
        *,
        index: int,
        name: str,
        origin: Origin,
        step: Step,
        batcher: Batcher[Any],
        row: int,
        place: int,
        pace: float,
        byte_s: float,
        loss: float,
    ) -> None:
        self.index = index
        self.name = name
        self.origin = origin
        self.step = step
        self.batcher = batcher
        self.row = row
        self.place = place
        self.pace = pace
        self.byte_s = byte_s
        self.loss = loss
        self.free = batcher.workers
        self.away = Away.HERE
        self.draining = False
        self.held: list[tuple[Call, Any]] = []
        self.open: dict[int, np.ndarray] = {}  # scores of the requests it has not answered
        self.run_own = -1  # the flight its worker computes next


class Clock:
    """The order of events.

    Attributes:
        now_s: the time.
        events: how many have happened.
        outside: stands for whatever is no node and never away: clients and fate. It has nothing but that.
    """

    __slots__ = ("_buckets", "_count", "_heap", "_lost", "_slot", "_slots", "_timers", "events", "now_s", "outside")

    def __init__(self, lost: Callable[[Call, Any], None]) -> None:
        self.now_s = 0.0
        self.events = 0
        self._lost = lost
        self._heap: list[tuple[float, int, Call, Node, Any]] = []
        self._slot = 0  # the latest in the heap
        self._slots: list[int] = []  # a heap of those after it
        self._buckets: dict[int, list[tuple[float, int, Call, Node, Any]]] = {}  # by slot
        self._timers: deque[tuple[float, Call, Node, Any]] = deque()
        self._count = 0
        self.outside = Node.__new__(Node)
        self.outside.away = Away.HERE

    def later(self, at_s: float, call: Call, node: Node, item: Any) -> None:
        """Let something happen to a node at a time."""
        self._count += 1
        slot = int(at_s * SLOTS_PER_S)
        if slot <= self._slot:
            heappush(self._heap, (at_s, self._count, call, node, item))
            return
        bucket = self._buckets.get(slot)
        if bucket is None:
            self._buckets[slot] = [(at_s, self._count, call, node, item)]
            heappush(self._slots, slot)
        else:
            bucket.append((at_s, self._count, call, node, item))

    def timer(self, at_s: float, call: Call, node: Node, item: Any) -> None:
        """Let a timer run out; cheaper than ``later`` when none is due after it."""
        timers = self._timers
        if not timers or timers[-1][0] <= at_s:
            timers.append((at_s, call, node, item))
        else:
            self.later(at_s, call, node, item)

    def run(self, times: Sequence[float], arrive: Callable[[int], None], end_s: float) -> None:
        """Let everything happen up to ``end_s``, and ``arrive`` at each of ``times``, which rise."""
        heap, timers, here, forever = self._heap, self._timers, Away.HERE, math.inf
        arrivals = iter(times)
        number, next_s, events = 0, next(arrivals, forever), 0
        while True:
            if not heap and self._slots:
                self._slot = heappop(self._slots)
                heap += self._buckets.pop(self._slot)
                heapify(heap)
            due_s = heap[0][0] if heap else forever
            if timers and timers[0][0] <= due_s:
                due_s = timers[0][0]
                from_heap = False
            else:
                from_heap = True
            if next_s <= due_s:
                if next_s > end_s:
                    break
                self.now_s = next_s
                events += 1
                arrive(number)
                number += 1
                next_s = next(arrivals, forever)
                continue
            if due_s > end_s:
                break
            if from_heap:
                _, _, call, node, item = heappop(heap)
            else:
                _, call, node, item = timers.popleft()
            self.now_s = due_s
            events += 1
            if node.away is here:
                call(node, item)
            elif node.away is Away.FROZEN:
                node.held.append((call, item))
            else:
                self._lost(call, item)
        self.events += events
        self.now_s = end_s
