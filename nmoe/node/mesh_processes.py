"""Mesh processes: a whole mesh on this machine, started, watched and ended from this process."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from nmoe.core.errors import MeshError
from nmoe.node.client import MeshClient, connect
from nmoe.node.nursery import NUM_SEEDS, check_together
from nmoe.node.process import GRACE_S, free_ports

Command = Callable[[Sequence[Path], str, Sequence[str]], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeProcess:
    """One node process, as it said of itself when it was ready."""

    name: str
    endpoint: str
    bundle: Path
    pid: int


class MeshProcesses:
    """A mesh on this machine: one process per bundle, all ended at the latest when the block is left.

    One command starts them (see ``run_nodes``), with pipes to us. Its standard input ends when we do, and with it the nodes. Its standard
    output is held open by every process of the mesh, so when that ends none of them is left.

    Args:
        bundles: bundle folders of one mesh.
        mesh: its name; None for one that no other mesh on this machine has.
        http: address of the first node's HTTP, such as ``127.0.0.1:8080``; the others count the port up, port 0 is any. None for no HTTP.
        options: further options of ``nmoe node``.
        command: the command line that serves bundles, from bundles, mesh and endpoints.
        start_timeout_s: until when all nodes must see each other.

    Attributes:
        cards: of the bundles.
        mesh: its name.
        nodes: by name, in the order of the bundles, while the mesh runs.
        http: addresses by name, once a node's HTTP serves.
        said: what a node last said of a reload, by name.
        ended: exit status by name of each node that ended, negative for a signal.

    Raises:
        BundleError: when the bundles do not belong together; the message names two nodes that differ.
        MeshError: on entering, when a node does not start.
    """

    def __init__(
        self,
        bundles: Sequence[Path],
        *,
        mesh: str | None = None,
        http: str | None = None,
        options: Sequence[str] = (),
        command: Command | None = None,
        start_timeout_s: float = 60.0,
    ) -> None:
        self.cards = check_together(bundles)
        self.mesh = f"local-{os.getpid()}-{time.monotonic_ns() % 10**6}" if mesh is None else mesh
        self.nodes: dict[str, NodeProcess] = {}
        self.ended: dict[str, int] = {}
        self.http: dict[str, str] = {}
        self.said: dict[str, str] = {}
        self._bundles = tuple(bundles)
        self._command = serve_command if command is None else command
        self._options = [*options, *(() if http is None else ("--http", http))]
        self._start_timeout_s = start_timeout_s
        self._changed = threading.Condition()  # guards nodes, ended and _strange until all nodes are ready
        self._strange: str | None = None  # a line of output that is not one of a node
        self._frozen: set[str] = set()
        self._process: subprocess.Popen[str] | None = None
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
            self._await_ready(until_s)
            self._client = connect(self.mesh, [node.endpoint for node in self.nodes.values()][:NUM_SEEDS])
            self._await_each_other(until_s)
        except BaseException:  # also KeyboardInterrupt: no process may outlive us
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def alive(self, name: str) -> bool:
        """Say whether a node's process exists; a frozen one does."""
        with self._changed:
            return name in self.nodes and name not in self.ended

    def await_http(self, name: str, *, timeout_s: float = 30.0) -> str:
        """Return the address of a node's HTTP, as soon as it serves.

        Raises:
            MeshError: when it does not in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: name in self.http or name in self.ended, timeout_s) or name not in self.http:
                raise MeshError(f"node {name} does not serve HTTP")
            return self.http[name]

    def kill(self, name: str) -> None:
        """End one node at once, as by kill -9.

        Raises:
            MeshError: when it does not end.
        """
        self._signal(name, signal.SIGKILL)
        with self._changed:
            if not self._changed.wait_for(lambda: name in self.ended, GRACE_S):
                raise MeshError(f"node {name} was not ended within {GRACE_S:g} s of being killed")

    def freeze(self, name: str) -> None:
        """Stop one node without ending it, as a host that hangs or is cut off."""
        self._signal(name, signal.SIGSTOP)
        self._frozen.add(name)

    def thaw(self, name: str) -> None:
        """Undo ``freeze``."""
        self._frozen.discard(name)
        self._signal(name, signal.SIGCONT)

    def stop(self) -> None:
        """End all processes: first asked to, then made to."""
        if self._process is None:
            return
        process = self._process
        assert process.stdin is not None  # we asked for pipes
        assert process.stdout is not None
        for name in sorted(self._frozen):
            self.thaw(name)  # it could not hear that its forker is gone
        process.stdin.close()
        process.send_signal(signal.SIGINT)  # at once: everybody who could be asked is leaving
        try:
            process.wait(2 * GRACE_S)  # it gives the nodes once that
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join(2 * GRACE_S)  # until no process of the mesh is left; those whose forker was killed give themselves that
        if self._client is not None:
            self._client.close()  # last: it would wait for a frozen node
            self._client = None
        process.stdout.close()
        self._errors.close()
        self._process = None
        self.nodes = {}

    def _signal(self, name: str, number: int) -> None:
        with self._changed:
            if name not in self.ended:  # else the number may be another process's by now
                with suppress(ProcessLookupError):  # it ended, and we have not read so yet
                    os.kill(self.nodes[name].pid, number)

    def _launch(self) -> None:
        endpoints = [f"tcp/127.0.0.1:{port}" for port in free_ports(len(self._bundles))]
        self.ended = {}
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by stop; a pipe nobody reads could fill and stop a node
        self._process = subprocess.Popen(
            [*self._command(self._bundles, self.mesh, endpoints), *self._options],
            stdin=subprocess.PIPE,  # held open by us: ends when we do
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process, endpoints), name="nmoe-mesh-reader", daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str], endpoints: Sequence[str]) -> None:
        """Keep up with what the processes say, until none of them is left."""
        assert process.stdout is not None
        parts = {card.node: (bundle, endpoint) for card, bundle, endpoint in zip(self.cards, self._bundles, endpoints, strict=True)}
        for line in process.stdout:
            with self._changed:
                match line.split():
                    case ["ready", name, endpoint, pid] if name in parts and endpoint == parts[name][1] and pid.isdecimal():
                        self.nodes[name] = NodeProcess(name=name, endpoint=endpoint, bundle=parts[name][0], pid=int(pid))
                    case ["http", name, address] if name in parts:
                        self.http[name] = address
                    case ["reloaded" | "kept", name, *_] if name in parts:
                        self.said[name] = line.strip()
                    case ["ended", name, status] if name in parts:
                        self.ended[name] = int(status)
                    case _:
                        self._strange = line.strip()
                self._changed.notify_all()
        of_all = process.wait()
        with self._changed:
            self.ended = dict.fromkeys(parts, of_all) | self.ended
            self._changed.notify_all()

    def _await_ready(self, until_s: float) -> None:
        names = [card.node for card in self.cards]
        with self._changed:
            self._changed.wait_for(
                lambda: len(self.nodes) == len(names) or self.ended or self._strange is not None, max(0.0, until_s - time.monotonic())
            )
            if self._strange is not None:
                raise MeshError(f"mesh {self.mesh} did not start: its command printed {self._strange!r}")
            if self.ended:
                raise MeshError(f"mesh {self.mesh} did not start: {self._why_ended()}")
            if missing := [name for name in names if name not in self.nodes]:
                raise MeshError(f"mesh {self.mesh} did not start: not ready after {self._start_timeout_s:g} s: {', '.join(missing)}")
            self.nodes = {name: self.nodes[name] for name in names}

    def _why_ended(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        name, status = next(iter(self.ended.items()))
        return lines[-1].removeprefix("error: ") if lines else f"node {name} ended with status {status} and said nothing"

    def _await_each_other(self, until_s: float) -> None:
        names = sorted(self.nodes)
        self.client.wait_for(names, timeout_s=max(0.0, until_s - time.monotonic()))
        neighbours = {card.node: set(card.neighbours) - {card.node} for card in self.cards}
        for name in names:
            wanted = neighbours[name] & set(names)
            while not wanted <= {link.peer for link in self.client.status(name).view.links if link.state == "up" and link.experts}:
                if time.monotonic() > until_s:
                    raise MeshError(f"node {name} did not see all its neighbours within {self._start_timeout_s:g} s")
                time.sleep(0.02)


def serve_command(bundles: Sequence[Path], mesh: str, endpoints: Sequence[str]) -> list[str]:
    """Return the command line that serves bundles and ends with this process."""
    listen = [word for endpoint in endpoints for word in ("--listen", endpoint)]
    return [sys.executable, "-m", "nmoe", "node", *map(str, bundles), "--mesh", mesh, *listen, "--exit-with-parent"]
