"""Links of the delivery demo: processes in network namespaces of their own, behind pairs of virtual interfaces shaped by the kernel.

A namespace has no name and lives as long as its processes, so none is left behind, however those end.
"""

import shutil
import subprocess
from collections.abc import Sequence

ISOLATED = ("unshare", "--net", "--")  # before a command line: run it in a namespace of its own
COMMAND_S = 20.0
QUEUE_S = 0.05  # that a packet may wait at a link before it is dropped
LEAST_BURST_BYTES = 32 << 10
BURST_S = 0.01  # of the rate: the kernel's timer does not come often enough for less
_PROBE = "ip link set lo up && ip link add a0 type veth peer name b0 && tc qdisc add dev a0 root tbf rate 1mbit burst 32kb latency 50ms"


def why_no_links() -> str:
    """Return why links cannot be made and shaped here; empty when they can."""
    missing = [word for word in ("unshare", "nsenter", "ip", "tc") if shutil.which(word) is None]
    if missing:
        return f"there is no {missing[0]} command"
    tried = subprocess.run([*ISOLATED, "sh", "-c", _PROBE], capture_output=True, text=True, timeout=COMMAND_S, check=False)
    return "" if tried.returncode == 0 else " ".join(tried.stderr.split()) or "no network namespaces are allowed"


def shaped_link(server: int, client: int, number: int, *, rate_bps: float) -> str:
    """Join two isolated processes by a link that carries at most ``rate_bps`` to the client, and return the server's address on it.

    Args:
        server: its process.
        client: its process.
        number: of the link at the server, 0 to 255.
        rate_bps: of the link in bit/s.

    Raises:
        OSError: when the kernel refuses.
    """
    name = f"link{number}"
    inside_server, inside_client = _inside(server), _inside(client)
    _run([*inside_server, "ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(client)])
    for inside, device, host in ((inside_server, name, 1), (inside_client, "eth0", 2)):
        _run([*inside, "ip", "address", "add", f"10.79.{number}.{host}/30", "dev", device])
        _run([*inside, "ip", "link", "set", device, "up"])
    burst_bytes = max(LEAST_BURST_BYTES, int(rate_bps / 8 * BURST_S))
    limits = ["rate", f"{rate_bps:.0f}bit", "burst", str(burst_bytes), "latency", f"{QUEUE_S * 1000:.0f}ms"]
    _run([*inside_server, "tc", "qdisc", "add", "dev", name, "root", "tbf", *limits])
    return f"10.79.{number}.1"


def _inside(process: int) -> list[str]:
    return ["nsenter", "--net", "--target", str(process), "--"]


def _run(words: Sequence[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {' '.join(done.stderr.split())}")
