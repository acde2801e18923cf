"""Node: serving. Nodes of a mesh answer requests together, each with its own expert, whatever happens to the others."""

from nmoe.node.client import MeshClient, connect
from nmoe.node.mesh_processes import MeshProcesses, NodeProcess
from nmoe.node.messages import InferReply, StatusReply
from nmoe.node.nursery import check_together, run_nodes
from nmoe.node.process import run_node
from nmoe.node.runner import NodeRunner
from nmoe.node.transport.base import Transport
from nmoe.node.transport.memory import MemoryHub
from nmoe.node.transport.zenoh import TlsFiles, ZenohTransport

__all__ = [
    "InferReply",
    "MemoryHub",
    "MeshClient",
    "MeshProcesses",
    "NodeProcess",
    "NodeRunner",
    "StatusReply",
    "TlsFiles",
    "Transport",
    "ZenohTransport",
    "check_together",
    "connect",
    "run_node",
    "run_nodes",
]
