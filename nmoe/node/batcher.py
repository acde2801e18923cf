"""Batcher: what waits for a node's workers, and what they take next. Pure: the clock is an argument.

Two lines wait: infer requests for the extractor and the gate, and rows for the experts (peers' and this node's own). A worker takes from
the line whose head has waited longest, and with the head all that may share its batch. Batches grow with the load by themselves: what
arrives while the workers compute is taken together. Only when jobs come so closely that the next is due before a fraction of a batch's
compute time does a free worker linger for it, at most ``max_linger_s``.

What finds no room, or would be computed only after its deadline, is refused at once as busy: a queue is never unbounded. What has become
late while waiting is handed back uncomputed.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")
GAIN = 0.1
LINGER_SHARE = 0.25  # linger only for arrivals expected within this share of a batch's compute time
ROOM = 0.9  # of the time left may be spent waiting; beyond, a job is refused


class Line(Enum):
    """What a job is for."""

    INFER = "infer"
    EXPERT = "expert"


_INFER, _EXPERT = Line.INFER, Line.EXPERT  # in Python 3.11 finding a member takes ten times as long as finding a name


@dataclass(slots=True, eq=False)
class Job(Generic[Item]):
    """Something to compute: ``key`` is what jobs must agree in to share a batch; an ``admitted`` one is taken in whatever waits."""

    line: Line
    key: object
    rows: int
    size: int
    deadline_s: float
    item: Item
    admitted: bool = False
    arrived_s: float = 0.0


@dataclass(slots=True)
class _Queue(Generic[Item]):
    jobs: deque[Job[Item]] = field(default_factory=deque)
    rows: int = 0
    size: int = 0
    computing_rows: int = 0
    row_s: float | None = None
    batch_s: float = 0.0
    gap_s: float | None = None
    last_s: float = 0.0


class Batch(NamedTuple, Generic[Item]):
    """What a worker takes: jobs to compute together, and late ones to refuse."""

    line: Line
    jobs: tuple[Job[Item], ...]
    late: tuple[Job[Item], ...]
    rows: int


class Batcher(Generic[Item]):
    """The lines before a node's workers.

    Args:
        workers: how many take from it.
        max_rows, max_bytes: what may wait in each line; a larger job is taken when nothing else waits.
        max_batch_rows: rows computed together, unless one job has more.
        max_linger_s: how long a free worker may wait for company for the head of a line.
    """

    def __init__(
        self,
        *,
        workers: int = 1,
        max_rows: int = 8192,
        max_bytes: int = 64 << 20,
        max_batch_rows: int = 256,
        max_linger_s: float = 0.001,
    ) -> None:
        self.workers = workers
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self.max_batch_rows = max_batch_rows
        self.max_linger_s = max_linger_s
        self._infer: _Queue[Item] = _Queue()
        self._expert: _Queue[Item] = _Queue()
        self.lines = {_INFER: self._infer, _EXPERT: self._expert}  # hashing a Line is slow: not used on the way

    def waiting_rows(self) -> int:
        """Return the expert rows that wait."""
        return self._expert.rows

    def queue_rows(self, line: Line = _EXPERT) -> int:
        """Return the rows that wait or are being computed."""
        queue = self._expert if line is _EXPERT else self._infer
        return queue.rows + queue.computing_rows

    def wait_s(self, line: Line) -> float:
        """Return how long a new job of this line can expect to wait for its worker."""
        work_s = 0.0
        for queue in (self._infer, self._expert):
            if queue.row_s is not None:
                work_s += (queue.rows + queue.computing_rows) * queue.row_s
        return work_s / self.workers

    def offer(self, job: Job[Item], now_s: float) -> str | None:
        """Take a job in, or return why not: it is to be refused as busy, at once."""
        queue = self._expert if job.line is _EXPERT else self._infer
        if not job.admitted:
            if queue.jobs and (queue.rows + job.rows > self.max_rows or queue.size + job.size > self.max_bytes):
                return f"{queue.rows} rows wait already"
            wait_s = self.wait_s(job.line)
            if wait_s > ROOM * (job.deadline_s - now_s):
                return f"the wait would be {1000 * wait_s:.0f} ms"
        job.arrived_s = now_s
        if queue.last_s:
            gap_s = now_s - queue.last_s
            queue.gap_s = gap_s if queue.gap_s is None else queue.gap_s + GAIN * (gap_s - queue.gap_s)
        queue.last_s = now_s
        queue.jobs.append(job)
        queue.rows += job.rows
        queue.size += job.size
        return None

    def take(self, now_s: float) -> Batch[Item] | float | None:
        """Return what a free worker computes next; or how many seconds it should linger; None when nothing waits."""
        infer, expert = self._infer.jobs, self._expert.jobs
        if infer and (not expert or infer[0].arrived_s < expert[0].arrived_s):
            line, queue = _INFER, self._infer
        elif expert:
            line, queue = _EXPERT, self._expert
        else:
            return None
        linger_s = self._linger_s(queue, now_s)
        if linger_s > 0:
            return linger_s
        return self._batch(line, queue, now_s)

    def done(self, line: Line, rows: int, seconds: float) -> None:
        """A batch of so many rows was computed in this time."""
        queue = self._expert if line is _EXPERT else self._infer
        queue.computing_rows -= rows
        if not rows:
            return
        per_row_s = seconds / rows
        queue.row_s = per_row_s if queue.row_s is None else queue.row_s + GAIN * (per_row_s - queue.row_s)
        queue.batch_s += GAIN * (seconds - queue.batch_s)

    def _linger_s(self, queue: _Queue[Item], now_s: float) -> float:
        if queue.gap_s is None or queue.gap_s > LINGER_SHARE * queue.batch_s or queue.rows >= self.max_batch_rows:
            return 0.0
        return min(self.max_linger_s, 2 * queue.gap_s) - (now_s - queue.jobs[0].arrived_s)

    def _batch(self, line: Line, queue: _Queue[Item], now_s: float) -> Batch[Item]:
        if len(queue.jobs) == 1 and queue.jobs[0].deadline_s > now_s:  # the common case
            job = queue.jobs.popleft()
            queue.rows, queue.size = 0, 0
            queue.computing_rows += job.rows
            return Batch(line, (job,), (), job.rows)
        jobs: list[Job[Item]] = []
        late: list[Job[Item]] = []
        passed: list[Job[Item]] = []
        rows = 0
        while queue.jobs:
            job = queue.jobs[0]
            if job.deadline_s <= now_s:
                late.append(job)
            elif not jobs or (job.key == jobs[0].key and rows + job.rows <= self.max_batch_rows):
                jobs.append(job)
                rows += job.rows
            elif rows + job.rows > self.max_batch_rows or len(passed) >= 16:
                break
            else:
                passed.append(job)
                queue.jobs.popleft()
                continue
            queue.jobs.popleft()
            queue.rows -= job.rows
            queue.size -= job.size
        queue.jobs.extendleft(reversed(passed))
        queue.computing_rows += rows
        return Batch(line, tuple(jobs), tuple(late), rows)
