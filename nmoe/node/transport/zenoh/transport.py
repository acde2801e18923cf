"""Zenoh: the mesh over real links, node to node, without a broker. Only this folder imports zenoh.

Where a node can be reached by a stream of its own, queries take that (``direct.py``); discovery, liveliness and the rest stay with zenoh.

Keys: ``nmoe/<mesh>/<extractor fingerprint>/node/<name>/<service>`` and ``nmoe/<mesh>/<extractor fingerprint>/alive/<name>/<edition>``,
where a changed card is a new edition.

What zenoh 1.10.2 does that this file answers to (measured, see docs/why):
- callbacks of one queryable are serial and run on its receiving thread: they only hand on
- ``get`` and ``reply`` block their caller when a link's queue is full. A window per node (``window.py``) keeps less on its way than a queue
  holds, so a small message is sent by whoever has it; a large one, or one from a callback, by a thread of ours
- a plain callable starts a Python thread per query: ``indirect=False`` everywhere
- flooding a frozen node stalls queries to healthy ones: ``window.py``
- an empty reply means gone, ``Timeout`` means frozen; a handler that raises gives an empty reply: here it becomes a refusal
- a session that was frozen for longer than its lease may come back half connected: ``rejoin`` opens a new one
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zenoh

from nmoe.core.errors import MeshError
from nmoe.node.messages import MAGIC, RefusalCode, check_name, encode, refusal
from nmoe.node.timers import Timers
from nmoe.node.transport.base import OnPeer, OnQuery, OnRefusal, OnReply, Respond, Service, Silence, Transport
from nmoe.node.transport.config import ZenohSettings, direct_host
from nmoe.node.transport.direct_links import DirectLinks
from nmoe.node.transport.outbox import Callback, Outbox
from nmoe.node.transport.refusals import Refused, link_refusal
from nmoe.node.transport.window import Window
from nmoe.node.transport.zenoh.session import open_session, refusals

MAX_REPLIES_QUEUED = 1024
NO_ADDRESS = "-"  # in a token: no direct connections
SMALL_BYTES = 256 << 10  # sent by whoever has it; well below what a link's queue holds
REJOIN_TRIES, REJOIN_PAUSE_S = 10, 0.5


@dataclass(slots=True, kw_only=True, eq=False)
class _Ask:
    node: str
    service: Service
    key: str
    payload: bytes
    until_s: float
    on_reply: OnReply
    reply: bytes | Silence = Silence.GONE
    done: bool = False


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
        self._session = open_session(settings)
        label = name or "client"
        self._timers = Timers(f"nmoe-asks-due-{label}")
        self._timers.start()
        self._direct = DirectLinks(label, tls=settings.tls, members=settings.members, on_refusal=self._refused)
        self._address = self._listen_directly()
        self._asks = Outbox("nmoe-asks")
        self._replies = Outbox("nmoe-replies")

    def _listen_directly(self) -> str:
        """Let others connect directly; return the address to be told, ``-`` for none."""
        host = direct_host(self.endpoint)
        if self._name is None or self._fingerprint is None or host is None:
            return NO_ADDRESS
        try:
            port = self._direct.listen(host, self._greeting(self._fingerprint, self._name))
        except OSError as error:
            raise MeshError(f"cannot listen on {host}: {error.strerror}") from error
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _greeting(self, fingerprint: str, name: str) -> str:
        return f"{self._settings.mesh}/{fingerprint}/{name}"

    def announce(self) -> None:
        """See ``Transport``."""
        self._edition += 1
        before = self._token
        self._token = self._session.liveliness().declare_token(f"{self._home()}/alive/{self._name}/{self._edition}/{self._address}")
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
        refusals.add(self._refused_handshake)
        self._watch_links(self._session)

    def _refused_handshake(self, reason: Refused) -> None:
        self._refused("unknown", reason.value)

    def _refused(self, who: str, reason: str) -> None:
        if self._on_refusal is not None:
            self._on_refusal(who, reason)

    def _watch_links(self, session: zenoh.Session) -> None:
        members = self._settings.members
        if members is None or self._on_refusal is None:
            return
        allowed = members | self._settings.routers

        def linked(event: zenoh.LinkEvent) -> None:
            name = event.link.auth_identifier
            reason = link_refusal(name, allowed)
            if event.kind == zenoh.SampleKind.PUT and reason is not None:
                self._refused(name or str(event.link.dst), reason.value)

        handler = zenoh.handlers.Callback(linked, indirect=False)
        self._links = session.info.declare_link_events_listener(handler, history=True)

    def _subscribe(self, session: zenoh.Session) -> None:
        def changed(sample: zenoh.Sample) -> None:
            fingerprint, _, name, edition, address = str(sample.key_expr).removeprefix(f"{self._root}/").split("/")
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
            if alive and address != NO_ADDRESS and name != self._name:
                self._direct.found(name, address, self._greeting(fingerprint, name))
            elif not after:
                self._direct.lost(name)
            if self._on_peer is not None and (alive or before != after):
                with Callback():
                    self._on_peer(name, after)

        key = f"{self._root}/{self._fingerprint or '*'}/alive/*/*/*"
        handler = zenoh.handlers.Callback(changed, indirect=False)
        self._subscriber = session.liveliness().declare_subscriber(key, handler, history=True)

    def serve(self, service: Service, on_query: OnQuery) -> None:
        """See ``Transport``."""
        self._services[service] = on_query
        self._direct.serve(service, self._guarded(on_query))
        self._declare(self._session, service, on_query)

    def _declare(self, session: zenoh.Session, service: Service, on_query: OnQuery) -> None:
        key = f"{self._home()}/node/{self._name}/{service.value}"

        def arrived(query: zenoh.Query) -> None:
            if self._replies.queue.qsize() >= MAX_REPLIES_QUEUED:
                query.drop()  # the asker takes the empty reply for gone; we cannot say more than the link takes
                return
            try:
                with Callback():
                    on_query(b"" if query.payload is None else query.payload.to_bytes(), self._responder(query, key))
            except Exception as error:  # noqa: BLE001  # zenoh would swallow it and the asker would learn nothing
                data = encode(refusal(RefusalCode.FAILED, f"{type(error).__name__}: {error}"))
                self._replies.queue.put(lambda: _send_reply(lambda: query.reply_err(data), query))

        session.declare_queryable(key, zenoh.handlers.Callback(arrived, indirect=False), complete=True)

    def _guarded(self, on_query: OnQuery) -> OnQuery:
        """Answer by a refusal when a handler raises."""

        def asked(data: bytes, respond: Respond) -> None:
            try:
                with Callback():
                    on_query(data, respond)
            except Exception as error:  # noqa: BLE001  # the stream's thread serves others too
                respond(encode(refusal(RefusalCode.FAILED, f"{type(error).__name__}: {error}")))

        return asked

    def _responder(self, query: zenoh.Query, key: str) -> Respond:
        def respond(data: bytes) -> None:
            if len(data) <= SMALL_BYTES and not Callback.running():
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
                ask = _Ask(node=node, service=service, key=key, payload=payload, until_s=now_s + timeout_s, on_reply=on_reply)
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
            self._direct.lost(name)
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
                return open_session(self._settings)
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
        refusals.discard(self._refused_handshake)
        if self._rejoining is not None:
            self._rejoining.join()
        self._timers.close()
        self._direct.close()
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
            if self._direct.reaches(ask.node) or (len(ask.payload) <= SMALL_BYTES and not Callback.running()):
                self._send(ask)
            else:
                self._asks.queue.put(lambda ask=ask: self._send(ask))  # type: ignore[misc]  # a default binds the loop's variable

    def _send(self, ask: _Ask) -> None:
        left_s = ask.until_s - time.monotonic()
        if left_s <= 0 or not self._open:
            ask.reply = Silence.TIMEOUT if self._open else Silence.GONE
            self._settle(ask, sent=False)
            return
        number = self._direct.ask(ask.node, ask.service, ask.payload, lambda reply: self._direct_replied(ask, reply))
        if number is not None:
            self._timers.at(ask.until_s, lambda: self._overdue(ask, number))
            return
        self._send_through_zenoh(ask, left_s)

    def _direct_replied(self, ask: _Ask, reply: bytes | Silence) -> None:
        ask.reply = reply
        with Callback():
            self._settle(ask, sent=True)

    def _overdue(self, ask: _Ask, number: int) -> None:
        if not ask.done and self._direct.forget(ask.node, number):
            ask.reply = Silence.TIMEOUT
            self._settle(ask, sent=True)

    def _send_through_zenoh(self, ask: _Ask, left_s: float) -> None:
        def replied(reply: zenoh.Reply) -> None:
            payload = reply.ok.payload if reply.ok is not None else reply.err.payload if reply.err is not None else None
            data = b"" if payload is None else payload.to_bytes()
            ask.reply = data if reply.ok is not None or data.startswith(MAGIC) else Silence.TIMEOUT

        def over() -> None:
            with Callback():
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


def _send_reply(send: Callable[[], None], query: zenoh.Query) -> None:
    try:
        send()
    except zenoh.ZError:
        pass  # the asker is gone, so nobody is left to tell
    finally:
        query.drop()
