"""Raw asyncio streams: the reference. Length, request number, expert and tensor bytes, and nothing a mesh needs besides.

One connection carries all requests of a client; answers are told apart by request number. One message per chosen expert. The server
computes in its event loop, in the order in which requests come, and both sides write each message at once (asyncio sets TCP_NODELAY). The
streams' buffers hold a whole message of the largest case, so reading never pauses in the middle of one.
"""

import asyncio
import itertools
import struct
import sys

import numpy as np
import torch
from torch import Tensor

from nmoe.core.errors import MeshError
from nmoe.recipes.bench_mesh.base import System
from nmoe.recipes.bench_mesh.ffn import FfnGate, combine, make_experts
from nmoe.recipes.bench_mesh.processes import Child, stdin_closed

HEADER = struct.Struct("<III")  # payload bytes, request number, expert
BUFFER_BYTES = 1 << 22


def to_bytes(x: Tensor) -> memoryview:
    """Return a tensor's bytes, not copied."""
    return x.contiguous().numpy().data.cast("B")


def to_tensor(data: bytes, hidden: int) -> Tensor:
    """Return [rows, hidden] from the bytes of float32 rows. Copied, because torch wants memory it may write to."""
    return torch.from_numpy(np.frombuffer(bytearray(data), np.float32)).view(-1, hidden)


class TcpSystem(System):
    """Asyncio streams on both sides."""

    name = "tcp"

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden)
        self._child = Child()
        self._writer: asyncio.StreamWriter | None = None
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}

    def missing(self) -> str | None:
        return None

    async def start(self) -> None:
        port = int(await self._child.start("nmoe.recipes.bench_mesh.tcp", str(self.hidden)))
        reader, self._writer = await asyncio.open_connection("127.0.0.1", port, limit=BUFFER_BYTES)
        self._reading = asyncio.create_task(self._read(reader))
        self._gate = FfnGate(hidden=self.hidden)

    async def stop(self) -> None:
        if self._writer:
            self._writer.close()
            await self._reading
        await self._child.stop()

    async def moe(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            plan = self._gate.plan(x)
        answers = [self._ask(share.expert, share.inputs) for share in plan.shares]
        return combine(plan, [to_tensor(await answer, self.hidden) for answer in answers])

    def server_pids(self) -> list[int]:
        return self._child.pids

    def _ask(self, expert: int, x: Tensor) -> asyncio.Future[bytes]:
        """Send one expert's share; the answer comes in the future."""
        assert self._writer
        number = next(self._numbers) & 0xFFFFFFFF
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        data = to_bytes(x)
        self._writer.write(b"".join((HEADER.pack(len(data), number, expert), data)))
        return answer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Hand answers to those who wait for them, until the connection ends."""
        try:
            while True:
                size, number, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
                data = await reader.readexactly(size)
                self._waiting.pop(number).set_result(data)
        except (asyncio.IncompleteReadError, ConnectionError):
            for answer in self._waiting.values():
                answer.set_exception(MeshError("the connection ended"))


async def serve(hidden: int) -> None:
    """Serve the four experts on a free port of the loopback, say the port, and end with standard input."""
    experts = make_experts(hidden)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                size, number, expert = HEADER.unpack(await reader.readexactly(HEADER.size))
                x = to_tensor(await reader.readexactly(size), hidden)
                writer.write(b"".join((HEADER.pack(size, number, expert), to_bytes(experts[expert](x)))))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    with torch.inference_mode():
        server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=BUFFER_BYTES)
        print(server.sockets[0].getsockname()[1], flush=True)
        await stdin_closed()


if __name__ == "__main__":
    torch.set_num_threads(1)
    asyncio.run(serve(int(sys.argv[1])))
