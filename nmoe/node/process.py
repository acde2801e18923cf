"""Process: one node as one operating system process, and a whole mesh of them on this machine."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import torch

from nmoe.core.bundle import BundleCard, read_bundle, read_card
from nmoe.core.errors import BundleError, MeshError
from nmoe.node.client import MeshClient, connect
from nmoe.node.runner import NodeRunner
from nmoe.node.transport.zenoh import ZenohTransport

GRACE_S = 2.0  # between asking a process to end and ending it; our choice
NUM_SEEDS = 3

Command = Callable[[Path, str, str, Sequence[str]], list[str]]


def run_node(
    bundle_folder: Path, *, mesh: str, listen: str, seeds: Sequence[str], insecure: bool = False, exit_with_parent: bool = False
) -> None:
    """Serve one bundle until SIGINT or SIGTERM; blocks. Must run on the main thread.

    Prints one line, ``ready <name> <endpoint>``, once the node serves.

    Args:
        bundle_folder: what to serve.
        mesh: name of the mesh.
        listen: own endpoint, such as ``tcp/127.0.0.1:7447``.
        seeds: endpoints of nodes to begin with.
        insecure: allow plain tcp beyond this machine.
        exit_with_parent: stop when standard input ends, as it does when the process holding its other end dies.

    Raises:
        ValueError: when a name or endpoint is malformed or not allowed.
        BundleError: when the bundle does not hold together.
        MeshError: when the endpoint cannot be listened on, or the node broke down.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    torch.set_num_threads(1)
    bundle = read_bundle(bundle_folder)
    card = bundle.card
    transport = ZenohTransport(
        mesh=mesh, name=card.node, fingerprint=card.extractor_fingerprint, listen=listen, seeds=seeds, insecure=insecure
    )
    with transport, NodeRunner(bundle, transport) as runner:
        if exit_with_parent:
            threading.Thread(target=_wait_for_end_of_input, args=(stop,), name="nmoe-parent", daemon=True).start()
        print(f"ready {card.node} {listen}", flush=True)
        while not stop.wait(0.5):
            if not runner.running:
                raise MeshError(f"node {card.node} broke down; its error stands above")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeProcess:
    """One running node process."""

    name: str
    endpoint: str
    bundle: Path
    process: subprocess.Popen[str]
    errors: IO[bytes]


