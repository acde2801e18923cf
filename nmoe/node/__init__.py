"""Node: serving. Nodes of a mesh answer requests together, each with its own expert, whatever happens to the others."""

from nmoe.node.bank import ExpertBank, keep_memory
from nmoe.node.client import MeshClient, connect
from nmoe.node.expert_client import ExpertClient
from nmoe.node.host import ExpertHost
from nmoe.node.mesh import Mesh
from nmoe.node.mesh_processes import MeshProcesses, NodeProcess
from nmoe.node.messages import InferReply, StatusReply, TensorFormat
from nmoe.node.nursery import check_together, run_nodes
from nmoe.node.options import NodeOptions
from nmoe.node.plan import Routing
from nmoe.node.process import NodeSettings, free_ports, run_node
from nmoe.node.radio import RadioLinks
from nmoe.node.remote import RemoteExperts, RemoteMixture
from nmoe.node.runner import NodeRunner
from nmoe.node.service import NodeService
from nmoe.node.transport.base import Transport
from nmoe.node.transport.config import TlsFiles, ZenohSettings
from nmoe.node.transport.memory import MemoryHub
from nmoe.node.transport.zenoh import ZenohTransport
from nmoe.node.view import NodeView

__all__ = [
    "ExpertBank",
    "ExpertClient",
    "ExpertHost",
    "InferReply",
    "MemoryHub",
    "Mesh",
    "MeshClient",
    "MeshProcesses",
    "NodeOptions",
    "NodeProcess",
    "NodeRunner",
    "NodeService",
    "NodeSettings",
    "NodeView",
    "RadioLinks",
    "RemoteExperts",
    "RemoteMixture",
    "Routing",
    "StatusReply",
    "TensorFormat",
    "TlsFiles",
    "Transport",
    "ZenohSettings",
    "ZenohTransport",
    "check_together",
    "connect",
    "free_ports",
    "keep_memory",
    "run_node",
    "run_nodes",
]
