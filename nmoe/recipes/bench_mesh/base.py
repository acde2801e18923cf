"""What a system under measurement is: a client here, experts in processes of its own.

A system is built twice. In the benchmark's own process it is a description (its name, what it lacks, which interpreter runs it). In a
client process of its own (client.py) it is started, called and stopped; nothing of one system shares a process with another.
"""

import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from nmoe.core.errors import NmoeError


class Unavailable(NmoeError):
    """A system that cannot run here; one line says why."""


class System(ABC):
    """One way to reach four experts from a caller that has the gate.

    Args:
        hidden: width of the experts.
        interpreter: the Python that runs the client process; by default this one.

    Attributes:
        name: what tables call it.
        busy_when_idle: whether its processes work while nobody calls; then it is measured after the others, by itself.
    """

    name: ClassVar[str]
    busy_when_idle: ClassVar[bool] = False

    def __init__(self, hidden: int, *, interpreter: Path | None = None) -> None:
        self.hidden = hidden
        self.interpreter = interpreter or Path(sys.executable)

    @abstractmethod
    def missing(self) -> str | None:
        """Return one line that says what is not installed, or None; called in the benchmark's own process."""

    @abstractmethod
    async def start(self) -> None:
        """Start the experts' processes, one torch thread each, and connect.

        Raises:
            Unavailable: when that fails.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Disconnect and end the processes that ``start`` started; harmless when it failed halfway or never ran."""

    @abstractmethod
    async def moe(self, x: Tensor) -> Tensor:
        """Return the mixture's output [batch, hidden] for inputs [batch, hidden]."""

    @abstractmethod
    def server_pids(self) -> list[int]:
        """Return the processes that ``start`` started; their descendants are counted with them."""


class SyncSystem(System):
    """A system whose fastest client for one caller is a plain function, called while no event loop runs."""

    @abstractmethod
    def call(self, x: Tensor) -> Tensor:
        """Return what ``moe`` returns."""
