"""Federated training: algorithms, the loop that runs them, and the engines; only ``nmoe.federate.flower`` imports Flower."""

from nmoe.federate.base import Answers, Call, Exchange, Node, Program, Report, Stage, State, merge, node_name, refusal
from nmoe.federate.bundles import WriteBundles
from nmoe.federate.checkpoint import Checkpoint, Record
from nmoe.federate.experts import LocalExperts
from nmoe.federate.fedavg import FedAvg
from nmoe.federate.fedce import FedCE
from nmoe.federate.fedsc import FedSC
from nmoe.federate.gate_links import GateLinks
from nmoe.federate.gate_schemes import (
    FedGate,
    FullSync,
    GateScheme,
    HeadSync,
    NeighbourSync,
    PeriodicSync,
    RanGate,
    Reading,
    RollGate,
    Synchronisation,
    TrunkSync,
)
from nmoe.federate.gates import Gates
from nmoe.federate.memory import NodeMemory
from nmoe.federate.payload import Payload
from nmoe.federate.rounds import LocalExchange, Watcher, run

__all__ = [
    "Answers",
    "Call",
    "Checkpoint",
    "Exchange",
    "FedAvg",
    "FedCE",
    "FedGate",
    "FedSC",
    "FullSync",
    "GateLinks",
    "GateScheme",
    "Gates",
    "HeadSync",
    "LocalExchange",
    "LocalExperts",
    "NeighbourSync",
    "Node",
    "NodeMemory",
    "Payload",
    "PeriodicSync",
    "Program",
    "RanGate",
    "Reading",
    "Record",
    "Report",
    "RollGate",
    "Stage",
    "State",
    "Synchronisation",
    "TrunkSync",
    "Watcher",
    "WriteBundles",
    "merge",
    "node_name",
    "refusal",
    "run",
]
