"""Answers: who waits for which request, what was answered, and how quickly."""

import json
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full, Queue
from typing import TextIO

import numpy as np
from torch import Tensor

from nmoe.node.messages import InferReply, Refusal

RATE_S = 10.0  # requests per second are counted over this long
MAX_REMEMBERED, MAX_REMEMBERED_BYTES = 512, 16 << 20
MAX_LINES_WAITING = 4096

Done = Callable[[InferReply | Refusal], None]


@dataclass(slots=True, kw_only=True)
class Asked:
    """A request in progress, and who waits for it."""

    images: Tensor
    done: Done
    arrived_s: float
    due_s: float
    k: int | None
    identity: str
    trace: str
    bytes_in: int = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """What feedback needs of an answered request: features [rows, dim], experts [rows, k], their logits [rows, k, classes]."""

    features: np.ndarray
    experts: np.ndarray
    logits: np.ndarray

    @property
    def size(self) -> int:
        """Bytes it takes."""
        return self.features.nbytes + self.experts.nbytes + self.logits.nbytes


class Answers:
    """The ledger of one node's infer requests; every request is answered once.

    Args:
        log: writes a line per request, or None.
    """

    def __init__(self, log: "RequestLog | None" = None) -> None:
        self._lock = threading.Lock()
        self._log = log
        self._open: dict[int, Asked] = {}
        self._seconds: deque[float] = deque(maxlen=1024)
        self._times: deque[float] = deque(maxlen=8192)
        self._remembered: OrderedDict[str, Answered] = OrderedDict()
        self._remembered_bytes = 0
        self.answered = 0
        self.degraded = 0
        self.refused: Counter[str] = Counter()

    def open(self, number: int, asked: Asked) -> None:
        """A request has arrived."""
        self._open[number] = asked

    def get(self, number: int) -> Asked | None:
        """Return a request that still waits."""
        return self._open.get(number)

    def __len__(self) -> int:
        return len(self._open)

    def answer(self, number: int, reply: InferReply) -> None:
        """Answer a request."""
        asked = self._open.pop(number, None)
        if asked is None:
            return
        now_s = time.monotonic()
        with self._lock:
            self.answered += 1
            self.degraded += reply.degraded
            self._seconds.append(now_s - asked.arrived_s)
            self._times.append(now_s)
        if self._log is not None:
            self._log.write(asked, reply)
        asked.done(reply)

    def refuse(self, number: int, refusal: Refusal) -> None:
        """Refuse a request."""
        asked = self._open.pop(number, None)
        if asked is not None:
            self.refuse_unread(asked, refusal)

    def refuse_unread(self, asked: Asked, refusal: Refusal) -> None:
        """Refuse a request that was never taken in."""
        with self._lock:
            self.refused[refusal.code.value] += 1
        if self._log is not None:
            self._log.write(asked, refusal)
        asked.done(refusal)

    def remember(self, identity: str, answered: Answered) -> None:
        """Keep what feedback on a request needs, for the last few hundred named ones, or fewer if they are large."""
        with self._lock:
            self._forget(identity)
            self._remembered[identity] = answered
            self._remembered_bytes += answered.size
            while len(self._remembered) > MAX_REMEMBERED or self._remembered_bytes > MAX_REMEMBERED_BYTES:
                self._forget(next(iter(self._remembered)))

    def _forget(self, identity: str) -> Answered | None:
        answered = self._remembered.pop(identity, None)
        self._remembered_bytes -= 0 if answered is None else answered.size
        return answered

    def recall(self, identity: str) -> Answered | None:
        """Return what was kept of a request, once: it teaches only once."""
        with self._lock:
            return self._forget(identity)

    def percentile(self, share: float) -> float | None:
        """Return a percentile of the seconds of the last requests."""
        with self._lock:
            ordered = sorted(self._seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None

    def per_second(self) -> float:
        """Return the requests answered per second of late."""
        now_s = time.monotonic()
        with self._lock:
            recent = sum(1 for at_s in reversed(self._times) if at_s > now_s - RATE_S)
        return recent / RATE_S


class RequestLog:
    """One JSON line per request, written by a thread of its own.

    A disk that is full or slow costs lines, which are counted, never requests.

    Args:
        path: appended to.

    Raises:
        OSError: when it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.errors = 0
        self._file: TextIO = path.open("a", encoding="utf-8")
        self._lines: Queue[str | None] = Queue(MAX_LINES_WAITING)
        self._thread = threading.Thread(target=self._run, name="nmoe-log")
        self._thread.start()

    def write(self, asked: Asked, said: InferReply | Refusal) -> None:
        """Write what came of a request."""
        line: dict[str, object] = {
            "time": round(time.time(), 3),  # the calendar's, for people; nothing is decided by it
            "id": asked.identity,
            "rows": len(asked.images),
            "seconds": round(time.monotonic() - asked.arrived_s, 6),
        }
        if isinstance(said, Refusal):
            line |= {"refused": said.code.value, "reason": said.reason}
        else:
            names = sorted({said.names[index] for index in said.experts.flatten().tolist() if index >= 0})
            line |= {"experts": names, "degraded": said.degraded, "bytes_sent": said.bytes_sent, "bytes_received": said.bytes_received}
        try:
            self._lines.put_nowait(json.dumps(line))
        except Full:
            self.errors += 1

    def close(self) -> None:
        """Write what waits and end the thread."""
        self._lines.put(None)
        self._thread.join()
        try:
            self._file.close()
        except OSError:  # what is buffered cannot be written
            self.errors += 1

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            lines = [line]
            try:
                while (more := self._lines.get_nowait()) is not None:
                    lines.append(more)
                self._lines.put(None)
            except Empty:
                pass
            try:
                self._file.write("".join(f"{one}\n" for one in lines))
                self._file.flush()
            except OSError:
                self.errors += len(lines)
