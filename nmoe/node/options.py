"""Options: how a node serves, whatever it serves."""

import math
from dataclasses import dataclass
from pathlib import Path

from nmoe.channel.estimate import BANDWIDTH_HZ
from nmoe.node.messages import TensorFormat
from nmoe.node.plan import Routing
from nmoe.node.radio import RadioLinks

MAX_WORKERS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """How a node serves.

    Attributes:
        mesh: name of the mesh, to be shown.
        node: own name; None for the bundle's. Under another name a node is a replica: it serves the bundle's expert beside the first.
        workers: threads that compute.
        cpus: cores they may run on; None for any.
        max_requests: infer requests in progress.
        max_rows: rows that may wait for the workers, in each of their two lines.
        max_linger_s: how long a free worker may wait for company.
        formats: tensor formats that may leave this node, most precise first.
        gradients: whether peers may ask for derivatives of the expert.
        log: where a line per request is written; None for nowhere.
        seed: of the choice between replicas.
        routing: what decides which experts are asked.
        radio: radio links simulated between this node and its neighbours; None for the links there are.
        wireless: whether the operating system's report of its wireless interface is the state of every link: shown, and told to the gate
            where no message has measured the link yet.
        bandwidth_hz: that links are taken to have where a measured rate is shown as an SNR.
    """

    mesh: str = ""
    node: str | None = None
    workers: int = 1
    cpus: tuple[int, ...] | None = None
    max_requests: int = 64
    max_rows: int = 8192
    max_linger_s: float = 0.0005
    formats: tuple[TensorFormat, ...] = tuple(TensorFormat)
    gradients: bool = False
    log: Path | None = None
    seed: int = 0
    routing: Routing = Routing.BOTH
    radio: RadioLinks | None = None
    wireless: bool = False
    bandwidth_hz: float = BANDWIDTH_HZ

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: when one is out of range.
        """
        if not 1 <= self.workers <= MAX_WORKERS:
            raise ValueError(f"workers must be between 1 and {MAX_WORKERS}, got {self.workers}")
        if self.max_requests < 1 or self.max_rows < 1 or not 0 <= self.max_linger_s <= 1:
            given = f"{self.max_requests}, {self.max_rows}, {self.max_linger_s}"
            raise ValueError(f"at least one request and row, and a linger of at most 1 s, wanted, got {given}")
        if not 0 < self.bandwidth_hz < math.inf:
            raise ValueError(f"a bandwidth above 0 Hz wanted, got {self.bandwidth_hz} Hz")
