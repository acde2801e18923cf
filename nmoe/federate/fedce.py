"""FedCE: the shared extractor by supervised federated averaging; stage 1 of NMoE.

Source: NMoE (arXiv 2511.01743), stage 1, which names FedCE and calls it supervised.

Departures: the rest is a reconstruction (ours; the paper's is not known to us): extractor and a linear head by cross entropy, averaged
with weights n_i / n; the head is dropped.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nmoe.federate.base import Call, Exchange, Node, Report, Stage, State
from nmoe.federate.fedavg import FedAvg
from nmoe.federate.payload import Payload


@dataclass(frozen=True, slots=True, kw_only=True)
class FedCE(Stage):
    """FedAvg of an extractor with a linear head.

    Attributes:
        classifier: the averaging, whose head is a linear one.
    """

    classifier: FedAvg

    def __post_init__(self) -> None:
        if self.classifier.head.kind != "linear":
            raise ValueError(f"FedCE trains a linear head, got {self.classifier.head.kind!r}")

    @property
    def name(self) -> str:  # type: ignore[override]  # the averaging's own
        """The averaging's name."""
        return self.classifier.name

    @property
    def rounds(self) -> int:  # type: ignore[override]  # the averaging's own
        """The averaging's number of rounds."""
        return self.classifier.rounds

    def start(self, previous: Mapping[str, State]) -> State:
        return self.classifier.start(previous)

    def round(self, state: State, number: int, call: Callable[[str], Call], exchange: Exchange) -> tuple[State, Report]:
        return self.classifier.round(state, number, call, exchange)

    def answer(self, call: Call, request: Payload, node: Node) -> Payload:
        return self.classifier.answer(call, request, node)
