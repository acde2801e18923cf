"""``nmoe node`` and ``nmoe mesh`` as commands: what they print, how they end, and that nothing of them is left."""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from nmoe.core.errors import MeshError
from nmoe.node import NodeSettings, nursery
from nmoe.node.nursery import check_one_thread, run_nodes
from nmoe.node.process import free_ports

STRICT = ("-W", "error", "-W", "ignore:'click.:DeprecationWarning")  # the latter are typer's
Start = Callable[..., subprocess.Popen[str]]
SETTINGS = NodeSettings(mesh="m", listen="tcp/127.0.0.1:1")


class NotToBeForkedError(Exception):
    """The test would have forked pytest."""


@pytest.fixture
def name() -> str:
    """A mesh name of this test alone: every process of the mesh has it on its command line, forked ones too."""
    return f"test-{os.getpid()}-{time.monotonic_ns()}"


@pytest.fixture
def start(name: str) -> Iterator[Start]:
    """Start ``nmoe`` in a session of its own, as a shell does with a job, so that its group can be signalled."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *STRICT, "-m", "nmoe", *map(str, words), "--mesh", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()
    assert left(name) == []


def left(name: str, *, within_s: float = 10.0) -> list[psutil.Process]:
    """Return the processes of a mesh that are still there after a while."""
    until_s = time.monotonic() + within_s
    while True:
        found = [process for process in psutil.process_iter(["cmdline"]) if name in (process.info["cmdline"] or ())]
        if not found or time.monotonic() > until_s:
            return found
        time.sleep(0.02)


def nodes_of(mesh: Any, count: int, endpoints: list[str] | None = None) -> list[object]:
    endpoints = endpoints or [f"tcp/127.0.0.1:{port}" for port in free_ports(count)]
    return ["node", *mesh.folders[:count], *itertools.chain.from_iterable(("--listen", endpoint) for endpoint in endpoints)]


def ready(process: subprocess.Popen[str], count: int) -> dict[str, int]:
    """Read that many lines of nodes that are ready; return their process numbers by name."""
    assert process.stdout is not None
    found = {}
    for _ in range(count):
        word, node, endpoint, pid = process.stdout.readline().split()
        assert (word, endpoint.rpartition(":")[0]) == ("ready", "tcp/127.0.0.1")
        found[node] = int(pid)
    return found


@pytest.fixture
def run_folder(mesh: Any, tmp_path: Path) -> Path:
    """A run folder with three bundles."""
    for folder in mesh.folders[:3]:
        shutil.copytree(folder, tmp_path / "run" / "bundles" / folder.name)
    return tmp_path / "run"


def test_one_bundle_is_served_by_the_command_itself(mesh: Any, start: Start) -> None:
    process = start(*nodes_of(mesh, 1))
    assert ready(process, 1) == {"node-0": process.pid}
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 0


def test_a_node_that_dies_is_reported_and_reaped_and_the_others_go_on_until_none_is_left(mesh: Any, start: Start) -> None:
    process = start(*nodes_of(mesh, 3))
    pids = ready(process, 3)
    assert sorted(pids) == ["node-0", "node-1", "node-2"]
    assert {psutil.Process(pid).ppid() for pid in pids.values()} == {process.pid}
    assert process.stdout is not None
    assert process.stderr is not None
    os.kill(pids["node-1"], signal.SIGKILL)
    assert process.stdout.readline() == "ended node-1 -9\n"
    assert process.stderr.readline() == f"node-1 (pid {pids['node-1']}) was ended by signal 9; the others go on\n"
    assert not psutil.pid_exists(pids["node-1"])
    assert psutil.pid_exists(pids["node-0"])
    os.kill(pids["node-0"], signal.SIGTERM)
    assert process.stdout.readline() == "ended node-0 0\n"
    os.kill(pids["node-2"], signal.SIGKILL)
    said, errors = process.communicate(timeout=10)
    assert said == "ended node-2 -9\n"
    assert errors.splitlines()[-1] == "error: no node is left"
    assert process.returncode == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_forker_ends_all_frozen_ones_too(mesh: Any, start: Start, name: str, number: signal.Signals) -> None:
    process = start(*nodes_of(mesh, 3))
    os.kill(ready(process, 3)["node-1"], signal.SIGSTOP)
    process.send_signal(number)
    assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 0
    assert left(name, within_s=0) == []


def test_nothing_is_left_when_the_forker_is_killed(mesh: Any, start: Start, name: str) -> None:
    process = start(*nodes_of(mesh, 3))
    ready(process, 3)
    process.kill()
    process.communicate(timeout=10)  # ends when the last node has: each holds the other end
    assert left(name, within_s=1) == []


@pytest.mark.parametrize("after_s", [1.0, 2.0, None])
def test_nothing_is_left_when_the_forker_is_killed_or_its_input_ends_while_it_starts(
    mesh: Any, start: Start, name: str, after_s: float | None
) -> None:
    process = start(*nodes_of(mesh, 3), "--exit-with-parent")
    if after_s is None:
        process.communicate(timeout=20)
    else:
        time.sleep(after_s)
        process.kill()
    assert left(name) == []


@pytest.mark.parametrize("num_nodes", [1, 3])
def test_a_port_in_use_or_a_damaged_bundle_ends_all_with_one_line(
    mesh: Any, start: Start, tmp_path: Path, num_nodes: int, name: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoints = [f"tcp/127.0.0.1:{port}" for port in (*free_ports(num_nodes - 1), taken.getsockname()[1])]
        process = start(*nodes_of(mesh, num_nodes, endpoints))
        _, errors = process.communicate(timeout=20)
    prefix = "" if num_nodes == 1 else f"node-{num_nodes - 1}: "
    assert errors == f"error: {prefix}cannot join mesh {name} on {endpoints[-1]}: the address is already in use\n"
    assert process.returncode == 2
    damaged = shutil.copytree(mesh.folders[num_nodes - 1], tmp_path / "damaged")
    (damaged / "expert.safetensors").write_bytes(b"nothing")
    words = [damaged if word == mesh.folders[num_nodes - 1] else word for word in nodes_of(mesh, num_nodes)]
    process = start(*words)
    _, errors = process.communicate(timeout=20)
    assert errors.startswith(f"error: {prefix}{damaged}/expert.safetensors is damaged")
    assert errors.count("\n") == 1
    assert process.returncode == 2


def test_a_node_killed_before_it_is_ready_ends_all(mesh: Any, start: Start) -> None:
    process = start(*nodes_of(mesh, 3))
    forker = psutil.Process(process.pid)
    while not (children := forker.children()):
        time.sleep(0.001)
    children[0].kill()
    _, errors = process.communicate(timeout=20)
    assert errors == "error: node-0: was ended by signal 9\n"
    assert process.returncode == 2


@pytest.mark.parametrize("after_s", [0.9, 3.0, None])
def test_ctrl_c_leaves_no_process_of_a_mesh_up_or_starting(run_folder: Path, start: Start, name: str, after_s: float | None) -> None:
    process = start("mesh", run_folder)
    assert process.stdout is not None
    if after_s is None:
        lines = [process.stdout.readline() for _ in range(4)]
        assert [line.split()[0] for line in lines] == ["node-0", "node-1", "node-2", "mesh"]
    else:
        time.sleep(after_s)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert left(name, within_s=3) == []  # at once, unless the command ended while it was loading and left its nodes to notice
    assert process.returncode in {130, -signal.SIGINT}
    if after_s is None:
        assert "Traceback" not in errors
        assert process.returncode == 130


def test_a_mesh_names_the_node_that_ended_and_goes_on(run_folder: Path, start: Start, name: str) -> None:
    process = start("mesh", run_folder)
    assert process.stdout is not None
    pids = [int(process.stdout.readline().split()[3]) for _ in range(3)]
    process.stdout.readline()
    os.kill(pids[1], signal.SIGKILL)
    assert process.stdout.readline() == "node-1 ended with status -9; 2 of 3 nodes are left\n"
    assert process.poll() is None
    for pid in (pids[0], pids[2]):
        os.kill(pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=20)
    assert errors == f"error: no node of mesh {name} is left\n"


def test_one_endpoint_per_bundle_is_wanted(mesh: Any) -> None:
    with pytest.raises(ValueError, match="one endpoint to listen on per bundle wanted, got 1 for 2 bundles"):
        run_nodes(mesh.folders[:2], SETTINGS, listen=["tcp/127.0.0.1:1"])


def test_a_process_with_threads_is_not_forked() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="another")
    thread.start()
    try:
        with pytest.raises(ValueError, match=r"only from a process with one thread, this one has \d+ .*another.*OMP_NUM_THREADS"):
            check_one_thread()
    finally:
        stop.set()
        thread.join()


def test_where_there_is_no_fork_one_node_is_served_and_several_are_refused(mesh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = []
    monkeypatch.setattr(nursery, "run_node", lambda bundle, *_, **__: served.append(bundle))
    monkeypatch.setattr(nursery, "Forker", NotToBeForkedError)
    monkeypatch.setattr(sys, "platform", "win32")
    run_nodes(mesh.folders[:1], SETTINGS, listen=["tcp/127.0.0.1:1"])
    assert served == mesh.folders[:1]
    with pytest.raises(MeshError, match=r"^win32 cannot fork: start each node by its own command, nmoe node BUNDLE$"):
        run_nodes(mesh.folders[:2], SETTINGS, listen=["tcp/127.0.0.1:1", "tcp/127.0.0.1:2"])
