"""hivemind: its server with two connection handlers (tuned; its default is eight per expert), its ``RemoteMixtureOfExperts`` as client.

This file runs in the interpreter that ``--peer`` names, client and server alike: hivemind pins what nmoe does not. The experts are
hivemind's own ``ffn`` with our weights, and its gate's projection has our gate's weights, so its output equals ours.
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nmoe.recipes.bench_mesh.base import SyncSystem, Unavailable
from nmoe.recipes.bench_mesh.ffn import NUM_CHOSEN, NUM_EXPERTS, FfnGate, make_experts
from nmoe.recipes.bench_mesh.processes import Child, stdin_closed

NUM_HANDLERS = 2
PREFIX = "expert."


class HivemindSystem(SyncSystem):
    """hivemind's remote mixture of experts.

    Its client is synchronous, and concurrent callers have to take turns: its DHT object writes to a pipe without a lock, and 16 threads
    on one soon broke it for good (hivemind 1.1.12, ``UnpicklingError`` in the DHT's process, after which every call hangs).
    """

    name = "hivemind"

    def __init__(self, hidden: int, *, interpreter: Path | None = None) -> None:
        super().__init__(hidden, interpreter=interpreter)
        self._peer = interpreter
        self._child = Child()
        self._threads = ThreadPoolExecutor(1)
        self._dht: Any = None

    def missing(self) -> str | None:
        if self._peer and not self._peer.is_file():
            return f"no interpreter {self._peer}"
        return None if self._peer or find_spec("hivemind") else "not installed here; name an interpreter that has it with --peer"

    async def start(self) -> None:
        try:
            import hivemind  # type: ignore[import-not-found]
        except ImportError as error:
            raise Unavailable(f"hivemind cannot be imported by {sys.executable}: {error}") from error
        address = await self._child.start("nmoe.recipes.bench_mesh.hivemind", str(self.hidden))
        self._dht = hivemind.DHT(initial_peers=[address], host_maddrs=["/ip4/127.0.0.1/tcp/0"], start=True)
        self._module = hivemind.RemoteMixtureOfExperts(
            in_features=self.hidden, grid_size=(NUM_EXPERTS,), dht=self._dht, uid_prefix=PREFIX, k_best=NUM_CHOSEN
        )
        self._module.proj.load_state_dict(FfnGate(hidden=self.hidden).scores.state_dict())

    async def stop(self) -> None:
        self._threads.shutdown()
        if self._dht:
            await asyncio.to_thread(self._dht.shutdown)
        await self._child.stop()

    async def moe(self, x: Tensor) -> Tensor:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.call, x)

    def call(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            output: Tensor = self._module(x)
        return output

    def server_pids(self) -> list[int]:
        return self._child.pids


def serve(hidden: int) -> None:
    """Serve the four experts, say the address, and end with standard input."""
    import hivemind

    server = hivemind.moe.Server.create(
        expert_uids=[f"{PREFIX}{number}" for number in range(NUM_EXPERTS)],
        expert_cls="ffn",
        hidden_dim=hidden,
        optim_cls=None,
        num_handlers=NUM_HANDLERS,
        device="cpu",
        host_maddrs=["/ip4/127.0.0.1/tcp/0"],
        start=False,
    )
    for number, expert in enumerate(make_experts(hidden)):
        server.module_backends[f"{PREFIX}{number}"].module.load_state_dict(expert.state_dict())
    server.run_in_background(await_ready=True)
    print(server.dht.get_visible_maddrs()[0], flush=True)
    asyncio.run(stdin_closed())
    server.shutdown()


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(int(sys.argv[1]))
