"""Zenoh: the mesh over real links, node to node, without a broker. The only file that imports zenoh.

Keys: ``nmoe/<mesh>/<extractor fingerprint>/node/<name>/<service>`` and ``nmoe/<mesh>/<extractor fingerprint>/alive/<name>``.

What zenoh 1.10.2 does that this file answers to (measured, see docs/why):
- callbacks of one queryable are serial and run on its receiving thread: they only hand on; sending is done by two threads of ours
- ``get`` blocks its caller when a link is full: so never on a thread that keeps deadlines
- a plain callable starts a Python thread per query: ``indirect=False`` everywhere
- flooding a frozen node stalls queries to healthy ones: ``window.py``
- an empty reply means gone, ``Timeout`` means frozen; a handler that raises gives an empty reply: here it becomes a refusal
"""

import ipaddress
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import zenoh

from nmoe.core.errors import MeshError
from nmoe.node.messages import MAGIC, RefusalCode, check_name, encode, refusal
from nmoe.node.transport.base import OnPeer, OnQuery, OnReply, Service, Silence, Transport
from nmoe.node.transport.window import Window

MAX_REPLIES_QUEUED = 1024
_ENDPOINT = re.compile(r"(tcp|tls|quic)/(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The files of mutual TLS: who is trusted, and who this is. Certificates need an IP as alternative name where IPs are dialled."""

    root_ca: Path
    certificate: Path
    private_key: Path


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


class ZenohTransport(Transport):
    """One member's door to a mesh over zenoh, in peer mode, discovery by gossip from the seeds.

    Args:
        mesh: name of the mesh, one word.
        name: name of this node, one word; None for a client, which only watches and asks.
        fingerprint: the extractor's; None for a client of whatever is served in the mesh.
        listen: endpoint such as ``tcp/127.0.0.1:7447``; port 0 for any.
        seeds: endpoints of nodes to begin with; give two or three. The own one is left out.
        insecure: allow plain tcp beyond this machine.
        tls: needed for ``tls/`` and ``quic/`` endpoints.
        lease_s: how long a frozen node counts as alive.

    Raises:
        ValueError: when a name or endpoint is malformed, or an endpoint is plain tcp beyond this machine without ``insecure``.
        MeshError: when the endpoint cannot be listened on.
    """

    def __init__(
        self,
        *,
        mesh: str,
        name: str | None,
        fingerprint: str | None,
        listen: str,
        seeds: Sequence[str],
        insecure: bool = False,
        tls: TlsFiles | None = None,
        lease_s: float = 1.0,
    ) -> None:
        for endpoint in (listen, *seeds):
            check_endpoint(endpoint, insecure=insecure)
        self.endpoint = listen
        self._name = None if name is None else check_name(name, "node name")
        self._root = f"nmoe/{check_name(mesh, 'mesh name')}"
        self._fingerprint = None if fingerprint is None else check_name(fingerprint, "extractor fingerprint")
        self._lock = threading.Lock()
        self._open = True
        self._homes: dict[str, set[str]] = {}  # fingerprints under which each node is alive
        self._windows: dict[str, Window[_Ask]] = {}
        try:
            self._session = zenoh.open(_config(listen, [seed for seed in seeds if seed != listen], tls, lease_s))
        except zenoh.ZError as error:
            raise MeshError(f"cannot join mesh {mesh} on {listen}: {_why(str(error))}") from error
        self._asks = _Outbox("nmoe-asks")
        self._replies = _Outbox("nmoe-replies")

    def announce(self) -> None:
        """See ``Transport``."""
        self._token = self._session.liveliness().declare_token(f"{self._home()}/alive/{self._name}")

    def watch(self, on_peer: OnPeer) -> None:
        """See ``Transport``."""

        def changed(sample: zenoh.Sample) -> None:
            fingerprint, _, name = str(sample.key_expr).removeprefix(f"{self._root}/").split("/")
            with self._lock:
                homes = self._homes.setdefault(name, set())
                before = bool(homes)
                if sample.kind == zenoh.SampleKind.PUT:
                    homes.add(fingerprint)
                else:
                    homes.discard(fingerprint)
                after = bool(homes)
                if not after:
                    del self._homes[name]
            if before != after:
                on_peer(name, after)

        key = f"{self._root}/{self._fingerprint or '*'}/alive/*"
        handler = zenoh.handlers.Callback(changed, indirect=False)
        self._subscriber = self._session.liveliness().declare_subscriber(key, handler, history=True)

    def serve(self, service: Service, on_query: OnQuery) -> None:
        """See ``Transport``."""
        key = f"{self._home()}/node/{self._name}/{service.value}"

        def arrived(query: zenoh.Query) -> None:
            if self._replies.queue.qsize() >= MAX_REPLIES_QUEUED:
                query.drop()  # the asker takes the empty reply for gone; we cannot say more than the link takes
                return
            try:
                on_query(b"" if query.payload is None else query.payload.to_bytes(), lambda data: self._reply(query, key, data))
            except Exception as error:  # noqa: BLE001  # zenoh would swallow it and the asker would learn nothing
                data = encode(refusal(RefusalCode.FAILED, f"{type(error).__name__}: {error}"))
                self._replies.queue.put(lambda: _send_reply(lambda: query.reply_err(data), query))

        self._session.declare_queryable(key, zenoh.handlers.Callback(arrived, indirect=False), complete=True)

    def ask(self, node: str, service: Service, payload: bytes, *, timeout_s: float, on_reply: OnReply) -> None:
        """See ``Transport``; waits in the window to that node for its turn."""
        now_s = time.monotonic()
        with self._lock:
            home = self._find(node)
            if home is None or not self._open:
                taken, ready = None, []
            else:
                ask = _Ask(
                    node=node,
                    key=f"{self._root}/{home}/node/{node}/{service.value}",
                    payload=payload,
                    until_s=now_s + timeout_s,
                    on_reply=on_reply,
                )
                window = self._windows.setdefault(node, Window())
                taken = window.offer(len(payload), ask, now_s)
                ready = window.ready()
                self._put(ready)
        if not taken:
            on_reply(Silence.GONE if taken is None else Silence.FULL)

    def close(self) -> None:
        """See ``Transport``."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            waiting = [ask for window in self._windows.values() for _, ask in window.waiting]
            self._windows.clear()
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
        homes = self._homes.get(node, set())
        return next(iter(homes)) if len(homes) == 1 else None

    def _put(self, asks: Sequence[_Ask]) -> None:
        for ask in asks:
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

        try:
            self._session.get(
                ask.key,
                zenoh.handlers.Callback(replied, lambda: self._settle(ask, sent=True), indirect=False),
                payload=ask.payload,
                timeout=left_s,
                consolidation=zenoh.ConsolidationMode.NONE,
                express=True,
            )
        except zenoh.ZError:  # the session is closed, or the link broke: to the asker the same as gone
            self._settle(ask, sent=False)

    def _settle(self, ask: _Ask, *, sent: bool) -> None:
        """Give the weight back, let the next ones go, and call the asker, once."""
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
                self._put(window.ready())
        ask.on_reply(ask.reply)
        for behind in dropped:
            behind.on_reply(Silence.FULL)

    def _reply(self, query: zenoh.Query, key: str, data: bytes) -> None:
        self._replies.queue.put(lambda: _send_reply(lambda: query.reply(key, data, express=True), query))


def check_endpoint(endpoint: str, *, insecure: bool) -> None:
    """Check the form of an endpoint, and that plain tcp stays on this machine unless ``insecure``.

    Raises:
        ValueError: when it does not hold.
    """
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"an endpoint looks like tcp/127.0.0.1:7447 (or tls/, quic/), got {endpoint!r}")
    if match[1] == "tcp" and not insecure and not _is_loopback(match[2].strip("[]")):
        raise ValueError(f"{endpoint} would send features unencrypted beyond this machine; use tls/, or pass insecure to allow it")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _config(listen: str, seeds: Sequence[str], tls: TlsFiles | None, lease_s: float) -> zenoh.Config:
    settings: dict[str, object] = {
        "mode": "peer",
        "listen/endpoints": [listen],
        "listen/exit_on_failure": True,
        "connect/endpoints": list(seeds),
        "connect/timeout_ms": -1,  # go on trying seeds that come later; with exit_on_failure off, open does not wait for them
        "connect/exit_on_failure": False,
        "connect/retry": {"period_init_ms": 100, "period_max_ms": 1000, "period_increase_factor": 2},
        "scouting/multicast/enabled": False,
        "scouting/gossip/enabled": True,
        "scouting/delay": 1,
        "transport/unicast/open_timeout": 2000,  # a frozen node accepts and says nothing; close() waits for that
        "transport/shared_memory/enabled": False,  # honest network figures, and 50 MB less per process
        "transport/link/tx/lease": round(lease_s * 1000),
        "transport/link/tx/queue/size/data": 16,
        "transport/link/rx/buffer_size": 4 << 20,
    }
    if tls is not None:
        files = {"listen_certificate": tls.certificate, "connect_certificate": tls.certificate}
        keys = {"listen_private_key": tls.private_key, "connect_private_key": tls.private_key, "root_ca_certificate": tls.root_ca}
        settings["transport/link/tls"] = {"enable_mtls": True} | {name: str(path) for name, path in (files | keys).items()}
    config = zenoh.Config()
    for key, value in settings.items():
        config.insert_json5(key, json.dumps(value))
    return config


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
