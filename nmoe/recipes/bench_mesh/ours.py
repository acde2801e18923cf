"""nmoe itself: one node that hosts the four experts, asked by a ``RemoteMixture``.

The same code that users run, with all it does for them.
"""

import asyncio
import sys

import torch
from torch import Tensor, nn

from nmoe.node import (
    ExpertClient,
    ExpertHost,
    NodeOptions,
    RemoteExperts,
    RemoteMixture,
    ZenohSettings,
    ZenohTransport,
    free_ports,
    keep_memory,
)
from nmoe.recipes.bench_mesh.base import SyncSystem
from nmoe.recipes.bench_mesh.ffn import NUM_CHOSEN, NUM_EXPERTS, FfnGate, make_experts
from nmoe.recipes.bench_mesh.processes import Child, stdin_closed

MESH, FINGERPRINT = "bench", "ffn"
DEADLINE_S = 30.0  # far: what is measured is speed, and every call must be answered by the same experts as elsewhere
WORKERS = 2
NAMES = tuple(f"ffn-{number}" for number in range(NUM_EXPERTS))


class NmoeSystem(SyncSystem):
    """Gate, plan, deadlines, accounting and shared flights at the caller; micro-batches and two workers at the experts."""

    name = "nmoe"

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden)
        self._child = Child()
        self._client: ExpertClient | None = None

    def missing(self) -> str | None:
        return None

    async def start(self) -> None:
        keep_memory()
        endpoint = await self._child.start("nmoe.recipes.bench_mesh.ours", str(self.hidden))
        settings = ZenohSettings(mesh=MESH, listen=("tcp/127.0.0.1:0",), seeds=(endpoint,))
        transport = ZenohTransport(settings, name=None, fingerprint=FINGERPRINT)
        self._client = ExpertClient(transport, experts=NAMES, in_dim=self.hidden, out_dim=self.hidden)
        await asyncio.to_thread(self._client.wait_for, timeout_s=10.0)
        gate = FfnGate(hidden=self.hidden)
        self._mixture = RemoteMixture(gate=_Scores(gate), experts=RemoteExperts(self._client, deadline_s=DEADLINE_S), k=NUM_CHOSEN)

    async def stop(self) -> None:
        if self._client is not None:
            await asyncio.to_thread(self._client.close)
        await self._child.stop()

    async def moe(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return await self._mixture.ask(x)

    def call(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return self._mixture.forward(x)

    def server_pids(self) -> list[int]:
        return self._child.pids


class _Scores(nn.Module):
    """The bench gate's scores alone."""

    def __init__(self, gate: FfnGate) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores [batch, expert]."""
        scores: Tensor = self.gate.scores(x)
        return scores


async def serve(hidden: int) -> None:
    """Serve the four experts on a free port of the loopback, say the endpoint, and end with standard input."""
    keep_memory()
    endpoint = f"tcp/127.0.0.1:{free_ports(1)[0]}"
    transport = ZenohTransport(ZenohSettings(mesh=MESH, listen=(endpoint,)), name="host", fingerprint=FINGERPRINT)
    experts = dict(zip(NAMES, make_experts(hidden), strict=True))
    options = NodeOptions(workers=WORKERS)
    with ExpertHost("host", experts, in_dim=hidden, out_dim=hidden, transport=transport, options=options):
        print(endpoint, flush=True)
        await stdin_closed()


if __name__ == "__main__":
    torch.set_num_threads(1)
    asyncio.run(serve(int(sys.argv[1])))
