"""Memory: a mesh within one process, whose nodes can be made to vanish, freeze, refuse or lag. For tests and single-process use."""

import heapq
import itertools
import threading
import time
from collections.abc import Callable

from nmoe.node.messages import RefusalCode, check_name, encode, refusal
from nmoe.node.transport.base import OnPeer, OnQuery, OnRefusal, OnReply, Respond, Service, Silence, Transport


class MemoryHub:
    """The network between ``MemoryTransport``s; one thread, for delays and timeouts.

    Args:
        delay_s: how long each message takes.
        lease_s: how long after ``freeze`` a node's announcement ends; None for never.
    """

    def __init__(self, *, delay_s: float = 0.0, lease_s: float | None = 1.0) -> None:
        self.delay_s = delay_s
        self.lease_s = lease_s
        self._lock = threading.Condition()
        self._services: dict[tuple[str, Service], OnQuery] = {}
        self._alive: set[str] = set()
        self._frozen: set[str] = set()
        self._busy: set[str] = set()
        self._watchers: dict[int, tuple[OnPeer, set[str]]] = {}  # what each watcher has been told
        self._asked: dict[int, tuple[str, int, OnReply]] = {}  # who is asked, who asks, what to call
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="nmoe-memory-hub")
        self._thread.start()

    def transport(self, name: str) -> "MemoryTransport":
        """Return a door for a node or client of this name."""
        return MemoryTransport(self, check_name(name, "node name"))

    def kill(self, name: str) -> None:
        """Make a node vanish as by kill -9: its announcement ends, its outstanding queries end as gone."""
        self._remove(name)
        self._notice()

    def freeze(self, name: str) -> None:
        """Make a node as by SIGSTOP: queries reach it but nothing comes back; after the lease its announcement ends."""
        with self._lock:
            self._frozen.add(name)
        if self.lease_s is not None:
            self._later(self.lease_s, lambda: self._expire(name))

    def busy(self, name: str) -> None:
        """Let a node refuse every query."""
        with self._lock:
            self._busy.add(name)

    def restore(self, name: str) -> None:
        """Undo ``freeze`` and ``busy``."""
        with self._lock:
            self._frozen.discard(name)
            self._busy.discard(name)
            if any(node == name for node, _ in self._services):
                self._alive.add(name)
        self._notice()

    def close(self) -> None:
        """Stop the hub's thread."""
        with self._lock:
            self._open = False
            self._lock.notify()
        self._thread.join()

    def __enter__(self) -> "MemoryHub":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _announce(self, name: str) -> None:
        with self._lock:
            again = name in self._alive
            self._alive.add(name)
            if again:  # its card has changed: tell everybody anew
                for _, told in self._watchers.values():
                    told.discard(name)
        self._notice()

    def _withdraw(self, name: str) -> None:
        with self._lock:
            self._alive.discard(name)
        self._notice()

    def _watch(self, key: int, on_peer: OnPeer) -> None:
        with self._lock:
            self._watchers[key] = (on_peer, set())
        self._notice()

    def _serve(self, name: str, service: Service, on_query: OnQuery) -> None:
        with self._lock:
            self._services[name, service] = on_query

    def _leave(self, key: int, name: str) -> None:
        with self._lock:
            self._watchers.pop(key, None)
        self._remove(name)
        self._cut_off(lambda _, asker: asker == key)
        self._notice()

    def _remove(self, name: str) -> None:
        with self._lock:
            self._alive.discard(name)
            for service in Service:
                self._services.pop((name, service), None)
        self._cut_off(lambda node, _: node == name)

    def _cut_off(self, concerned: Callable[[str, int], bool]) -> None:
        with self._lock:
            numbers = [number for number, (node, asker, _) in self._asked.items() if concerned(node, asker)]
            ended = [self._asked.pop(number)[2] for number in numbers]
        for on_reply in ended:
            on_reply(Silence.GONE)

    def _expire(self, name: str) -> None:
        with self._lock:
            if name in self._frozen:
                self._alive.discard(name)
        self._notice()

    def _notice(self) -> None:
        with self._lock:  # under the lock, so that no watcher hears of changes in the wrong order
            for on_peer, told in self._watchers.values():
                for name in sorted(told ^ self._alive):
                    on_peer(name, name in self._alive)
                told.clear()
                told.update(self._alive)

    def _ask(self, key: int, node: str, service: Service, payload: bytes, timeout_s: float, on_reply: OnReply) -> None:
        number = next(self._count)

        def finish(reply: bytes | Silence) -> None:
            with self._lock:
                first = self._asked.pop(number, None) is not None
            if first:
                on_reply(reply)

        def respond(reply: bytes) -> None:
            with self._lock:
                lost = node in self._frozen
            if not lost:
                self._later(self.delay_s, lambda: finish(reply))

        with self._lock:
            self._asked[number] = (node, key, on_reply)
        self._later(timeout_s, lambda: finish(Silence.TIMEOUT))
        self._later(self.delay_s, lambda: self._deliver(node, service, payload, respond, lambda: finish(Silence.GONE)))

    def _deliver(self, node: str, service: Service, payload: bytes, respond: Respond, gone: Callable[[], None]) -> None:
        with self._lock:
            on_query, frozen, busy = self._services.get((node, service)), node in self._frozen, node in self._busy
        if on_query is None:
            gone()
        elif busy:
            respond(encode(refusal(RefusalCode.BUSY, f"{node} is busy")))
        elif not frozen:
            try:
                on_query(payload, respond)
            except Exception as error:  # noqa: BLE001  # the transport's promise: a query is answered even if its handler is broken
                respond(encode(refusal(RefusalCode.FAILED, f"{type(error).__name__}: {error}")))

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        with self._lock:
            heapq.heappush(self._heap, (time.monotonic() + seconds, next(self._count), call))
            self._lock.notify()

    def _run(self) -> None:
        while True:
            with self._lock:
                while self._open and (not self._heap or self._heap[0][0] > time.monotonic()):
                    self._lock.wait(self._heap[0][0] - time.monotonic() if self._heap else None)
                if not self._open:
                    return
                call = heapq.heappop(self._heap)[2]
            call()


class MemoryTransport(Transport):
    """One member's door to a ``MemoryHub``."""

    def __init__(self, hub: MemoryHub, name: str) -> None:
        self.endpoint = f"memory/{name}"
        self._hub = hub
        self._name = name
        self._open = True

    def announce(self) -> None:
        """See ``Transport``."""
        self._hub._announce(self._name)

    def watch(self, on_peer: OnPeer) -> None:
        """See ``Transport``."""
        self._hub._watch(id(self), on_peer)

    def withdraw(self) -> None:
        """See ``Transport``."""
        self._hub._withdraw(self._name)

    def watch_refusals(self, on_refusal: OnRefusal) -> None:
        """See ``Transport``; everybody in this process is let in."""

    @property
    def joined(self) -> bool:
        """See ``Transport``."""
        return True

    def rejoin(self) -> None:
        """See ``Transport``; nothing is lost here."""

    def serve(self, service: Service, on_query: OnQuery) -> None:
        """See ``Transport``."""
        self._hub._serve(self._name, service, on_query)

    def ask(self, node: str, service: Service, payload: bytes, *, timeout_s: float, on_reply: OnReply) -> None:
        """See ``Transport``."""
        self._hub._ask(id(self), node, service, payload, timeout_s, on_reply)

    def close(self) -> None:
        """See ``Transport``."""
        if self._open:
            self._open = False
            self._hub._leave(id(self), self._name)
