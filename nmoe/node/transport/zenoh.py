"""Zenoh: the mesh over real links, node to node, without a broker. The only file that imports zenoh.

Keys: ``nmoe/<mesh>/<extractor fingerprint>/node/<name>/<service>`` and ``nmoe/<mesh>/<extractor fingerprint>/alive/<name>/<edition>``, where
a changed card is a new edition.

What zenoh 1.10.2 does that this file answers to (measured, see docs/why):
- callbacks of one queryable are serial and run on its receiving thread: they only hand on
- ``get`` and ``reply`` block their caller when a link's queue is full. A window per node (``window.py``) keeps less on its way than a queue
  holds, so a small message is sent by whoever has it; a large one, or one from a callback, by a thread of ours
- a plain callable starts a Python thread per query: ``indirect=False`` everywhere
- flooding a frozen node stalls queries to healthy ones: ``window.py``
- an empty reply means gone, ``Timeout`` means frozen; a handler that raises gives an empty reply: here it becomes a refusal
- a session that was frozen for longer than its lease may come back half connected: ``rejoin`` opens a new one
"""

import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import zenoh

from nmoe.core.errors import MeshError
from nmoe.node.messages import MAGIC, RefusalCode, check_name, encode, refusal
from nmoe.node.transport.base import OnPeer, OnQuery, OnRefusal, OnReply, Respond, Service, Silence, Transport
from nmoe.node.transport.config import Mode, TlsFiles, ZenohSettings, check_endpoint
from nmoe.node.transport.refusals import LOG_FILTER, LogTap, Refused, link_refusal
from nmoe.node.transport.window import Window

MAX_REPLIES_QUEUED = 1024
DIRECT_BYTES = 256 << 10  # sent by whoever has it; well below what a link's queue holds
REJOIN_TRIES, REJOIN_PAUSE_S = 10, 0.5

_refusals: set[Callable[[Refused], None]] = set()  # who hears of failed handshakes
_thread = threading.local()  # whether this thread runs a callback of zenoh's


@dataclass(slots=True, kw_only=True, eq=False)
class _Ask:
    node: str
    key: str
    payload: bytes
    until_s: float
    on_reply: OnReply
    reply: bytes | Silence = Silence.GONE
    done: bool = False


@dataclass(slots=True)
class _Outbox:
    """A thread that sends, so that nobody else waits for a full link."""

    name: str
    queue: SimpleQueue[Callable[[], None] | None] = field(default_factory=SimpleQueue)
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, name=self.name)
        self.thread.start()

    def _run(self) -> None:
        while (send := self.queue.get()) is not None:
            send()

    def close(self) -> None:
        self.queue.put(None)
        self.thread.join()


class _Callback:
    """Marks its thread as zenoh's while it runs."""

    def __enter__(self) -> None:
        _thread.depth = self._depth() + 1

    def __exit__(self, *_: object) -> None:
        _thread.depth -= 1

    @staticmethod
    def _depth() -> int:
        return _thread.__dict__.get("depth", 0)

    @classmethod
    def running(cls) -> bool:
        """Say whether this thread runs one."""
        return cls._depth() > 0


