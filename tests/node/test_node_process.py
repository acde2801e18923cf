"""Real node processes: answered whatever happens to the others, and none left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nmoe.core.errors import BundleError, MeshError
from nmoe.node import MeshProcesses, check_together
from nmoe.node.process import node_command

Meshes = Callable[..., list[Path]]
RUN = """
import sys
from pathlib import Path
from nmoe.core.errors import NmoeError
from nmoe.node.process import run_node
bundle, mesh, listen, *seeds = sys.argv[1:]
try:
    run_node(Path(bundle), mesh=mesh, listen=listen, seeds=seeds, exit_with_parent=True)
except (NmoeError, ValueError) as error:
    sys.exit(f"nmoe: {error}")
"""


def command(bundle: Path, mesh: str, listen: str, seeds: Sequence[str]) -> list[str]:
    return [sys.executable, "-W", "error", "-c", RUN, str(bundle), mesh, listen, *seeds]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] if Path(f"/proc/{pid}/stat").exists() else "X"
    return state not in "ZX"


def test_a_mesh_lives_through_a_killed_and_a_frozen_node(mesh: Any, images: Tensor, eventually: Any) -> None:
    with MeshProcesses(mesh.folders[:3], command=command) as running:
        client = running.client
        pids = [node.process.pid for node in running.nodes.values()]
        assert client.nodes() == ("node-0", "node-1", "node-2")
        reply = client.infer("node-0", images, deadline_s=5)
        reference = mesh.reference(0, images, k=2, up={0, 1, 2})
        assert torch.equal(reply.labels, reference.probabilities.argmax(dim=1))
        assert torch.allclose(reply.probabilities, reference.probabilities, atol=1e-5)

        alone = mesh.reference(0, images, k=1, up={0}).probabilities
        running.freeze("node-2")
        for deadline_s in (0.5, 0.5, 0.5):  # at first the node does not know
            before_s = time.monotonic()
            reply = client.infer("node-0", images, deadline_s=deadline_s)
            assert time.monotonic() - before_s <= deadline_s
            assert not (reply.experts == 2).any()
            assert reply.probabilities.isfinite().all()
        running.kill("node-1")
        before_s = time.monotonic()
        reply = client.infer("node-0", images, deadline_s=1.0)
        assert time.monotonic() - before_s <= 1.0
        eventually(lambda: client.status("node-0").peers == ())
        reply = client.infer("node-0", images, deadline_s=1.0)
        assert torch.allclose(reply.probabilities, alone, atol=1e-5)
        with pytest.raises(MeshError, match="node node-1 is not in the mesh"):
            client.infer("node-1", images, deadline_s=1.0)

        running.thaw("node-2")
        eventually(lambda: client.status("node-0").peers == ("node-2",))
        reply = client.infer("node-0", images, deadline_s=5)
        assert torch.allclose(reply.probabilities, mesh.reference(0, images, k=2, up={0, 2}).probabilities, atol=1e-5)
    assert not any(is_running(pid) for pid in pids)


def test_nodes_end_with_the_process_that_started_them(mesh: Any, eventually: Any) -> None:
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from nmoe.node import MeshProcesses
command = lambda bundle, mesh, listen, seeds: [sys.executable, "-c", {RUN!r}, str(bundle), mesh, listen, *seeds]
with MeshProcesses([Path({str(mesh.folders[0])!r})], command=command) as running:
    print(*[node.process.pid for node in running.nodes.values()], flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert pids
        parent.kill()
        parent.wait()
        eventually(lambda: not any(is_running(pid) for pid in pids))
    finally:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()


def test_a_node_that_dies_at_start_is_reported_with_its_reason(new_mesh: Meshes, tmp_path: Path) -> None:
    (folder,) = new_mesh(tmp_path, 1)
    (folder / "gate.safetensors").unlink()
    running = MeshProcesses([folder], command=command)
    with pytest.raises(MeshError, match=r"^node node-0 did not start: nmoe: bundle .* lacks gate.safetensors$"), running:
        pass
    assert running.nodes == {}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('hello'); import time; time.sleep(30)", "it printed something else than that it is ready"),
        ("import sys; sys.exit(3)", "it ended with status 3 and said nothing"),
        ("import time; time.sleep(30)", "was not ready after 1 s"),
    ],
)
def test_a_node_that_does_not_come_up_is_ended(mesh: Any, code: str, reason: str) -> None:
    running = MeshProcesses(mesh.folders[:1], command=lambda *_: [sys.executable, "-u", "-c", code], start_timeout_s=1)
    with pytest.raises(MeshError, match=reason), running:
        pass
    assert running.nodes == {}


def test_sigterm_ends_a_node_cleanly(mesh: Any) -> None:
    running = MeshProcesses(mesh.folders[:1], command=command)
    with running:
        process = running.nodes["node-0"].process
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_bundles_that_do_not_belong_together_are_refused(mesh: Any, new_mesh: Meshes, tmp_path: Path) -> None:
    other = new_mesh(tmp_path / "other", 2, seed=1)
    with pytest.raises(BundleError, match=r"^node-0 and node-1 have different extractors"):
        MeshProcesses([mesh.folders[0], other[1]])
    order = new_mesh(tmp_path / "order", 2, experts=("node-1", "node-0"))
    with pytest.raises(BundleError, match=r"^node-1 and node-0 list the experts differently"):
        check_together([mesh.folders[1], order[1]])
    with pytest.raises(BundleError, match=r"two bundles are of the same node node-0"):
        check_together([mesh.folders[0], mesh.folders[0]])
    with pytest.raises(ValueError, match="at least one bundle"):
        check_together([])
    with pytest.raises(BundleError, match="not a bundle"):
        check_together([tmp_path])


def test_the_command_line_is_the_documented_one(tmp_path: Path) -> None:
    words = node_command(tmp_path, "m", "tcp/127.0.0.1:1", ["tcp/127.0.0.1:2", "tcp/127.0.0.1:3"])
    assert words == [
        *(sys.executable, "-m", "nmoe", "node", str(tmp_path), "--mesh", "m", "--listen", "tcp/127.0.0.1:1"),
        *("--connect", "tcp/127.0.0.1:2", "--connect", "tcp/127.0.0.1:3", "--exit-with-parent"),
    ]
