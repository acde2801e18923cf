"""A mesh in one process: equal to the mixture when all is well, and to what is left of it when not."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nmoe.core.bundle import read_bundle
from nmoe.core.errors import BundleError, MeshError
from nmoe.node import MemoryHub, MeshClient, NodeOptions, NodeRunner
from nmoe.node.messages import ExpertReply, ExpertRequest, ExpertRows, Refusal, RefusalCode, TensorFormat, decode, encode
from nmoe.node.transport.base import Service, Silence

Meshes = Callable[..., list[Path]]
NO_REQUEST = encode(
    ExpertReply(request=1, format=TensorFormat.FLOAT32, outputs=np.ones((1, 1), np.float32), wait_s=0, compute_s=0, queue_rows=0)
)
SLACK_BYTES = 16  # numbers in a header take one to nine bytes


def expert_request(expert: str, features: np.ndarray, *, deadline_s: float = 0.5) -> ExpertRequest:
    return ExpertRequest(
        request=3,
        origin="node-9",
        deadline_s=deadline_s,
        format=TensorFormat.FLOAT32,
        experts=(ExpertRows(expert=expert),),
        features=features,
    )


@pytest.mark.parametrize("k", [None, 1, 3, 4])
def test_served_answers_are_the_mixtures(mesh: Any, images: Tensor, serve: Any, k: int | None) -> None:
    with serve(mesh) as (_, client, _):
        for node in range(4):
            reply = client.infer(f"node-{node}", images, deadline_s=5, k=k)
            reference = mesh.reference(node, images, k=k or 2)
            assert torch.equal(reply.labels, reference.probabilities.argmax(dim=1))
            assert torch.allclose(reply.probabilities, reference.probabilities, atol=1e-5)
            assert torch.equal(reply.experts, reference.routing.experts)
            assert torch.allclose(reply.weights, reference.routing.weights, atol=1e-6)


def test_bytes_are_those_of_the_messages(mesh: Any, images: Tensor, serve: Any) -> None:
    with serve(mesh) as (_, client, _):
        reply = client.infer("node-0", images, deadline_s=5)
    sent = received = 0
    for peer in range(1, 4):
        rows = np.nonzero((reply.experts == peer).any(dim=1).numpy())[0]
        if len(rows):
            asked = expert_request(f"node-{peer}", np.zeros((len(rows), 128), np.float32))
            answered = ExpertReply(
                request=1,
                format=TensorFormat.FLOAT32,
                outputs=np.zeros((len(rows), 10), np.float32),
                wait_s=0.5,
                compute_s=0.5,
                queue_rows=0,
            )
            sent += len(encode(asked))
            received += len(encode(answered))
    assert abs(reply.bytes_sent - sent) <= 3 * SLACK_BYTES
    assert abs(reply.bytes_received - received) <= 3 * SLACK_BYTES


@pytest.mark.parametrize("mix", ["probabilities", "logits"])
def test_both_mixes(mix: str, mesh: Any, new_mesh: Meshes, images: Tensor, serve: Any, tmp_path: Path) -> None:
    folders = new_mesh(tmp_path, 3, mix=mix, seed=5)
    other = type(mesh)(folders, [read_bundle(folder) for folder in folders])
    with serve(other) as (_, client, _):
        reply = client.infer("node-1", images, deadline_s=5)
        assert torch.allclose(reply.probabilities, other.reference(1, images, k=2).probabilities, atol=1e-5)


def without(mesh: Any, images: Tensor, lost: int, *, replaced: bool) -> Tensor:
    """The experts [batch, 2] behind node-0's answer when one fails after the gate has chosen it.

    Its samples go to the next best expert, of a node that was asked about others of these images or was not, or to node-0's own.
    """
    experts = mesh.reference(0, images, k=2).routing.experts.clone()
    ranks = mesh.reference(0, images, k=4).routing.experts.tolist()
    for row in range(len(images)):
        for slot in range(2):
            if experts[row, slot] == lost:
                free = [expert for expert in ranks[row] if expert not in experts[row]] if replaced else []
                experts[row, slot] = free[0] if free else -1
    return experts


@pytest.mark.parametrize("fault", ["busy", "frozen", "frozen longer than its lease", "broken"])
def test_a_failing_peer_is_replaced_in_time_and_else_costs_its_weight_and_no_more(
    mesh: Any, images: Tensor, serve: Any, fault: str
) -> None:
    with serve(mesh, lease_s=0.1 if "lease" in fault else None) as (hub, client, runners):
        if fault == "busy":
            hub.busy("node-2")
        elif fault == "broken":
            runners[2].transport.serve(Service.EXPERT, lambda data, respond: respond(b"nonsense"))
        else:
            hub.freeze("node-2")
        before_s = time.monotonic()
        reply = client.infer("node-0", images, deadline_s=1.0)
        took_s = time.monotonic() - before_s
        assert took_s <= 1.0
        assert took_s < 0.7 or fault == "frozen"
        experts = without(mesh, images, 2, replaced=fault != "frozen")
        assert torch.equal(reply.experts, experts)
        assert torch.allclose(reply.weights.sum(dim=1), torch.ones(len(images)))
        assert torch.allclose(reply.probabilities, mesh.mixed(0, images, experts), atol=1e-5)
        view = client.status("node-0").view
        assert (view.answered, view.degraded) == (1, 1)
        why = {"busy": "busy", "broken": "unreadable", "frozen": "timeout"}.get(fault, "gone")
        assert {link.peer: link.failed for link in view.links} == {"node-1": {}, "node-2": {why: 1}, "node-3": {}}


def test_a_peer_that_is_down_is_not_chosen(mesh: Any, images: Tensor, serve: Any, eventually: Any, peers: Any) -> None:
    with serve(mesh) as (hub, client, runners):
        hub.kill("node-2")
        eventually(lambda: peers(runners[0].view()) == ("node-1", "node-3"))
        assert "node-2" not in client.nodes()
        reply = client.infer("node-0", images, deadline_s=5)
        reference = mesh.reference(0, images, k=2, up={0, 1, 3})
        assert torch.allclose(reply.probabilities, reference.probabilities, atol=1e-5)
        assert client.infer("node-0", images, deadline_s=5, k=4).experts.shape == (40, 4)


def test_with_nobody_left_the_own_expert_answers(mesh: Any, images: Tensor, serve: Any, eventually: Any, peers: Any) -> None:
    alone = mesh.reference(0, images, k=1, up={0}).probabilities
    with serve(mesh, lease_s=None) as (hub, client, runners):
        for name in ("node-1", "node-2", "node-3"):
            hub.freeze(name)  # chosen, and silent
        reply = client.infer("node-0", images, deadline_s=0.3, k=4)
        assert torch.allclose(reply.probabilities, alone, atol=1e-5)
        for name in ("node-1", "node-2", "node-3"):
            hub.kill(name)  # not chosen at all
        eventually(lambda: peers(runners[0].view()) == ())
        reply = client.infer("node-0", images, deadline_s=5)
        assert torch.allclose(reply.probabilities, alone, atol=1e-5)
        assert reply.experts.tolist() == [[0, -1]] * 40
        assert reply.weights.tolist() == [[1.0, 0.0]] * 40
        assert (reply.bytes_sent, reply.bytes_received) == (0, 0)


def test_a_peer_killed_during_a_request_is_not_waited_for(mesh: Any, images: Tensor, serve: Any) -> None:
    with serve(mesh, lease_s=None) as (hub, client, _):
        hub.freeze("node-2")
        threading.Timer(0.2, lambda: hub.kill("node-2")).start()
        reply = client.infer("node-0", images, deadline_s=5)
        assert reply.seconds < 2
        assert torch.allclose(reply.probabilities, mesh.mixed(0, images, without(mesh, images, 2, replaced=True)), atol=1e-5)


def test_slow_links_are_waited_for(mesh: Any, images: Tensor, serve: Any) -> None:
    with serve(mesh, delay_s=0.05) as (_, client, _):
        reply = client.infer("node-0", images, deadline_s=5)
        assert reply.seconds > 0.1
        assert torch.allclose(reply.probabilities, mesh.reference(0, images, k=2).probabilities, atol=1e-5)


def test_many_threads_share_a_client(mesh: Any, images: Tensor, serve: Any) -> None:
    reference = [mesh.reference(node, images, k=2).probabilities for node in range(4)]
    wrong: list[int] = []

    def ask(node: int) -> None:
        for row in range(0, 40, 4):
            reply = client.infer(f"node-{node}", images[row : row + 4], deadline_s=10)
            if not torch.allclose(reply.probabilities, reference[node][row : row + 4], atol=1e-5):
                wrong.append(row)

    with serve(mesh) as (_, client, _):
        threads = [threading.Thread(target=ask, args=(index % 4,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_refusals_are_mesh_errors_that_name_the_reason(mesh: Any, images: Tensor, serve: Any) -> None:
    with serve(mesh) as (hub, client, _):
        with pytest.raises(MeshError, match=r"node-0 refused \(bad shape\): images of \(8, 8, 1\) wanted, \(4, 8, 1\) came"):
            client.infer("node-0", images[:, :4], deadline_s=1)
        with pytest.raises(MeshError, match=r"k must be between 1 and the 4 experts, got 9"):
            client.infer("node-0", images, deadline_s=1, k=9)
        with pytest.raises(MeshError, match=r"node nobody is not in the mesh; alive: node-0, node-1, node-2, node-3"):
            client.infer("nobody", images, deadline_s=1)
        hub.busy("node-1")
        with pytest.raises(MeshError, match=r"node-1 refused \(busy\)"):
            client.infer("node-1", images, deadline_s=1)
        client.infer("node-0", images, deadline_s=1)  # and the others are as well as before


@pytest.mark.parametrize("wrong", [{"deadline_s": 0}, {"deadline_s": float("nan")}, {"deadline_s": 1, "k": 0}])
def test_callers_mistakes_are_value_errors(wrong: dict[str, Any], images: Tensor) -> None:
    with MemoryHub() as hub, MeshClient(hub.transport("client")) as client:
        with pytest.raises(ValueError, match="must be"):
            client.infer("node-0", images, **wrong)
        with pytest.raises(ValueError, match="images must be uint8 or float32"):
            client.infer("node-0", images.double(), deadline_s=1)


def ask(hub: MemoryHub, service: Service, payload: bytes, *, timeout_s: float = 5) -> bytes | Silence:
    replies: SimpleQueue[bytes | Silence] = SimpleQueue()
    with hub.transport("asker") as transport:
        transport.ask("node-0", service, payload, timeout_s=timeout_s, on_reply=replies.put)
        return replies.get(timeout=timeout_s + 1)


@pytest.mark.parametrize("service", list(Service))
@pytest.mark.parametrize("payload", [b"", b"nonsense", b"NMOE\x01\x01", NO_REQUEST])
def test_damaged_requests_are_refused_and_fail_alone(mesh: Any, images: Tensor, serve: Any, service: Service, payload: bytes) -> None:
    with serve(mesh, options=NodeOptions(gradients=True)) as (hub, client, _):
        reply = ask(hub, service, payload)
        assert isinstance(reply, bytes)
        message = decode(reply)
        assert isinstance(message, Refusal)
        assert message.code is RefusalCode.BAD_SHAPE
        client.infer("node-0", images, deadline_s=5)


def test_expert_requests_of_wrong_width_or_too_late_are_refused(mesh: Any, serve: Any) -> None:
    with serve(mesh) as (hub, _, _):
        for dim, deadline_s, code in ((64, 1.0, RefusalCode.BAD_SHAPE), (128, 0.0, RefusalCode.LATE)):
            request = expert_request("node-0", np.zeros((2, dim), np.float32), deadline_s=deadline_s)
            reply = ask(hub, Service.EXPERT, encode(request))
            assert isinstance(reply, bytes)
            message = decode(reply)
            assert isinstance(message, Refusal)
            assert (message.code, message.request) == (code, 3)


def test_a_full_node_refuses_at_once(mesh: Any, images: Tensor, pose: Any, eventually: Any, peers: Any) -> None:
    bundle = mesh.bundles[0]
    with (
        MemoryHub(lease_s=None) as hub,
        NodeRunner(bundle, hub.transport("node-0"), options=NodeOptions(max_requests=1)) as runner,
        hub.transport("node-1") as silent,
        MeshClient(hub.transport("client")) as client,
    ):
        pose(silent, mesh.bundles[1])
        eventually(lambda: peers(runner.view()) == ("node-1",))
        first = threading.Thread(target=lambda: client.infer("node-0", images, deadline_s=1.0))
        first.start()
        eventually(lambda: len(runner.dispatcher.origin.requests) == 1)
        with pytest.raises(MeshError, match=r"refused \(busy\): node-0 has 1 requests"):
            client.infer("node-0", images, deadline_s=1.0)
        first.join()
        client.infer("node-0", images, deadline_s=1.0)


def test_stopping_answers_what_is_in_progress(mesh: Any, images: Tensor, pose: Any, eventually: Any, peers: Any) -> None:
    with MemoryHub(lease_s=None) as hub, hub.transport("node-1") as silent, MeshClient(hub.transport("client")) as client:
        runner = NodeRunner(mesh.bundles[0], hub.transport("node-0"))
        pose(silent, mesh.bundles[1])
        runner.start()
        eventually(lambda: peers(runner.view()) == ("node-1",))
        threading.Timer(0.2, runner.stop).start()
        with pytest.raises(MeshError, match=r"went away|stopping"):
            client.infer("node-0", images, deadline_s=5, k=2)
        runner.stop()


def test_a_handler_that_raises_becomes_a_refusal(mesh: Any) -> None:
    def broken(data: bytes, respond: Any) -> None:
        raise RuntimeError("oops")

    with MemoryHub() as hub, hub.transport("node-0") as transport:
        transport.serve(Service.EXPERT, broken)
        reply = ask(hub, Service.EXPERT, b"")
        assert isinstance(reply, bytes)
        assert decode(reply) == Refusal(request=0, code=RefusalCode.FAILED, reason="RuntimeError: oops")


def test_a_damaged_bundle_does_not_start(mesh: Any, new_mesh: Meshes, tmp_path: Path) -> None:
    (folder,) = new_mesh(tmp_path, 1)
    file = folder / "expert.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"expert.safetensors is damaged"):
        read_bundle(folder)


def test_a_batch_too_large_for_the_messages_about_it_is_refused(
    mesh: Any, images: Tensor, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nmoe.node.desk.MAX_MESSAGE_BYTES", 4096 + 10 * 4 * 128)
    with serve(mesh) as (_, client, _):
        with pytest.raises(MeshError, match="at most 10 images at once, 11 came"):
            client.infer("node-0", images[:11], deadline_s=5)
        client.infer("node-0", images[:10], deadline_s=5)
