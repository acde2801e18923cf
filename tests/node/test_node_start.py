"""Start: a node process is small, and imports nothing that it may not need."""

import subprocess
import sys
import time
from typing import Any

import psutil

from nmoe.node import free_ports

NOT_NEEDED = ("cryptography", "fastapi", "opentelemetry.sdk", "scipy", "sympy", "sklearn", "uvicorn", "torch._dynamo", "torchvision")
LIMIT_BYTES = 300 << 20


def test_a_node_is_small_and_soon_ready(mesh: Any) -> None:
    words = [
        sys.executable,
        "-m",
        "nmoe",
        "node",
        str(mesh.folders[0]),
        "--listen",
        f"tcp/127.0.0.1:{free_ports(1)[0]}",
        "--exit-with-parent",
    ]
    began_s = time.monotonic()
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready node-0 ")
        ready_s = time.monotonic() - began_s
        found = psutil.Process(process.pid)
        used, spent = found.memory_full_info(), found.cpu_times()
        print(
            f"ready after {ready_s:.2f} s, {spent.user + spent.system:.2f} s of CPU; {used.rss >> 20} MiB, proportionally {used.pss >> 20}"
        )
        assert used.rss <= LIMIT_BYTES
        assert process.stdin is not None
        process.stdin.close()
    assert process.returncode == 0


def test_nothing_heavy_is_imported_that_a_node_may_not_need() -> None:
    code = f"import sys, nmoe.node; print([name for name in {NOT_NEEDED!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
