"""Workers: threads that compute what waits in a batcher, one torch thread each."""

import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Generic

import torch

from nmoe.node.batcher import Batch, Batcher, Item, Job, Line

Compute = Callable[[Batch[Item]], None]


class Workers(Generic[Item]):
    """A pool over one batcher.

    Args:
        batcher: what waits; this class alone touches it, under a lock.
        compute: computes a batch and answers its jobs, the late ones too. It should not raise: who waits for its jobs would hear nothing.
        name: of the threads.
        cpus: cores they may run on, one set for all; None for any.

    Attributes:
        failures: how often ``compute`` raised all the same; each is printed with its traceback, and the worker goes on.
    """

    def __init__(self, batcher: Batcher[Item], compute: Compute[Item], *, name: str, cpus: Sequence[int] | None = None) -> None:
        self._batcher = batcher
        self._compute = compute
        self._cpus = None if cpus is None else frozenset(cpus)
        self.failures = 0
        self._lock = threading.Lock()
        self._tokens: SimpleQueue[bool] = SimpleQueue()  # one per job, so that a sleeping worker wakes; False ends one
        self.threads = [threading.Thread(target=self._run, name=f"{name}-{number}") for number in range(batcher.workers)]

    def start(self) -> None:
        """Start the threads."""
        for thread in self.threads:
            thread.start()

    def submit(self, job: Job[Item]) -> str | None:
        """Queue a job, or return why it is refused."""
        with self._lock:
            refused = self._batcher.offer(job, time.monotonic())
        if refused is None:
            self._tokens.put(True)
        return refused

    def queue_rows(self) -> int:
        """Return the expert rows that wait for a worker."""
        return self._batcher.waiting_rows()

    def rows_per_s(self) -> float:
        """Return how many expert rows a second these workers compute, as measured; 0 when they have not yet."""
        with self._lock:
            row_s = self._batcher.lines[Line.EXPERT].row_s
        return self._batcher.workers / row_s if row_s else 0.0

    def close(self) -> None:
        """Work off what is queued, then let the threads end."""
        for _ in self.threads:
            self._tokens.put(False)
        for thread in self.threads:
            if thread.ident is not None:
                thread.join()

    def _run(self) -> None:
        torch.set_num_threads(1)
        if self._cpus is not None:
            os.sched_setaffinity(0, self._cpus)  # of this thread alone
        while self._tokens.get():
            while (batch := self._take()) is not None:
                began_s = time.monotonic()
                try:
                    self._compute(batch)
                except Exception:  # noqa: BLE001  # our bug: shown and counted; a dead worker would leave the node silent
                    self.failures += 1
                    traceback.print_exc()
                with self._lock:
                    self._batcher.done(batch.line, batch.rows, time.monotonic() - began_s)

    def _take(self) -> Batch[Item] | None:
        while True:
            with self._lock:
                taken = self._batcher.take(time.monotonic())
            if not isinstance(taken, float):
                return taken
            time.sleep(taken)  # at most the batcher's max_linger_s