class MeshProcesses:
    """A mesh on this machine: one process per bundle, all ended at the latest when the block is left.

    Args:
        bundles: bundle folders of one mesh.
        mesh: its name; None for one that no other mesh on this machine has.
        command: the command line of a node, from bundle, mesh, own endpoint and seeds.
        start_timeout_s: until when all nodes must see each other.

    Raises:
        BundleError: when the bundles do not belong together; the message names two nodes that differ.
        MeshError: on entering, when a node does not start.
    """

    def __init__(
        self, bundles: Sequence[Path], *, mesh: str | None = None, command: Command | None = None, start_timeout_s: float = 60.0
    ) -> None:
        self.cards = check_together(bundles)
        self.mesh = f"local-{os.getpid()}-{time.monotonic_ns() % 10**6}" if mesh is None else mesh
        self.nodes: dict[str, NodeProcess] = {}
        self._bundles = tuple(bundles)
        self._command = node_command if command is None else command
        self._start_timeout_s = start_timeout_s
        self._client: MeshClient | None = None

    @property
    def client(self) -> MeshClient:
        """A client of the mesh."""
        if self._client is None:
            raise ValueError("the mesh is not running; use it inside its with block")
        return self._client

    def __enter__(self) -> Self:
        until_s = time.monotonic() + self._start_timeout_s
        try:
            self._launch()
            for node in self.nodes.values():
                self._await_ready(node, until_s)
            self._client = connect(self.mesh, [node.endpoint for node in self.nodes.values()][:NUM_SEEDS])
            self._await_each_other(until_s)
        except BaseException:  # also KeyboardInterrupt: no process may outlive us
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def kill(self, name: str) -> None:
        """End one node at once, as by kill -9."""
        self.nodes[name].process.kill()
        self.nodes[name].process.wait()

    def freeze(self, name: str) -> None:
        """Stop one node without ending it, as a host that hangs or is cut off."""
        self.nodes[name].process.send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Undo ``freeze``."""
        self.nodes[name].process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End all processes: first asked to, then made to."""
        processes = [node.process for node in self.nodes.values()]
        for process in processes:
            process.send_signal(signal.SIGCONT)  # a frozen one could not hear the next
            process.terminate()
        until_s = time.monotonic() + GRACE_S
        for process in processes:
            try:
                process.wait(max(0.0, until_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._client is not None:
            self._client.close()  # last: it would wait for a frozen node
            self._client = None
        for node in self.nodes.values():
            for stream in (node.process.stdin, node.process.stdout, node.errors):
                if stream is not None:
                    stream.close()
        self.nodes = {}

    def _launch(self) -> None:
        endpoints = [f"tcp/127.0.0.1:{port}" for port in free_ports(len(self._bundles))]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        for card, bundle, endpoint in zip(self.cards, self._bundles, endpoints, strict=True):
            errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by stop; a pipe nobody reads could fill and stop the node
            process = subprocess.Popen(
                self._command(bundle, self.mesh, endpoint, [seed for seed in endpoints[:NUM_SEEDS] if seed != endpoint]),
                stdin=subprocess.PIPE,  # held open by us: ends when we do
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | threads,
            )
            self.nodes[card.node] = NodeProcess(name=card.node, endpoint=endpoint, bundle=bundle, process=process, errors=errors)

    def _await_ready(self, node: NodeProcess, until_s: float) -> None:
        line: list[str] = []
        assert node.process.stdout is not None  # we asked for a pipe
        reader = threading.Thread(target=lambda: line.append(node.process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
        reader.start()
        reader.join(max(0.0, until_s - time.monotonic()))
        if not line:
            raise MeshError(f"node {node.name} was not ready after {self._start_timeout_s:g} s")
        if line[0].split() != ["ready", node.name, node.endpoint]:
            raise MeshError(f"node {node.name} did not start: {self._last_error(node)}")

    def _last_error(self, node: NodeProcess) -> str:
        try:
            status = node.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return "it printed something else than that it is ready"
        node.errors.seek(0)
        lines = [line.strip() for line in node.errors.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else f"it ended with status {status} and said nothing"

    def _await_each_other(self, until_s: float) -> None:
        names = sorted(self.nodes)
        self.client.wait_for(names, timeout_s=max(0.0, until_s - time.monotonic()))
        neighbours = {card.node: set(card.neighbours) - {card.node} for card in self.cards}
        for name in names:
            wanted = neighbours[name] & set(names)
            while not wanted <= set(self.client.status(name).peers):
                if time.monotonic() > until_s:
                    raise MeshError(f"node {name} did not see all its neighbours within {self._start_timeout_s:g} s")
                time.sleep(0.02)


def node_command(bundle: Path, mesh: str, listen: str, seeds: Sequence[str]) -> list[str]:
    """Return the command line of a node process that ends with this one."""
    connect_to = [word for seed in seeds for word in ("--connect", seed)]
    return [sys.executable, "-m", "nmoe", "node", str(bundle), "--mesh", mesh, "--listen", listen, *connect_to, "--exit-with-parent"]


def check_together(bundles: Sequence[Path]) -> tuple[BundleCard, ...]:
    """Return the cards of bundles that can form one mesh.

    Raises:
        ValueError: when there is no bundle.
        BundleError: when a card is damaged, two nodes have one name, or two differ in extractor or order of experts.
    """
    if not bundles:
        raise ValueError("a mesh needs at least one bundle, got none")
    cards = [read_card(folder) for folder in bundles]
    first = cards[0]
    names: set[str] = set()
    for card in cards:
        if card.node in names:
            raise BundleError(f"two bundles are of the same node {card.node}")
        names.add(card.node)
        if card.extractor_fingerprint != first.extractor_fingerprint:
            raise BundleError(f"{first.node} and {card.node} have different extractors: their features cannot be exchanged")
        if card.experts != first.experts:
            raise BundleError(f"{first.node} and {card.node} list the experts differently: their gates do not mean the same nodes")
    return tuple(cards)


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


def _wait_for_end_of_input(stop: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stop.set()
