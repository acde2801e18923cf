"""The module alone, in the caller's process: the floor, with no messages at all."""

import asyncio

from torch import Tensor

from nmoe.recipes.bench_mesh.base import SyncSystem
from nmoe.recipes.bench_mesh.ffn import LocalMoe


class ModuleSystem(SyncSystem):
    """The mixture called as a torch module on one core. Its concurrent callers wait for each other."""

    name = "module"

    def missing(self) -> str | None:
        return None

    async def start(self) -> None:
        self._module = LocalMoe(hidden=self.hidden)

    async def stop(self) -> None:
        return

    async def moe(self, x: Tensor) -> Tensor:
        output = self.call(x)
        await asyncio.sleep(0)  # the other callers' turn
        return output

    def call(self, x: Tensor) -> Tensor:
        output: Tensor = self._module(x)
        return output

    def server_pids(self) -> list[int]:
        return []
