"""Process: one node as one operating system process."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from nmoe.core.bundle import read_bundle
from nmoe.core.errors import MeshError
from nmoe.node.runner import NodeRunner
from nmoe.node.transport.zenoh import TlsFiles, ZenohTransport

GRACE_S = 2.0  # between asking a process to end and ending it; our choice


def print_line(line: str) -> None:
    """Print a line in one write, so that lines of several processes with one standard output never mix."""
    os.write(1, f"{line}\n".encode())


def run_node(
    bundle_folder: Path,
    *,
    mesh: str,
    listen: str,
    seeds: Sequence[str],
    insecure: bool = False,
    tls: TlsFiles | None = None,
    lifeline: int | None = None,
    tell: Callable[[str], None] = print_line,
) -> None:
    """Serve one bundle until SIGINT or SIGTERM; blocks. Must run on the main thread.

    Args:
        bundle_folder: what to serve.
        mesh: name of the mesh.
        listen: own endpoint, such as ``tcp/127.0.0.1:7447``.
        seeds: endpoints of nodes to begin with.
        insecure: allow plain tcp beyond this machine.
        tls: the files of mutual TLS, for ``tls/`` and ``quic/`` endpoints.
        lifeline: file descriptor to read from; when it ends, as it does when the process that holds its other end dies, this one ends too.
        tell: is given one line, ``ready <name> <endpoint> <pid>``, once the node serves.

    Raises:
        ValueError: when a name or endpoint is malformed or not allowed.
        BundleError: when the bundle does not hold together.
        MeshError: when the endpoint cannot be listened on, or the node broke down.
    """
    stop, over = threading.Event(), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    if lifeline is not None:
        threading.Thread(target=_end_with, args=(lifeline, stop, over), name="nmoe-lifeline", daemon=True).start()
    try:
        torch.set_num_threads(1)
        bundle = read_bundle(bundle_folder)
        card = bundle.card
        transport = ZenohTransport(
            mesh=mesh, name=card.node, fingerprint=card.extractor_fingerprint, listen=listen, seeds=seeds, insecure=insecure, tls=tls
        )
        with transport, NodeRunner(bundle, transport) as runner:
            tell(f"ready {card.node} {listen} {os.getpid()}")
            while not stop.wait(0.5):
                if not runner.running:
                    raise MeshError(f"node {card.node} broke down; its error stands above")
    finally:
        over.set()


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


def _end_with(lifeline: int, stop: threading.Event, over: threading.Event) -> None:
    with suppress(ConnectionResetError):  # what a socket says instead of ending when its other end died with something unread
        while os.read(lifeline, 4096):
            pass
    stop.set()
    if not over.wait(GRACE_S):  # nobody is left who could end this process if it hangs
        os._exit(1)
