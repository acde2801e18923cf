"""Process: one node as one operating system process."""

import datetime as dt
import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from nmoe.core.bundle import read_bundle
from nmoe.core.errors import MeshError
from nmoe.node.bank import keep_memory
from nmoe.node.members import read_members, read_routers
from nmoe.node.messages import TensorFormat
from nmoe.node.options import NodeOptions
from nmoe.node.plan import Routing
from nmoe.node.runner import NodeRunner
from nmoe.node.transport.config import Mode, TlsFiles, ZenohSettings
from nmoe.node.transport.zenoh import ZenohTransport, open_router, tap_log

LOOK_S = 0.2  # how often it is looked at what signals said
GRACE_S = 2.0  # between asking a process to end at once and ending it; our choice


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """Where and how a node serves.

    Attributes:
        mesh: name of the mesh.
        listen: own endpoint, such as ``tcp/127.0.0.1:7447``.
        seeds: endpoints of nodes or routers to begin with.
        insecure: allow plain tcp beyond this machine.
        tls: the files of mutual TLS, for ``tls/`` and ``quic/`` endpoints.
        members: the list of members, ``members.json``; None to let in every certificate of the authority.
        multicast: interface on which nodes look for each other; None for not at all.
        site: nodes of one site dial each other, those of others are met through a router.
        http: address for HTTP, such as ``127.0.0.1:8080``; None for none.
        direct_port: where direct links are accepted, beside ``listen``; 0 for any port.
        options: how it computes.
    """

    mesh: str
    listen: str
    seeds: tuple[str, ...] = ()
    insecure: bool = False
    tls: TlsFiles | None = None
    members: Path | None = None
    multicast: str | None = None
    site: str | None = None
    http: str | None = None
    direct_port: int = 0
    options: NodeOptions = field(default_factory=NodeOptions)

    def __post_init__(self) -> None:
        """Check what can be checked before anything is opened.

        Raises:
            ValueError: when a name, endpoint or address is malformed, or not allowed.
        """
        self.session()
        if not 0 <= self.direct_port <= 65535:
            raise ValueError(f"direct port must be between 0 and 65535, got {self.direct_port}")
        if self.http is not None:
            http_address(self.http)

    def session(self) -> ZenohSettings:
        """Return how its session is set up.

        Raises:
            ValueError: see ``ZenohSettings``.
            BadFile: when the list of members cannot be read.
        """
        return ZenohSettings(
            mesh=self.mesh,
            mode=Mode.PEER,
            listen=(self.listen,),
            seeds=self.seeds,
            insecure=self.insecure,
            tls=self.tls,
            members=None if self.members is None else read_members(self.members),
            routers=frozenset() if self.members is None else read_routers(self.members),
            multicast=self.multicast,
            site=self.site,
            direct_port=self.direct_port,
        )


