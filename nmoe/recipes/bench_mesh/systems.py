"""The systems that ``nmoe bench mesh`` measures, in the order of its tables."""

from pathlib import Path

from nmoe.recipes.bench_mesh.base import System
from nmoe.recipes.bench_mesh.grpc_aio import GrpcSystem
from nmoe.recipes.bench_mesh.hivemind import HivemindSystem
from nmoe.recipes.bench_mesh.module import ModuleSystem
from nmoe.recipes.bench_mesh.ours import NmoeSystem
from nmoe.recipes.bench_mesh.ray_serve import RaySystem
from nmoe.recipes.bench_mesh.tcp import TcpSystem


def all_systems(peer: Path | None, hidden: int) -> list[System]:
    """Return every system, those that cannot run here among them.

    Args:
        peer: an interpreter in which hivemind is installed.
        hidden: width of the experts.
    """
    return [
        ModuleSystem(hidden),
        NmoeSystem(hidden),
        TcpSystem(hidden),
        GrpcSystem(hidden),
        RaySystem(hidden),
        HivemindSystem(hidden, interpreter=peer),
    ]
