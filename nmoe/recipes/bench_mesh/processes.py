"""Processes as Linux accounts for them: processor time and memory of trees of processes, and children that end with their parent."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from nmoe.recipes.bench_mesh.base import Unavailable

STOP_S = 5.0  # how long a process may take to end by itself
_PROCESS_CLOCK = 2  # CPUCLOCK_SCHED in linux/posix-timers.h: the time all threads of a process ran, in nanoseconds


def descendants(root: int) -> list[int]:
    """Return a process and everything below it, parents first."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                # The name in parentheses may hold spaces; the parent is the second field after it.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                below.setdefault(parent, []).append(int(entry.name))
    tree = [root]
    for pid in tree:
        tree += below.get(pid, [])
    return tree


def cpu_clocks(pids: Iterable[int]) -> dict[int, float]:
    """Return the processor seconds that each living process has used so far.

    /proc/PID/stat counts in ticks of 10 ms, too coarse for a call of 1 ms; a process's own clock counts in nanoseconds.
    """
    clocks = {}
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            clocks[pid] = time.clock_gettime(~pid << 3 | _PROCESS_CLOCK)
    return clocks


def cpu_seconds(before: Mapping[int, float]) -> float:
    """Return the processor seconds used since a reading; a process that has ended since counts as idle."""
    return sum(seconds - before[pid] for pid, seconds in cpu_clocks(before).items())


def pss_bytes(roots: list[int]) -> int:
    """Return the proportional set size of trees of processes: shared pages are divided among those who share them."""
    total = 0
    for pid in {pid for root in roots for pid in descendants(root)}:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def kill(pids: list[int]) -> None:
    """Kill processes, by number."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Child:
    """A Python module run as a server: it says one line when it is ready, and ends when its standard input closes.

    The kernel closes that input when the parent dies, however it dies, so no server outlives its client.
    """

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pids(self) -> list[int]:
        """The process, if it runs."""
        return [self._process.pid] if self._process and self._process.returncode is None else []

    async def start(self, module: str, *words: str, timeout_s: float = 60.0) -> str:
        """Start ``python -m module words`` and return the line it says when it is ready.

        Raises:
            Unavailable: when it ends, or says nothing for ``timeout_s``.
        """
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(sys.executable, "-m", module, *words, stdin=pipe, stdout=pipe)
        assert self._process.stdout
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), timeout_s)
        except TimeoutError:
            raise Unavailable(f"{module} was not ready in {timeout_s:g} s") from None
        if not line:
            raise Unavailable(f"{module} ended with status {await self._process.wait()} before it was ready")
        return line.decode().strip()

    async def stop(self) -> None:
        """End the process and everything below it."""
        if not self.pids:
            return
        assert self._process
        assert self._process.stdin
        tree = descendants(self._process.pid)
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_S)
        except TimeoutError:
            kill(tree[:1])
            await self._process.wait()
        kill(tree[1:])


async def stdin_closed() -> None:
    """Wait until standard input ends; what a ``Child`` does while it serves."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
