"""World: a mesh of any size in virtual time. The nodes' decisions are ``protocol.Origin`` and ``batcher.Batcher``, as on the wire."""

from nmoe.node.world.clock import Away, Node
from nmoe.node.world.faults import Churn, put
from nmoe.node.world.network import Network, matrix_network, measured_network, uniform_network
from nmoe.node.world.recording import Recorder, Recording, differences
from nmoe.node.world.scene import GateTable, Layout, LogNormal, Offered, Pareto, Service, Steady, Tail, WorldOptions, complete, ring
from nmoe.node.world.tally import Outcome, Tally
from nmoe.node.world.world import World

__all__ = [
    "Away",
    "Churn",
    "GateTable",
    "Layout",
    "LogNormal",
    "Network",
    "Node",
    "Offered",
    "Outcome",
    "Pareto",
    "Recorder",
    "Recording",
    "Service",
    "Steady",
    "Tail",
    "Tally",
    "World",
    "WorldOptions",
    "complete",
    "differences",
    "matrix_network",
    "measured_network",
    "put",
    "ring",
    "uniform_network",
]
