"""gRPC: grpc.aio on both sides, a generic handler of raw bytes, computation in the server's loop.

A message is the expert's number (4 bytes) and the tensor's bytes; one call per chosen expert over one channel.
"""

import asyncio
import struct
import sys
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from nmoe.recipes.bench_mesh.base import System
from nmoe.recipes.bench_mesh.ffn import FfnGate, combine, make_experts
from nmoe.recipes.bench_mesh.processes import Child, stdin_closed
from nmoe.recipes.bench_mesh.tcp import to_bytes, to_tensor

EXPERT = struct.Struct("<I")
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class GrpcSystem(System):
    """grpc.aio on both sides."""

    name = "grpc"

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden)
        self._child = Child()
        self._channel: Any = None

    def missing(self) -> str | None:
        return None if find_spec("grpc") else "grpcio is not installed"

    async def start(self) -> None:
        from grpc import aio  # type: ignore[import-untyped]

        port = int(await self._child.start("nmoe.recipes.bench_mesh.grpc_aio", str(self.hidden)))
        self._channel = aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)
        self._ask: Callable[[bytes], Awaitable[bytes]] = self._channel.unary_unary("/moe/expert")
        self._gate = FfnGate(hidden=self.hidden)

    async def stop(self) -> None:
        if self._channel:
            await self._channel.close()
        await self._child.stop()

    async def moe(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            plan = self._gate.plan(x)
        calls = [self._ask(b"".join((EXPERT.pack(share.expert), to_bytes(share.inputs)))) for share in plan.shares]  # all begin here
        return combine(plan, [to_tensor(await call, self.hidden) for call in calls])

    def server_pids(self) -> list[int]:
        return self._child.pids


async def serve(hidden: int) -> None:
    """Serve the four experts on a free port of the loopback, say the port, and end with standard input."""
    import grpc
    from grpc import aio

    experts = make_experts(hidden)

    async def answer(request: bytes, _: object) -> bytes:
        (expert,) = EXPERT.unpack_from(request)
        return bytes(to_bytes(experts[expert](to_tensor(request[EXPERT.size :], hidden))))

    with torch.inference_mode():
        server = aio.server(options=OPTIONS)
        handlers = {"expert": grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("moe", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(port, flush=True)
        await stdin_closed()
        await server.stop(None)


if __name__ == "__main__":
    torch.set_num_threads(1)
    asyncio.run(serve(int(sys.argv[1])))