class ZenohTransport(Transport):
    """One member's door to a mesh over zenoh, discovery by gossip from the seeds.

    Args:
        settings: endpoints, security and sizes; the mode must be peer or client.
        name: name of this node, one word; None for a client, which only watches and asks.
        fingerprint: the extractor's; None for a client of whatever is served in the mesh.

    Raises:
        ValueError: when a name is malformed.
        MeshError: when the endpoint cannot be listened on.
    """

    def __init__(self, settings: ZenohSettings, *, name: str | None, fingerprint: str | None) -> None:
        if settings.mesh is None:
            raise ValueError("a node or client needs the name of its mesh, got none")
        self.endpoint = settings.listen[0] if settings.listen else ""
        self._settings = settings
        self._name = None if name is None else check_name(name, "node name")
        self._root = f"nmoe/{settings.mesh}"
        self._fingerprint = None if fingerprint is None else check_name(fingerprint, "extractor fingerprint")
        self._lock = threading.Lock()
        self._open = True
        self._edition = 0
        self._token: zenoh.LivelinessToken | None = None
        self._on_peer: OnPeer | None = None
        self._on_refusal: OnRefusal | None = None
        self._services: dict[Service, OnQuery] = {}
        self._homes: dict[str, set[tuple[str, str]]] = {}  # fingerprint and edition of every token of a node
        self._windows: dict[str, Window[_Ask]] = {}
        self._rejoining: threading.Thread | None = None
        self._session = _open(settings)
        self._asks = _Outbox("nmoe-asks")
        self._replies = _Outbox("nmoe-replies")

    def announce(self) -> None:
        """See ``Transport``."""
        self._edition += 1
        before = self._token
        self._token = self._session.liveliness().declare_token(f"{self._home()}/alive/{self._name}/{self._edition}")
        if before is not None:
            before.undeclare()  # after the new one, so that nobody takes this node for gone

    def withdraw(self) -> None:
        """See ``Transport``."""
        if self._token is not None:
            self._token.undeclare()
            self._token = None

    def watch(self, on_peer: OnPeer) -> None:
        """See ``Transport``."""
        self._on_peer = on_peer
        self._subscribe(self._session)

    def watch_refusals(self, on_refusal: OnRefusal) -> None:
        """See ``Transport``; failed handshakes are heard of only in a process that called ``tap_log``."""
        self._on_refusal = on_refusal
        _refusals.add(self._refused_handshake)
        self._watch_links(self._session)

    def _refused_handshake(self, reason: Refused) -> None:
        if self._on_refusal is not None:
            self._on_refusal("unknown", reason.value)

    def _watch_links(self, session: zenoh.Session) -> None:
        members = self._settings.members
        if members is None or self._on_refusal is None:
            return
        allowed = members | self._settings.routers

        def linked(event: zenoh.LinkEvent) -> None:
            name = event.link.auth_identifier
            reason = link_refusal(name, allowed)
            if event.kind == zenoh.SampleKind.PUT and reason is not None and self._on_refusal is not None:
                self._on_refusal(name or str(event.link.dst), reason.value)

        handler = zenoh.handlers.Callback(linked, indirect=False)
        self._links = session.info.declare_link_events_listener(handler, history=True)

    def _subscribe(self, session: zenoh.Session) -> None:
        def changed(sample: zenoh.Sample) -> None:
            fingerprint, _, name, edition = str(sample.key_expr).removeprefix(f"{self._root}/").split("/")
            alive = sample.kind == zenoh.SampleKind.PUT
            with self._lock:
                if session is not self._session:  # the last words of a session that was replaced
                    return
                homes = self._homes.setdefault(name, set())
                before = bool(homes)
                if alive:
                    homes.add((fingerprint, edition))
                else:
                    homes.discard((fingerprint, edition))
                after = bool(homes)
                if not after:
                    del self._homes[name]
            if self._on_peer is not None and (alive or before != after):
                with _Callback():
                    self._on_peer(name, after)

        key = f"{self._root}/{self._fingerprint or '*'}/alive/*/*"
        handler = zenoh.handlers.Callback(changed, indirect=False)
        self._subscriber = session.liveliness().declare_subscriber(key, handler, history=True)

    def serve(self, service: Service, on_query: OnQuery) -> None:
        """See ``Transport``."""
        self._services[service] = on_query
        self._declare(self._session, service, on_query)

    def _declare(self, session: zenoh.Session, service: Service, on_query: OnQuery) -> None:
        key = f"{self._home()}/node/{self._name}/{service.value}"

        def arrived(query: zenoh.Query) -> None:
            if self._replies.queue.qsize() >= MAX_REPLIES_QUEUED:
                query.drop()  # the asker takes the empty reply for gone; we cannot say more than the link takes
                return
            try:
                with _Callback():
                    on_query(b"" if query.payload is None else query.payload.to_bytes(), self._responder(query, key))
            except Exception as error:  # noqa: BLE001  # zenoh would swallow it and the asker would learn nothing
                data = encode(refusal(RefusalCode.FAILED, f"{type(error).__name__}: {error}"))
                self._replies.queue.put(lambda: _send_reply(lambda: query.reply_err(data), query))

        session.declare_queryable(key, zenoh.handlers.Callback(arrived, indirect=False), complete=True)

    def _responder(self, query: zenoh.Query, key: str) -> Respond:
        def respond(data: bytes) -> None:
            if len(data) <= DIRECT_BYTES and not _Callback.running():
                _send_reply(lambda: query.reply(key, data, express=True), query)
            else:
                self._replies.queue.put(lambda: _send_reply(lambda: query.reply(key, data, express=True), query))

        return respond

    def ask(self, node: str, service: Service, payload: bytes, *, timeout_s: float, on_reply: OnReply) -> None:
        """See ``Transport``; waits in the window to that node for its turn."""
        now_s = time.monotonic()
        ready: list[_Ask] = []
        with self._lock:
            home = self._find(node)
            if home is None or not self._open:
                taken = None
            else:
                key = f"{self._root}/{home}/node/{node}/{service.value}"
                ask = _Ask(node=node, key=key, payload=payload, until_s=now_s + timeout_s, on_reply=on_reply)
                window = self._windows.setdefault(node, Window())
                taken = window.offer(len(payload), ask, now_s)
                ready = window.ready()
        self._launch(ready)
        if not taken:
            on_reply(Silence.GONE if taken is None else Silence.FULL)

    def rejoin(self) -> None:
        """See ``Transport``."""
        with self._lock:
            if not self._open or self._rejoining is not None:
                return
            self._rejoining = threading.Thread(target=self._rejoin, name="nmoe-rejoin")
            self._rejoining.start()

    def _rejoin(self) -> None:
        old = self._session
        with self._lock:
            gone = list(self._homes)
            self._homes.clear()
        for name in gone:
            if self._on_peer is not None:
                self._on_peer(name, False)
        old.close()  # frees the endpoint; ends outstanding queries as gone
        session = self._reopen()
        with self._lock:
            self._rejoining = None
            if session is None or not self._open:
                if session is not None:
                    session.close()
                return
            self._session = session
        for service, on_query in self._services.items():
            self._declare(session, service, on_query)
        if self._on_peer is not None:
            self._subscribe(session)
        self._watch_links(session)
        if self._token is not None:
            self._token = None  # went with its session
            self.announce()

    def _reopen(self) -> zenoh.Session | None:
        for _ in range(REJOIN_TRIES):
            if not self._open:
                return None
            try:
                return _open(self._settings)
            except MeshError:  # the old socket may linger for a moment
                time.sleep(REJOIN_PAUSE_S)
        return None

    def close(self) -> None:
        """See ``Transport``."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            waiting = [ask for window in self._windows.values() for _, ask in window.waiting]
            self._windows.clear()
        _refusals.discard(self._refused_handshake)
        if self._rejoining is not None:
            self._rejoining.join()
        self._replies.close()  # what is answered already still leaves
        self._asks.close()
        self._session.close()  # ends outstanding queries as gone
        for ask in waiting:
            ask.on_reply(Silence.GONE)

    def _home(self) -> str:
        if self._name is None or self._fingerprint is None:
            raise ValueError("only a node with a name and an extractor fingerprint can announce itself and serve")
        return f"{self._root}/{self._fingerprint}"

    def _find(self, node: str) -> str | None:
        if self._fingerprint is not None:
            return self._fingerprint
        homes = {fingerprint for fingerprint, _ in self._homes.get(node, ())}
        return next(iter(homes)) if len(homes) == 1 else None

    def _launch(self, asks: Sequence[_Ask]) -> None:
        for ask in asks:
            if len(ask.payload) <= DIRECT_BYTES and not _Callback.running():
                self._send(ask)
            else:
                self._asks.queue.put(lambda ask=ask: self._send(ask))  # type: ignore[misc]  # a default binds the loop's variable

    def _send(self, ask: _Ask) -> None:
        left_s = ask.until_s - time.monotonic()
        if left_s <= 0 or not self._open:
            ask.reply = Silence.TIMEOUT if self._open else Silence.GONE
            self._settle(ask, sent=False)
            return

        def replied(reply: zenoh.Reply) -> None:
            payload = reply.ok.payload if reply.ok is not None else reply.err.payload if reply.err is not None else None
            data = b"" if payload is None else payload.to_bytes()
            ask.reply = data if reply.ok is not None or data.startswith(MAGIC) else Silence.TIMEOUT

        def over() -> None:
            with _Callback():
                self._settle(ask, sent=True)

        try:
            self._session.get(
                ask.key,
                zenoh.handlers.Callback(replied, over, indirect=False),
                payload=ask.payload,
                timeout=left_s,
                consolidation=zenoh.ConsolidationMode.NONE,
                express=True,
            )
        except zenoh.ZError:  # the session is closed, or the link broke: to the asker the same as gone
            self._settle(ask, sent=False)

    def _settle(self, ask: _Ask, *, sent: bool) -> None:
        """Give the weight back, let the next ones go, and call the asker, once."""
        ready: list[_Ask] = []
        with self._lock:
            if ask.done:
                return
            ask.done = True
            window, dropped = self._windows.get(ask.node), []
            if window is not None:
                if sent and ask.reply is Silence.TIMEOUT:
                    dropped = window.timed_out(len(ask.payload), time.monotonic())
                else:
                    window.answered(len(ask.payload))
                ready = window.ready()
        self._launch(ready)
        ask.on_reply(ask.reply)
        for behind in dropped:
            behind.on_reply(Silence.FULL)


def tap_log() -> Callable[[], None]:
    """Read zenoh's log for refused handshakes, which it tells of nowhere else; once per process. Return what ends it.

    Standard output becomes a pipe that is read here; everything else written to it is passed on.
    """

    def refused(reason: Refused) -> None:
        for hear in tuple(_refusals):
            hear(reason)

    tap = LogTap(refused)
    zenoh.init_log_from_env_or(LOG_FILTER)
    return tap.close


def open_router(settings: ZenohSettings) -> Callable[[], None]:
    """Start passing on between peers that cannot reach each other; return what ends it.

    Raises:
        MeshError: when an endpoint cannot be listened on.
    """
    session = _open(settings)
    return lambda: session.close()  # zenoh's own type annotation says more than a caller needs


def _open(settings: ZenohSettings) -> zenoh.Session:
    config = zenoh.Config()
    for key, value in settings.entries().items():
        config.insert_json5(key, json.dumps(value))
    try:
        return zenoh.open(config)
    except zenoh.ZError as error:
        raise MeshError(f"cannot join mesh {settings.mesh} on {', '.join(settings.listen) or 'no endpoint'}: {_why(str(error))}") from error


def _why(text: str) -> str:
    """Zenoh's reason without the places in its source code."""
    if "Address already in use" in text:
        return "the address is already in use"
    return " ".join(re.sub(r" at /\S+", "", text).split())


def _send_reply(send: Callable[[], None], query: zenoh.Query) -> None:
    try:
        send()
    except zenoh.ZError:
        pass  # the asker is gone, so nobody is left to tell
    finally:
        query.drop()


__all__ = ["Mode", "TlsFiles", "ZenohSettings", "ZenohTransport", "check_endpoint", "open_router", "tap_log"]
