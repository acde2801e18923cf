"""``nmoe top``: watch a running mesh from a terminal."""

import asyncio
import json
from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.live import Live

from nmoe.core.errors import MeshError
from nmoe.node import Mesh, NodeView, TlsFiles
from nmoe.report.top import mesh_tables

FIND_S, SETTLE_S = 5.0, 0.3


def watch_mesh(*, seeds: Sequence[str], mesh: str, every_s: float, once: bool, as_json: bool, insecure: bool, tls: TlsFiles | None) -> None:
    """Show a mesh until interrupted, or once.

    Args:
        seeds: endpoints of nodes.
        mesh: its name.
        every_s: seconds between two looks, at least 0.1.
        once: look once.
        as_json: print the views as JSON instead.
        insecure: allow plain tcp beyond this machine.
        tls: the files of mutual TLS.

    Raises:
        ValueError: when an argument is out of range.
        MeshError: when no node can be found.
    """
    if every_s < 0.1:
        raise ValueError(f"every must be at least 0.1 s, got {every_s}")
    asyncio.run(_watch(Mesh.connect(mesh, seeds, insecure=insecure, tls=tls), seeds, every_s, once=once, as_json=as_json))


async def _watch(client: Mesh, seeds: Sequence[str], every_s: float, *, once: bool, as_json: bool) -> None:
    async with client as mesh:
        try:
            await mesh.wait_for(timeout_s=FIND_S)
        except MeshError:
            raise MeshError(f"no node found at {', '.join(seeds)} within {FIND_S:g} s") from None
        await asyncio.sleep(SETTLE_S)  # the rest of the mesh is heard of a moment after its first node
        views, silent = await look(mesh)
        if as_json:
            print(json.dumps(msgspec.to_builtins(views), indent=2))
            return
        if once:
            Console().print(mesh_tables(views, silent))
            return
        with Live(mesh_tables(views, silent), screen=Console().is_terminal, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(every_s)
                live.update(mesh_tables(*await look(mesh)), refresh=True)


async def look(mesh: Mesh) -> tuple[list[NodeView], list[str]]:
    """Return the views of all nodes that answer, and the names of those that do not."""
    names = mesh.nodes()
    found = await asyncio.gather(*(mesh.status(name) for name in names), return_exceptions=True)
    views = [view for view in found if isinstance(view, NodeView)]
    silent = [name for name, view in zip(names, found, strict=True) if not isinstance(view, NodeView)]
    return views, silent
