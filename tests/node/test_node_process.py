"""A mesh of real processes: answered whatever happens to some of them, and none left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from nmoe.core.errors import BundleError, MeshError
from nmoe.node import MeshProcesses, check_together
from nmoe.node.mesh_processes import serve_command
from nmoe.node.process import free_ports

Meshes = Callable[..., list[Path]]


def command(bundles: Sequence[Path], mesh: str, endpoints: Sequence[str]) -> list[str]:
    python, *words = serve_command(bundles, mesh, endpoints)
    return [python, "-W", "error", "-W", "ignore:'click.:DeprecationWarning", *words]  # typer's, about click


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
    except psutil.NoSuchProcess:
        return False


def test_a_mesh_lives_through_a_killed_and_a_frozen_node(mesh: Any, images: Tensor, eventually: Any, peers: Any) -> None:
    with MeshProcesses(mesh.folders[:3], command=command) as running:
        client = running.client
        pids = [node.pid for node in running.nodes.values()]
        assert list(running.nodes) == ["node-0", "node-1", "node-2"]
        assert len({*pids, os.getpid()}) == 4
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
        assert not psutil.pid_exists(pids[1]), "a zombie looks alive"
        assert [running.alive(name) for name in running.nodes] == [True, False, True]
        assert running.ended == {"node-1": -signal.SIGKILL}
        before_s = time.monotonic()
        reply = client.infer("node-0", images, deadline_s=1.0)
        assert time.monotonic() - before_s <= 1.0
        eventually(lambda: peers(client.status("node-0").view) == ())
        reply = client.infer("node-0", images, deadline_s=1.0)
        assert torch.allclose(reply.probabilities, alone, atol=1e-5)
        with pytest.raises(MeshError, match="node node-1 is not in the mesh"):
            client.infer("node-1", images, deadline_s=1.0)
        running.kill("node-1")  # a second time: its number may be another's, so nothing is done
    assert not any(is_running(pid) for pid in pids)  # the frozen one included
    assert running.nodes == {}


@pytest.mark.slow  # with the cores overloaded 1 of 13 thawed nodes never came back (LOG.md): in zenoh's sessions, not yet understood
def test_a_thawed_node_comes_back(mesh: Any, images: Tensor, eventually: Any, peers: Any) -> None:
    with MeshProcesses(mesh.folders[:3], command=command) as running:
        client = running.client
        pids = [node.pid for node in running.nodes.values()]
        running.freeze("node-2")
        eventually(lambda: "node-2" not in peers(client.status("node-0").view))
        running.kill("node-1")
        eventually(lambda: peers(client.status("node-0").view) == ())
        running.thaw("node-2")
        eventually(lambda: peers(client.status("node-0").view) == ("node-2",))
        reply = client.infer("node-0", images, deadline_s=5)
        assert torch.allclose(reply.probabilities, mesh.reference(0, images, k=2, up={0, 2}).probabilities, atol=1e-5)
        running.freeze("node-2")  # and left so
    assert not any(is_running(pid) for pid in pids)
    assert running.nodes == {}


def test_one_bundle_is_a_mesh_too_and_ends_by_sigterm_cleanly(mesh: Any, eventually: Any) -> None:
    with MeshProcesses(mesh.folders[:1], command=command) as running:
        os.kill(running.nodes["node-0"].pid, signal.SIGTERM)
        eventually(lambda: not running.alive("node-0"))
        assert running.ended == {"node-0": 0}
    with running:  # once more
        running.kill("node-0")
        assert running.ended == {"node-0": -signal.SIGKILL}


def test_no_node_outlives_a_killed_forker_even_frozen(mesh: Any, eventually: Any) -> None:
    with MeshProcesses(mesh.folders[:3], command=command) as running:
        pids = [node.pid for node in running.nodes.values()]
        forker = psutil.Process(pids[0]).ppid()
        assert psutil.Process(forker).ppid() == os.getpid()
        running.freeze("node-2")
        os.kill(forker, signal.SIGKILL)
        eventually(lambda: not any(is_running(pid) for pid in pids[:2]))
    assert not any(is_running(pid) for pid in pids)
    assert running.ended == dict.fromkeys(("node-0", "node-1", "node-2"), -signal.SIGKILL)


@pytest.mark.parametrize("num_nodes", [1, 3])
def test_nodes_end_with_the_process_that_started_them(mesh: Any, eventually: Any, num_nodes: int) -> None:
    script = f"""
import time
from pathlib import Path
from nmoe.node import MeshProcesses
with MeshProcesses([Path(folder) for folder in {[str(folder) for folder in mesh.folders[:num_nodes]]!r}]) as running:
    if {num_nodes} > 1:
        running.freeze("node-1")
    print(*[node.pid for node in running.nodes.values()], flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == num_nodes
        pids += [child.pid for child in psutil.Process(parent.pid).children(recursive=True)]
        parent.kill()
        eventually(lambda: not any(is_running(pid) for pid in pids))


@pytest.mark.parametrize("num_nodes", [1, 3])
def test_a_node_that_dies_at_start_is_reported_with_its_reason(new_mesh: Meshes, tmp_path: Path, num_nodes: int) -> None:
    folders = new_mesh(tmp_path, num_nodes)
    (folders[-1] / "gate.safetensors").unlink()
    running = MeshProcesses(folders, command=command, mesh="m")
    name = "" if num_nodes == 1 else "node-2: "
    with pytest.raises(MeshError, match=rf"^mesh m did not start: {name}bundle \S+ lacks gate.safetensors$"), running:
        pass
    assert running.nodes == {}


def test_a_port_in_use_is_reported(mesh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = [*free_ports(2), taken.getsockname()[1]]
        monkeypatch.setattr("nmoe.node.mesh_processes.free_ports", lambda count: ports)
        running = MeshProcesses(mesh.folders[:3], command=command, mesh="m")
        with (
            pytest.raises(MeshError, match=r"^mesh m did not start: node-2: cannot join mesh m on \S+ the address is already in use$"),
            running,
        ):
            pass


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('hello'); import time; time.sleep(30)", "its command printed 'hello'"),
        ("import sys; sys.exit(3)", "node node-0 ended with status 3 and said nothing"),
        ("import time; time.sleep(30)", "not ready after 1 s: node-0, node-1"),
        ("print('ended node-1 -9'); import time; time.sleep(30)", "node node-1 ended with status -9"),
    ],
)
def test_a_mesh_that_does_not_come_up_is_ended(mesh: Any, code: str, reason: str) -> None:
    running = MeshProcesses(mesh.folders[:2], command=lambda *_: [sys.executable, "-u", "-c", code], start_timeout_s=1)
    with pytest.raises(MeshError, match=reason), running:
        pass
    assert running.nodes == {}


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
    words = serve_command([tmp_path / "a", tmp_path / "b"], "m", ["tcp/127.0.0.1:1", "tcp/127.0.0.1:2"])
    assert words == [
        *(sys.executable, "-m", "nmoe", "node", str(tmp_path / "a"), str(tmp_path / "b"), "--mesh", "m"),
        *("--listen", "tcp/127.0.0.1:1", "--listen", "tcp/127.0.0.1:2", "--exit-with-parent"),
    ]
