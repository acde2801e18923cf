"""Crew: the processes of the delivery demo, a server and its clients, all ended at the latest when the block is left."""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

import msgspec

from nmoe.core.errors import NmoeError
from nmoe.recipes.deliver_client import Failed, Order, Report, Setting
from nmoe.recipes.deliver_links import ISOLATED, shaped_link, why_no_links

SILENCE_S = 120.0  # a process that says nothing for so long is ended, and the demo with it
END_S = 5.0
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

Kind = TypeVar("Kind", bound=Report)


class CrewProcess:
    """A process with pipes to us: it ends when its standard input does. In a session of its own, so that Ctrl-C reaches us alone."""

    def __init__(self, words: Sequence[str], *, name: str, isolated: bool) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [*(ISOLATED if isolated else ()), sys.executable, "-m", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_THREADS},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def line(self) -> str:
        """Return the next line it says.

        Raises:
            NmoeError: when it ends, or stays silent.
        """
        watch = threading.Timer(SILENCE_S, self._process.kill)
        watch.start()
        try:
            said = _pipe(self._process.stdout).readline()
        finally:
            watch.cancel()
        if not said:
            raise NmoeError(f"the process {self.name} ended or stayed silent, exit status {self._process.wait()}; its error stands above")
        return said.decode().strip()

    def write(self, line: bytes) -> None:
        """Send it a line.

        Raises:
            NmoeError: when it has ended.
        """
        pipe = _pipe(self._process.stdin)
        try:
            pipe.write(line + b"\n")
            pipe.flush()
        except OSError as error:
            raise NmoeError(f"the process {self.name} has ended: {error.strerror}") from error

    def end(self) -> None:
        """End it: first asked to, then made to."""
        try:
            _pipe(self._process.stdin).close()
        except OSError:  # it has ended, with something unread
            self._process.kill()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _pipe(self._process.stdout).close()


class CrewClient:
    """A client process.

    Args:
        user: its id.
        setting: what it is told when it starts.
        isolated: in a network namespace of its own.
    """

    def __init__(self, user: str, setting: Setting, *, isolated: bool) -> None:
        self.user = user
        self.server = ""
        self.process = CrewProcess(["nmoe.recipes.deliver_client", msgspec.json.encode(setting).decode()], name=user, isolated=isolated)

    def tell(self, order: Order) -> None:
        """Give an order."""
        self.process.write(msgspec.json.encode(order))

    def hear(self, kind: type[Kind]) -> Kind:
        """Wait for the answer to an order.

        Raises:
            NmoeError: when it failed.
        """
        report = msgspec.json.decode(self.process.line(), type=Report)
        if isinstance(report, Failed):
            raise NmoeError(f"client {self.user}: {report.reason}")
        assert isinstance(report, kind), "clients answer in order"
        return report

    def ask(self, order: Order, kind: type[Kind]) -> Kind:
        """Give an order and wait for the answer; errors as in ``hear``."""
        self.tell(order)
        return self.hear(kind)


class Crew:
    """A server and its clients.

    Args:
        models: folder that is served.
        loopback: without network namespaces.

    Attributes:
        about: what the links are, and why.
        clients: in the order in which they were added.
    """

    def __init__(self, models: Path, *, loopback: bool) -> None:
        why = "as wanted" if loopback else why_no_links()
        self.isolated = not why
        self.about = (
            "links: network namespaces, shaped by the kernel to what each user has with all of the bandwidth; paced by the server"
            if self.isolated
            else f"links: plain loopback, paced by the server alone ({why})"
        )
        self.clients: list[CrewClient] = []
        self._models = models
        self._server: CrewProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for client in self.clients:
            client.process.end()
        if self._server is not None:
            self._server.end()

    def add(self, user: str, setting: Setting) -> None:
        """Start a client."""
        self.clients.append(CrewClient(user, setting, isolated=self.isolated))

    def await_clients(self) -> None:
        """Wait until all clients listen.

        Raises:
            NmoeError: when one does not start.
        """
        for client in self.clients:
            client.process.line()

    def serve(self, *, bandwidth_hz: float, margin: float, rates_bps: Sequence[float]) -> None:
        """Start the server, and connect every client to it.

        Args:
            bandwidth_hz: that they share.
            margin: of plans, see ``DeliverySettings``.
            rates_bps: of their links, where these are shaped.

        Raises:
            NmoeError: when it does not start.
        """
        host = "0.0.0.0" if self.isolated else "127.0.0.1"  # noqa: S104  # of a network that only the clients are in
        words = ["nmoe", "deliver", "serve", str(self._models), "--http", f"{host}:0", "--bandwidth-hz", repr(bandwidth_hz)]
        words += ["--margin", repr(margin), "--exit-with-parent"]
        self._server = CrewProcess(words, name="server", isolated=self.isolated)
        port = self._server.line().rpartition(":")[2]
        for number, (client, rate_bps) in enumerate(zip(self.clients, rates_bps, strict=True)):
            if self.isolated:
                host = shaped_link(self._server.pid, client.process.pid, number, rate_bps=rate_bps)
            client.server = f"http://{host}:{port}"


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "all processes have pipes"
    return pipe
