"""Changes while others ask: a node that leaves, and one whose bundle is replaced in place, cost nobody an answer."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from nmoe.core.bundle import read_bundle, write_bundle
from nmoe.node import MemoryHub, MeshClient, MeshProcesses, NodeRunner


class Load:
    """Threads that ask a node again and again; every answer is kept, and every error."""

    def __init__(self, client: MeshClient, node: str, images: Tensor, *, threads: int = 4, deadline_s: float = 2.0) -> None:
        self.replies: list[Any] = []
        self.errors: list[Exception] = []
        self._ask = lambda: client.infer(node, images, deadline_s=deadline_s)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.replies.append(self._ask())
            except Exception as error:  # noqa: BLE001  # whatever it is, it is an answer that did not come
                self.errors.append(error)
            time.sleep(0.002)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def again(mesh: Any, new_mesh: Any, tmp_path: Path) -> Any:
    """A copy of the mesh's bundles, and the same nodes with other experts."""
    copies = [shutil.copytree(folder, tmp_path / "copy" / folder.name) for folder in mesh.folders]
    later = [shutil.copytree(folder, tmp_path / "later" / folder.name) for folder in mesh.folders]
    for place, folder in enumerate(later):  # node i gets node i + 1's weights
        donor = read_bundle(mesh.folders[(place + 1) % 4])
        rewrite(folder, donor)
    return type(mesh)(copies, [read_bundle(folder) for folder in copies]), type(mesh)(later, [read_bundle(folder) for folder in later])


def rewrite(folder: Path, donor: Any) -> None:
    bundle = read_bundle(folder)
    tensors = bundle.tensors | {"expert": donor.tensors["expert"]}
    card = {
        name: value
        for name, value in msgspec.structs.asdict(bundle.card).items()
        if name not in ("format", "files", "extractor_fingerprint")
    }
    write_bundle(folder, tensors, **card)


def test_a_node_that_leaves_costs_no_answer(mesh: Any, images: Tensor, serve: Any, eventually: Callable[..., None]) -> None:
    with serve(mesh) as (_, client, runners), Load(client, "node-0", images[:4]) as load:
        eventually(lambda: len(load.replies) > 20)
        runners[2].drain()
        runners[2].stop()
        seen = len(load.replies)
        eventually(lambda: len(load.replies) > seen + 20)
        view = runners[0].view()
    assert load.errors == []
    link = next(link for link in view.links if link.peer == "node-2")
    assert link.failed == {}, "what it had been asked it answered"
    assert link.answered == link.asked
    assert not (load.replies[-1].experts == 2).any()
    assert not any(reply.degraded for reply in load.replies)


def test_a_node_that_leaves_answers_what_it_is_asked_itself(mesh: Any, images: Tensor, serve: Any) -> None:
    with serve(mesh) as (_, client, runners):
        thread = threading.Thread(target=runners[0].drain)
        thread.start()
        replies = 0
        while client.nodes().count("node-0"):
            client.infer("node-0", images[:4], deadline_s=2)
            replies += 1
        thread.join()
        assert replies > 5
        assert not runners[0].ready
        assert runners[0].view().refused == {}


def test_a_bundle_replaced_in_place_costs_no_answer(again: Any, images: Tensor, serve: Any, eventually: Callable[..., None]) -> None:
    before, after = again
    one = images[:4]
    with serve(before) as (_, client, runners), Load(client, "node-0", one) as load:
        eventually(lambda: len(load.replies) > 20)
        old = runners[2].version
        rewrite(before.folders[2], after.bundles[2])
        assert runners[2].reload() is None
        assert runners[2].version != old
        eventually(lambda: runners[0].dispatcher.introductions.version("node-2") == runners[2].version)
        seen = len(load.replies)
        eventually(lambda: len(load.replies) > seen + 20)
    assert load.errors == []
    assert not any(reply.degraded for reply in load.replies)
    mixed = type(before)(before.folders, [read_bundle(folder) for folder in before.folders])
    first, last = before.reference(0, one, k=2).probabilities, mixed.reference(0, one, k=2).probabilities
    assert not torch.allclose(first, last, atol=1e-3)
    for reply in load.replies:
        assert torch.allclose(reply.probabilities, first, atol=1e-2) or torch.allclose(reply.probabilities, last, atol=1e-2)
    assert torch.allclose(load.replies[-1].probabilities, last, atol=1e-2)


@pytest.mark.parametrize("fault", ["damaged", "another extractor", "another k"])
def test_a_bundle_that_cannot_take_the_place_is_kept_out(
    again: Any, new_mesh: Any, images: Tensor, eventually: Any, tmp_path: Path, fault: str
) -> None:
    before, _ = again
    folder = before.folders[0]
    with (
        MemoryHub() as hub,
        NodeRunner(before.bundles[0], hub.transport("node-0"), folder=folder) as runner,
        MeshClient(hub.transport("c")) as client,
    ):
        version = runner.version
        reference = client.infer("node-0", images, deadline_s=5).probabilities
        if fault == "damaged":
            (folder / "expert.safetensors").write_bytes(b"nothing")
        else:
            other = new_mesh(tmp_path / "other", 4, seed=1 if "extractor" in fault else 0, k=1 if "k" in fault else 2)
            shutil.rmtree(folder)
            shutil.copytree(other[0], folder)
        said = runner.reload()
        assert said is not None
        assert {"damaged": "damaged", "another extractor": "extractor", "another k": "k"}[fault] in said
        assert runner.version == version
        assert torch.equal(client.infer("node-0", images, deadline_s=5).probabilities, reference)


def test_processes_leave_and_reload_by_signals_without_a_failed_request(again: Any, images: Tensor, eventually: Any) -> None:
    before, after = again
    one = images[:4]
    with MeshProcesses(before.folders) as running, Load(running.client, "node-0", one, threads=2) as load:
        eventually(lambda: len(load.replies) > 20)
        rewrite(before.folders[2], after.bundles[2])
        os.kill(running.nodes["node-2"].pid, signal.SIGHUP)
        eventually(lambda: "node-2" in running.said)
        assert running.said["node-2"].startswith("reloaded node-2 ")
        (before.folders[3] / "expert.safetensors").write_bytes(b"nothing")
        os.kill(running.nodes["node-3"].pid, signal.SIGHUP)
        eventually(lambda: "node-3" in running.said)
        assert running.said["node-3"].startswith("kept node-3 ")
        eventually(lambda: running.client.status("node-2").view.bundle == running.said["node-2"].split()[2])
        os.kill(running.nodes["node-1"].pid, signal.SIGTERM)
        eventually(lambda: not running.alive("node-1"))
        assert running.ended == {"node-1": 0}
        seen = len(load.replies)
        eventually(lambda: len(load.replies) > seen + 20)
        view = running.client.status("node-0").view
    assert load.errors == []
    failed = {link.peer: link.failed for link in view.links}
    assert failed == {"node-1": {}, "node-2": {}, "node-3": {}}
    assert not any(reply.degraded for reply in load.replies)