def http_address(text: str) -> tuple[str, int]:
    """Return host and port of an address such as ``127.0.0.1:8080`` or ``[::1]:0``.

    Raises:
        ValueError: when it is not one.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"an HTTP address looks like 127.0.0.1:8080, got {text!r}")
    return host.strip("[]"), int(port)


def print_line(line: str) -> None:
    """Print a line in one write, so that lines of several processes with one standard output never mix."""
    os.write(1, f"{line}\n".encode())


def run_node(bundle_folder: Path, settings: NodeSettings, *, lifeline: int | None = None, tell: Callable[[str], None] = print_line) -> None:
    """Serve one bundle until told to stop; blocks. Must run on the main thread.

    SIGTERM: leave without a failed request, then end. SIGINT, or a second signal: end at once. SIGHUP: serve what now lies in the bundle
    folder, beside the old version until its requests are over.

    Args:
        bundle_folder: what to serve.
        settings: where and how.
        lifeline: file descriptor to read from; when it ends, as it does when the process that holds its other end dies, this one ends too.
        tell: is given lines: ``ready <name> <endpoint> <pid>`` once the node serves, ``http <name> <address>`` once HTTP does,
            ``reloaded <name> <version>``, ``kept <name> <reason>``.

    Raises:
        BundleError: when the bundle does not hold together.
        MeshError: when an endpoint cannot be listened on, the certificate does not hold, or the node broke down.
        ServerError: when the address for HTTP cannot be listened on.
    """
    signals, over = Signals(), threading.Event()
    if lifeline is not None:
        threading.Thread(target=_end_with, args=(lifeline, signals, over), name="nmoe-lifeline", daemon=True).start()
    try:
        torch.set_num_threads(1)
        keep_memory()
        bundle = read_bundle(bundle_folder)
        name = bundle.card.node if settings.options.node is None else settings.options.node
        _check_certificate(settings, name)
        options = replace(settings.options, mesh=settings.mesh)
        with ExitStack() as stack:
            if settings.tls is not None:
                stack.callback(tap_log())
            transport = ZenohTransport(settings.session(), name=name, fingerprint=bundle.card.extractor_fingerprint)
            stack.enter_context(transport)
            runner = stack.enter_context(NodeRunner(bundle, transport, folder=bundle_folder, options=options))
            tell(f"ready {name} {settings.listen} {os.getpid()}")
            if settings.http is not None:
                _serve_http(stack, runner, settings.http, tell)
            gc.freeze()  # else a full collection goes over all of torch, and every request waits 0.2 s for it
            _serve_until_told(runner, signals, tell)
    finally:
        over.set()


class Signals:
    """What this process has been told by signals; from its making on, they no longer end it.

    Handlers set plain flags, to be looked at every ``LOOK_S``: an event's lock may be held by the very thread that a handler interrupts.
    """

    def __init__(self) -> None:
        self.stop = False
        self.at_once = False
        self.reload = False
        signal.signal(signal.SIGTERM, lambda *_: self.end(at_once=self.stop))
        signal.signal(signal.SIGINT, lambda *_: self.end(at_once=True))
        signal.signal(signal.SIGHUP, lambda *_: self._hang_up())

    def end(self, *, at_once: bool) -> None:
        """Ask the process to end."""
        self.stop, self.at_once = True, self.at_once or at_once

    def _hang_up(self) -> None:
        self.reload = True


def _serve_until_told(runner: NodeRunner, signals: Signals, tell: Callable[[str], None]) -> None:
    while not signals.stop:
        time.sleep(LOOK_S)
        if signals.reload:
            signals.reload = False
            said = runner.reload()
            tell(f"reloaded {runner.name} {runner.version}" if said is None else f"kept {runner.name} {said}")
        if not runner.running:
            raise MeshError(f"node {runner.name} broke down; its error stands above")
    if not signals.at_once:
        runner.drain(give_up=lambda: signals.at_once)


def _serve_http(stack: ExitStack, runner: NodeRunner, address: str, tell: Callable[[str], None]) -> None:
    from nmoe.node.http import HttpServer  # a node is ready before this is imported

    host, port = http_address(address)
    server = HttpServer(runner, host, port)
    server.start()
    stack.callback(server.stop)
    runner.http = server.address
    tell(f"http {runner.name} {server.address}")


def _check_certificate(settings: NodeSettings, name: str) -> None:
    if settings.tls is None:
        return
    from nmoe.node.keys import check_certificate

    check_certificate(settings.tls, name, now=dt.datetime.now(dt.UTC), members=settings.members)


def formats_of(word: str) -> tuple[TensorFormat, ...]:
    """Return the tensor formats that a word allows: ``auto`` for all, most precise first, or the name of one.

    Raises:
        ValueError: when it is neither.
    """
    if word == "auto":
        return tuple(TensorFormat)
    if word not in list(TensorFormat):
        raise ValueError(f"format must be auto, {', '.join(TensorFormat)}, got {word!r}")
    return (TensorFormat(word),)


def routing_of(word: str) -> Routing:
    """Return what a word says decides who is asked: ``both``, ``gate`` or ``link``.

    Raises:
        ValueError: when it is none of them.
    """
    if word not in list(Routing):
        raise ValueError(f"routing must be {', '.join(Routing)}, got {word!r}")
    return Routing(word)


def core_list(text: str) -> tuple[int, ...]:
    """Return the cores in a list such as ``0,2-3``.

    Raises:
        ValueError: when it is not such a list, or names a core that this process may not use.
    """
    cores: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"a list of cores looks like 0,2-3, got {text!r}")
        if int(last or first) < int(first):
            raise ValueError(f"a range of cores rises, got {part!r}")
        cores |= set(range(int(first), int(last or first) + 1))
    usable = os.sched_getaffinity(0)
    if not cores <= usable:
        raise ValueError(f"cores must be among {', '.join(map(str, sorted(usable)))}, got {text!r}")
    return tuple(sorted(cores))


def run_router(
    *,
    listen: Sequence[str],
    seeds: Sequence[str],
    mesh: str | None,
    tls: TlsFiles | None,
    members: Path | None,
    sites: Sequence[str],
    insecure: bool,
) -> None:
    """Pass messages on between sites until SIGINT or SIGTERM; blocks. Must run on the main thread.

    Args:
        listen: own endpoints.
        seeds: endpoints of other routers.
        mesh: name of the mesh; needed with ``members``.
        tls: the files of mutual TLS.
        members: the list of members, or None.
        sites: between which it passes on by itself; none where each site has a router.
        insecure: allow plain tcp beyond this machine.

    Raises:
        ValueError: when a name or endpoint is malformed or not allowed.
        MeshError: when an endpoint cannot be listened on.
    """
    settings = ZenohSettings(
        mesh=mesh,
        mode=Mode.ROUTER,
        listen=tuple(listen),
        seeds=tuple(seeds),
        insecure=insecure,
        tls=tls,
        members=None if members is None else read_members(members),
        routers=frozenset() if members is None else read_routers(members),
        sites=tuple(sites),
    )
    signals = Signals()
    close = open_router(settings)
    print_line(f"router {' '.join(listen)} {os.getpid()}")
    while not signals.stop:
        time.sleep(LOOK_S)
    close()


def free_ports(count: int) -> list[int]:
    """Return that many different loopback ports that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _end_with(lifeline: int, signals: Signals, over: threading.Event) -> None:
    with suppress(ConnectionResetError):  # what a socket says instead of ending when its other end died with something unread
        while os.read(lifeline, 4096):
            pass
    signals.end(at_once=True)
    if not over.wait(GRACE_S):  # nobody is left who could end this process if it hangs
        os._exit(1)
