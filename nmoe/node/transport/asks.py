"""Asks: queries under way, each in its window, each settled exactly once and at the latest at its time."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nmoe.node.timers import Timer, Timers
from nmoe.node.transport.base import OnReply, Service, Silence
from nmoe.node.transport.window import Window

Send = Callable[["Ask"], Silence | None]


@dataclass(slots=True, kw_only=True, eq=False)
class Ask:
    """One query. Payload and callback are let go as soon as it is settled."""

    node: str
    service: Service
    key: str
    payload: bytes
    until_s: float
    on_reply: OnReply | None
    size: int = field(init=False)
    timer: Timer | None = None
    forget: Callable[[], object] | None = None  # tells whoever carries it that nobody waits any more

    def __post_init__(self) -> None:
        self.size = len(self.payload)


class Asks:
    """The queries of one member.

    Args:
        send: sends a query, after which ``settle`` follows; or returns at once why it cannot.
        timers: calls at the queries' times.
    """

    def __init__(self, send: Send, timers: Timers) -> None:
        self._send = send
        self._timers = timers
        self._lock = threading.Lock()
        self._windows: dict[str, Window[Ask]] = {}
        self._open = True

    def submit(self, ask: Ask) -> None:
        """Send a query when its turn comes."""
        with self._lock:
            window = self._windows.setdefault(ask.node, Window())
            taken = self._open and window.offer(ask.size, ask, time.monotonic())
            ready = window.ready() if taken else []
        if not taken:
            _tell(ask, Silence.FULL if self._open else Silence.GONE)
            return
        ask.timer = self._timers.at(ask.until_s, lambda: self._overdue(ask))
        self._launch(ready)

    def settle(self, ask: Ask, reply: bytes | Silence) -> None:
        """A query that was sent has its reply, or has none. Later calls for it change nothing."""
        self._launch(self._conclude(ask, reply, sent=True))

    def lost(self, node: str) -> None:
        """A node is gone: what waits for its turn to be sent there is over, and its window is forgotten."""
        with self._lock:
            window = self._windows.pop(node, None)
        for _, ask in () if window is None else window.waiting:
            _tell(ask, Silence.GONE, self._timers)

    def close(self) -> None:
        """End what waits for its turn as gone; what was sent is settled by whoever carries it."""
        with self._lock:
            self._open = False
            waiting = [ask for window in self._windows.values() for _, ask in window.waiting]
            self._windows.clear()
        for ask in waiting:
            _tell(ask, Silence.GONE, self._timers)

    def _launch(self, asks: Sequence[Ask]) -> None:
        """Send queries; one that cannot be sent makes room for the next, without going deeper."""
        todo = deque(asks)
        while todo:
            ask = todo.popleft()
            failed = Silence.TIMEOUT if ask.until_s <= time.monotonic() else self._send(ask)
            if failed is not None:
                todo.extend(self._conclude(ask, failed, sent=False))

    def _overdue(self, ask: Ask) -> None:
        if ask.forget is not None:
            ask.forget()
        with self._lock:
            window = self._windows.get(ask.node)
            waited = window is not None and window.withdraw(ask.size, ask)
        if waited:
            _tell(ask, Silence.TIMEOUT)
        else:
            self.settle(ask, Silence.TIMEOUT)

    def _conclude(self, ask: Ask, reply: bytes | Silence, *, sent: bool) -> list[Ask]:
        """Give the weight back and call the asker; return the queries that may be sent now."""
        ready: list[Ask] = []
        dropped: list[Ask] = []
        with self._lock:
            if ask.on_reply is None:
                return []
            on_reply, ask.on_reply = ask.on_reply, None
            window = self._windows.get(ask.node)
            if window is not None:
                if not sent:
                    window.unsent(ask.size)
                elif reply is Silence.TIMEOUT:
                    dropped = window.timed_out(ask.size, time.monotonic())
                else:
                    window.answered(ask.size)
                ready = window.ready()
        _let_go(ask, self._timers)
        on_reply(reply)
        for behind in dropped:
            _tell(behind, Silence.FULL, self._timers)
        return ready


def _tell(ask: Ask, reply: Silence, timers: Timers | None = None) -> None:
    """Settle a query that is in no window."""
    on_reply, ask.on_reply = ask.on_reply, None
    _let_go(ask, timers)
    if on_reply is not None:
        on_reply(reply)


def _let_go(ask: Ask, timers: Timers | None) -> None:
    ask.payload = b""
    ask.forget = None
    if ask.timer is not None and timers is not None:
        timers.cancel(ask.timer)
