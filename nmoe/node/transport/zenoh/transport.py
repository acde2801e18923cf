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
from collections.abc import Callable

import zenoh

from nmoe.core.errors import MeshError
from nmoe.node.messages import MAGIC, RefusalCode, check_name, encode, refusal
from nmoe.node.timers import Timers
from nmoe.node.transport.asks import Ask, Asks
from nmoe.node.transport.base import OnPeer, OnQuery, OnRefusal, OnReply, Respond, Service, Silence, Transport
from nmoe.node.transport.config import ZenohSettings, direct_host
from nmoe.node.transport.direct_links import DirectLinks
from nmoe.node.transport.outbox import Callback, Outbox
from nmoe.node.transport.refusals import Refused, link_refusal
from nmoe.node.transport.zenoh.session import open_session, refusals

MAX_REPLIES_QUEUED = 1024
NO_ADDRESS = "-"  # in a token: no direct connections
SMALL_BYTES = 256 << 10  # sent by whoever has it; well below what a link's queue holds
FIRST_PAUSE_S, MAX_PAUSE_S = 0.05, 2.0  # between tries to rejoin


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
        self._closing = threading.Event()
        self._announced = False
        self._edition = 0
        self._token: zenoh.LivelinessToken | None = None
        self._on_peer: OnPeer | None = None
        self._on_refusal: OnRefusal | None = None
        self._services: dict[Service, OnQuery] = {}
        self._homes: dict[str, set[tuple[str, str]]] = {}  # fingerprint and edition of every token of a node
        self._rejoining: threading.Thread | None = None
        self._session = open_session(settings)
        label = name or "client"
        self._timers = Timers(f"nmoe-asks-due-{label}")
        self._timers.start()
        self._asks = Asks(self._send, self._timers)
        self._direct = DirectLinks(label, tls=settings.tls, members=settings.members, on_refusal=self._refused)
        self._address = self._listen_directly()
        self._outbox = Outbox("nmoe-asks")
        self._replies = Outbox("nmoe-replies")

    def _listen_directly(self) -> str:
        """Let others connect directly; return the address to be told, ``-`` for none."""
        host = direct_host(self.endpoint)
        if self._name is None or self._fingerprint is None or host is None:
            return NO_ADDRESS
        try:
            port = self._direct.listen(host, self._greeting(self._fingerprint, self._name), self._settings.direct_port)
        except OSError as error:
            raise MeshError(f"cannot listen on {host}: {error.strerror}") from error
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _greeting(self, fingerprint: str, name: str) -> str:
        return f"{self._settings.mesh}/{fingerprint}/{name}"

    def announce(self) -> None:
        """See ``Transport``."""
        self._announced = True
        if self.joined:
            self._declare_token()

    def _declare_token(self) -> None:
        self._edition += 1
        before = self._token
        self._token = self._session.liveliness().declare_token(f"{self._home()}/alive/{self._name}/{self._edition}/{self._address}")
        if before is not None:
            before.undeclare()  # after the new one, so that nobody takes this node for gone

    def withdraw(self) -> None:
        """See ``Transport``."""
        self._announced = False
        if self._token is not None and self.joined:
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
                self._forget(name)
            if self._on_peer is not None and (alive or before != after):
                with Callback():
                    self._on_peer(name, after)

        key = f"{self._root}/{self._fingerprint or '*'}/alive/*/*/*"
        handler = zenoh.handlers.Callback(changed, indirect=False)
        self._subscriber = session.liveliness().declare_subscriber(key, handler, history=True)

    def _forget(self, node: str) -> None:
        self._direct.lost(node)
        self._asks.lost(node)

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
        with self._lock:
            home = self._find(node) if self._open else None
        if home is None:
            on_reply(Silence.GONE)
            return
        key = f"{self._root}/{home}/node/{node}/{service.value}"
        until_s = time.monotonic() + timeout_s
        self._asks.submit(Ask(node=node, service=service, key=key, payload=payload, until_s=until_s, on_reply=on_reply))

    @property
    def joined(self) -> bool:
        """See ``Transport``."""
        return self._rejoining is None

    def rejoin(self) -> None:
        """See ``Transport``; goes on trying until it works or the transport is closed."""
        with self._lock:
            if not self._open or self._rejoining is not None:
                return
            self._rejoining = threading.Thread(target=self._rejoin, name="nmoe-rejoin")
            self._rejoining.start()

    def _rejoin(self) -> None:
        with self._lock:
            gone = list(self._homes)
            self._homes.clear()
        for name in gone:
            self._forget(name)
            if self._on_peer is not None:
                self._on_peer(name, False)
        self._session.close()  # frees the endpoint; ends outstanding queries as gone
        session = self._reopen()
        if session is None:
            return
        try:
            self._session = session
            for service, on_query in self._services.items():
                self._declare(session, service, on_query)
            if self._on_peer is not None:
                self._subscribe(session)
            self._watch_links(session)
            self._token = None  # went with its session
            if self._announced:
                self._declare_token()
        except zenoh.ZError:  # the transport was closed meanwhile
            return
        finally:
            self._rejoining = None

    def _reopen(self) -> zenoh.Session | None:
        pause_s = FIRST_PAUSE_S
        while not self._closing.wait(pause_s):
            try:
                return open_session(self._settings)
            except MeshError:  # the old socket may linger, or the machine has no address yet
                pause_s = min(MAX_PAUSE_S, 2 * pause_s)
        return None

    def close(self) -> None:
        """See ``Transport``."""
        with self._lock:
            if not self._open:
                return
            self._open = False
        self._closing.set()
        refusals.discard(self._refused_handshake)
        rejoining = self._rejoining
        if rejoining is not None:
            rejoining.join()
        self._asks.close()
        self._direct.close()
        self._replies.close()  # what is answered already still leaves
        self._outbox.close()
        self._session.close()  # ends outstanding queries as gone
        self._timers.close()

    def _home(self) -> str:
        if self._name is None or self._fingerprint is None:
            raise ValueError("only a node with a name and an extractor fingerprint can announce itself and serve")
        return f"{self._root}/{self._fingerprint}"

    def _find(self, node: str) -> str | None:
        if self._fingerprint is not None:
            return self._fingerprint
        homes = {fingerprint for fingerprint, _ in self._homes.get(node, ())}
        return next(iter(homes)) if len(homes) == 1 else None

    def _send(self, ask: Ask) -> Silence | None:
        """Send a query, directly where that goes; see ``Asks``."""
        if not self._open:
            return Silence.GONE
        number = self._direct.ask(ask.node, ask.service, ask.payload, lambda reply: self._direct_replied(ask, reply))
        if number is not None:
            ask.forget = lambda: self._direct.forget(ask.node, number)
        elif len(ask.payload) <= SMALL_BYTES and not Callback.running():
            self._send_through_zenoh(ask)
        else:
            self._outbox.queue.put(lambda: self._send_through_zenoh(ask))
        return None

    def _direct_replied(self, ask: Ask, reply: bytes | Silence) -> None:
        with Callback():
            self._asks.settle(ask, reply)

    def _send_through_zenoh(self, ask: Ask) -> None:
        replies: list[bytes | Silence] = []

        def replied(reply: zenoh.Reply) -> None:
            payload = reply.ok.payload if reply.ok is not None else reply.err.payload if reply.err is not None else None
            data = b"" if payload is None else payload.to_bytes()
            replies.append(data if reply.ok is not None or data.startswith(MAGIC) else Silence.TIMEOUT)

        def over() -> None:
            with Callback():
                self._asks.settle(ask, replies[-1] if replies else Silence.GONE)

        try:
            self._session.get(
                ask.key,
                zenoh.handlers.Callback(replied, over, indirect=False),
                payload=ask.payload,
                timeout=max(0.001, ask.until_s - time.monotonic()),
                consolidation=zenoh.ConsolidationMode.NONE,
                express=True,
            )
        except zenoh.ZError:  # the session is closed, or the link broke: to the asker the same as gone
            self._asks.settle(ask, Silence.GONE)


def _send_reply(send: Callable[[], None], query: zenoh.Query) -> None:
    try:
        send()
    except zenoh.ZError:
        pass  # the asker is gone, so nobody is left to tell
    finally:
        query.drop()
