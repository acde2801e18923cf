"""Experts of a mesh as a torch module: equal to the ones in this process, gradients included, and the async client beside them."""

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nmoe.core.errors import MeshBusy, MeshError
from nmoe.core.seeds import torch_generator
from nmoe.moe.expert import Expert, MlpExpert
from nmoe.moe.layer import LocalExperts
from nmoe.node import ExpertClient, ExpertHost, MemoryHub, Mesh, NodeOptions, RemoteExperts, RemoteMixture, TensorFormat
from nmoe.node.messages import GradientRequest, RefusalCode, decode, encode, refusal
from nmoe.node.transport.base import Service

DIM, OUT, NAMES = 24, 7, ("a", "b", "c", "d", "e")


@pytest.fixture(scope="module")
def experts() -> list[Expert]:
    return [
        MlpExpert(feature_dim=DIM, hidden_dim=16, num_classes=OUT, generator=torch_generator(0, "expert", index)).eval()
        for index in range(len(NAMES))
    ]


@pytest.fixture
def hub() -> Iterator[MemoryHub]:
    with MemoryHub() as hub:
        yield hub


def host(hub: MemoryHub, name: str, experts: list[Expert], which: str, **options: Any) -> ExpertHost:
    modules = {one: experts[NAMES.index(one)] for one in which}
    return ExpertHost(name, modules, in_dim=DIM, out_dim=OUT, transport=hub.transport(name), options=NodeOptions(**options))


def client_of(hub: MemoryHub, **arguments: Any) -> ExpertClient:
    return ExpertClient(hub.transport("caller"), experts=NAMES, in_dim=DIM, out_dim=OUT, **arguments)


def batch(rows: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch_generator(seed, "batch", rows)
    return torch.randn(rows, DIM, generator=generator), torch.randn(rows, len(NAMES), generator=generator)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 3, 300])
def test_remote_equals_local(hub: MemoryHub, experts: list[Expert], rows: int, k: int) -> None:
    features, scores = batch(rows)
    with host(hub, "one", experts, "abc"), host(hub, "two", experts, "de"), client_of(hub) as client, torch.no_grad():
        client.wait_for()
        local = LocalExperts(experts)(features, scores, k=k)
        for _ in range(3):
            remote = RemoteExperts(client)(features, scores, k=k)
            assert torch.equal(remote.experts, local.experts)
            assert torch.allclose(remote.outputs, local.outputs, atol=1e-5)
            assert torch.allclose(remote.weights, local.weights, atol=1e-6)
            assert torch.allclose(remote.mixed(), local.mixed(), atol=1e-5)


@pytest.mark.parametrize(("form", "error"), [(TensorFormat.FLOAT16, 0.005), (TensorFormat.INT8, 0.05), (TensorFormat.INT4, 0.6)])
def test_lean_formats_cost_little(hub: MemoryHub, experts: list[Expert], form: TensorFormat, error: float) -> None:
    features, scores = batch(64)
    with host(hub, "one", experts, "abcde"), client_of(hub, formats=(form,)) as client, torch.no_grad():
        client.wait_for()
        local, remote = LocalExperts(experts)(features, scores, k=2), RemoteExperts(client)(features, scores, k=2)
        assert (remote.outputs - local.outputs).abs().max() < error


def test_a_mixture_of_them_trains_its_gate_and_its_features(hub: MemoryHub, experts: list[Expert]) -> None:
    features, _ = batch(40)
    gate = nn.Linear(DIM, len(NAMES))
    with (
        host(hub, "one", experts, "abc", gradients=True),
        host(hub, "two", experts, "de", gradients=True),
        client_of(hub) as client,
    ):
        client.wait_for()
        found = []
        for layer in (LocalExperts(experts), RemoteExperts(client, gradients=True)):
            inputs = features.clone().requires_grad_()
            gate.zero_grad()
            outputs = layer(inputs, gate(inputs), k=2)
            (outputs.mixed().sin().sum()).backward()
            assert inputs.grad is not None
            assert gate.weight.grad is not None
            found.append((inputs.grad, gate.weight.grad.clone()))
        for local, remote in zip(*found, strict=True):
            assert local.abs().max() > 0.01
            assert torch.allclose(local, remote, atol=1e-5)
        before = [parameter.clone() for expert in experts for parameter in expert.parameters()]
        mixture = RemoteMixture(gate=gate, experts=RemoteExperts(client, gradients=True), k=2)
        losses = []
        for _ in range(10):
            mixture.zero_grad()
            loss = mixture(features).square().mean()
            loss.backward()
            with torch.no_grad():  # by hand: torch's optimisers import a compiler, for seconds
                for parameter in mixture.parameters():
                    parameter -= 0.1 * parameter.grad
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]
        after = [parameter for expert in experts for parameter in expert.parameters()]
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True)), "no step on another's weights"


def test_gradients_are_off_unless_the_host_was_started_with_them(hub: MemoryHub, experts: list[Expert]) -> None:
    features, scores = batch(4)
    features.requires_grad_()
    with host(hub, "one", experts, "abcde"), client_of(hub) as client:
        client.wait_for()
        assert not RemoteExperts(client)(features, scores, k=2).outputs.requires_grad
        outputs = RemoteExperts(client, gradients=True)(features, scores, k=2)
        with pytest.raises(MeshError, match=r"no gradient from .: one gives no gradients: it was started without them"):
            outputs.outputs.sum().backward()


@pytest.mark.parametrize("fault", ["gone", "nonsense", "wrong shape", "busy"])
def test_a_gradient_that_does_not_come_is_a_mesh_error(hub: MemoryHub, experts: list[Expert], fault: str) -> None:
    features, scores = batch(4)
    features.requires_grad_()
    with host(hub, "one", experts, "abcde", gradients=True) as one, client_of(hub) as client:
        client.wait_for()
        outputs = RemoteExperts(client, gradients=True, deadline_s=0.5)(features, scores, k=1)
        if fault == "gone":
            hub.kill("one")
        else:

            def bad(data: bytes, respond: Any) -> None:
                asked = decode(data)
                assert isinstance(asked, GradientRequest)
                if fault == "busy":
                    respond(encode(refusal(RefusalCode.BUSY, "later")))
                else:
                    respond(b"nonsense" if fault == "nonsense" else data)

            one.transport.serve(Service.GRADIENT, bad)
        with pytest.raises(MeshError, match=r"gradient"):
            outputs.outputs.sum().backward()


def test_concurrent_calls_share_messages_and_each_gets_its_own(hub: MemoryHub, experts: list[Expert]) -> None:
    with host(hub, "one", experts, "abcde"), client_of(hub) as client, torch.no_grad():
        client.wait_for()
        layer, local = RemoteExperts(client, deadline_s=5), LocalExperts(experts)

        def right(number: int) -> bool:
            features, scores = batch(1 + number % 3, seed=number)
            with torch.no_grad():
                return torch.allclose(
                    layer(features, scores, k=1 + number % 2).mixed(), local(features, scores, k=1 + number % 2).mixed(), atol=1e-5
                )

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(right, range(320)))
        assert client.dispatcher.origin.links["one"].asked < 320


@pytest.mark.parametrize("k", [1, 2])
def test_failover_between_hosts_of_one_expert(hub: MemoryHub, experts: list[Expert], k: int) -> None:
    features, scores = batch(8)
    if k == 1:
        scores[:, 2] += 100  # one expert, so one message
    with host(hub, "one", experts, "abcde"), host(hub, "two", experts, "abcde"), client_of(hub) as client, torch.no_grad():
        client.wait_for()
        layer, local = RemoteExperts(client), LocalExperts(experts)(features, scores, k=k)
        for name in ("one", "two"):
            hub.busy(name)
            for _ in range(10):
                assert torch.allclose(layer(features, scores, k=k).mixed(), local.mixed(), atol=1e-5)
            hub.restore(name)


def test_when_nobody_answers_in_time_it_is_said(hub: MemoryHub, experts: list[Expert]) -> None:
    features, scores = batch(8)
    with host(hub, "one", experts, "abcde"), client_of(hub) as client, torch.no_grad():
        client.wait_for()
        hub.freeze("one")
        began_s = time.monotonic()
        with pytest.raises(MeshError, match="no expert answered in time for 8 of 8 samples"):
            RemoteExperts(client, deadline_s=0.2)(features, scores, k=2)
        assert time.monotonic() - began_s < 1.0
        hub.kill("one")
        with pytest.raises(MeshError, match="no expert answered"):
            RemoteExperts(client, deadline_s=0.2)(features, scores, k=2)


def test_an_expert_missing_costs_its_weight(hub: MemoryHub, experts: list[Expert]) -> None:
    features, scores = batch(30)
    with host(hub, "one", experts, "abc"), client_of(hub) as client, torch.no_grad():
        client.wait_for(["a", "b", "c"])
        with pytest.raises(MeshError, match=r"nobody serves d, e after 0.05 s"):
            client.wait_for(timeout_s=0.05)
        remote = RemoteExperts(client)(features, scores, k=2)
        scores[:, 3:] = -torch.inf
        assert torch.allclose(remote.mixed(), LocalExperts(experts)(features, scores, k=2).mixed(), atol=1e-5)


def test_awaited_calls_do_not_block_their_loop(hub: MemoryHub, experts: list[Expert]) -> None:
    async def main(layer: RemoteExperts) -> int:
        features, scores = batch(4)
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        found = await asyncio.gather(*(layer.ask(features, scores, k=2) for _ in range(20)))
        ticking.cancel()
        local = LocalExperts(experts)(features, scores, k=2)
        assert all(torch.allclose(one.mixed(), local.mixed(), atol=1e-5) for one in found)
        return ticks

    with MemoryHub(delay_s=0.02) as slow, host(slow, "one", experts, "abcde"), client_of(slow) as client, torch.no_grad():
        client.wait_for()
        assert asyncio.run(main(RemoteExperts(client))) > 5


def test_a_client_that_is_closed_lets_nobody_wait(hub: MemoryHub, experts: list[Expert]) -> None:
    features, scores = batch(4)
    with host(hub, "one", experts, "abcde"):
        client = client_of(hub, max_flights=1)
        client.wait_for()
        hub.freeze("one")
        said: list[BaseException] = []

        def ask() -> None:
            try:
                RemoteExperts(client, deadline_s=30)(features, scores, k=2)
            except MeshError as error:
                said.append(error)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        client.close()
        for thread in threads:
            thread.join(2)
        assert len(said) == 3


@pytest.mark.parametrize("shapes", [((4, DIM + 1), (4, 5)), ((4, DIM), (3, 5)), ((0, DIM), (0, 5)), ((4,), (4, 5))])
def test_shapes_are_checked(hub: MemoryHub, experts: list[Expert], shapes: Any) -> None:
    with host(hub, "one", experts, "abcde"), client_of(hub) as client, torch.no_grad():
        client.wait_for()
        with pytest.raises(ValueError, match=r"features \[batch, 24\] and scores \[batch, 5\] wanted"):
            RemoteExperts(client)(torch.zeros(shapes[0]), torch.zeros(shapes[1]), k=2)
        features, scores = batch(4)
        RemoteExperts(client)(features, scores, k=2)


# The async client of whole nodes


def test_the_async_client_answers_and_fails_over(mesh: Any, images: Tensor, serve: Any) -> None:
    async def main(hub: MemoryHub, runners: Any) -> None:
        async with Mesh(hub.transport("async")) as client:
            await client.wait_for(4)
            assert client.nodes() == ("node-0", "node-1", "node-2", "node-3")
            reply = await client.infer(images, deadline_s=2, node="node-1", k=3)
            assert torch.allclose(reply.probabilities, mesh.reference(1, images, k=3).probabilities, atol=1e-2)
            assert (await client.status("node-1")).answered == 1
            await asyncio.gather(*(client.infer(images[:2], deadline_s=2) for _ in range(40)))
            assert sum(runner.view().answered > 0 for runner in runners) >= 3, "the load is shared"
            hub.busy("node-0")
            hub.kill("node-1")
            await asyncio.gather(*(client.infer(images[:2], deadline_s=2) for _ in range(40)))
            with pytest.raises(MeshBusy, match=r"node node-0 refused \(busy\)"):
                await client.infer(images, deadline_s=1, node="node-0")
            with pytest.raises(MeshError, match="node node-1 is not in the mesh; alive: node-0, node-2, node-3"):
                await client.infer(images, deadline_s=1, node="node-1")
            hub.freeze("node-2")  # silent, and nobody knows yet
            began_s = time.monotonic()
            for _ in range(8):
                await client.infer(images[:2], deadline_s=1.0)
            assert time.monotonic() - began_s < 8 * 0.6, "another is asked before the deadline"
            with pytest.raises(ValueError, match="deadline_s"):
                await client.infer(images, deadline_s=0)
            with pytest.raises(MeshError, match="bad shape"):
                await client.infer(images[:, :4], deadline_s=1)

    with serve(mesh, lease_s=None) as (hub, _, runners):
        asyncio.run(main(hub, runners))


def test_the_async_client_takes_on_so_many_requests_and_tells_the_rest_at_once(mesh: Any, images: Tensor, serve: Any) -> None:
    async def main(hub: MemoryHub) -> None:
        async with Mesh(hub.transport("async"), max_in_flight=4) as client:
            await client.wait_for(4)
            for _ in range(2):  # places are free again afterwards
                told = await asyncio.gather(*(client.infer(images[:2], deadline_s=2) for _ in range(40)), return_exceptions=True)
                assert [isinstance(one, MeshBusy) for one in told] == [False] * 4 + [True] * 36
                assert str(told[4]) == "busy: 4 requests of this client wait for an answer already"
                assert not any(isinstance(one, BaseException) for one in told[:4])

    with serve(mesh, lease_s=None) as (hub, _, _):
        asyncio.run(main(hub))
    with MemoryHub() as hub, pytest.raises(ValueError, match="max_in_flight must be at least 1, got 0"):
        Mesh(hub.transport("async"), max_in_flight=0)


def test_the_async_client_says_when_nobody_is_there(images: Tensor) -> None:
    async def main(hub: MemoryHub) -> None:
        async with Mesh(hub.transport("async")) as client:
            with pytest.raises(MeshError, match="1 nodes wanted, 0 found"):
                await client.infer(images, deadline_s=0.1)

    with MemoryHub() as hub:
        asyncio.run(main(hub))


def test_several_experts_of_one_node_run_as_one_product(hub: MemoryHub, experts: list[Expert]) -> None:
    with ExitStack() as stack:
        served = stack.enter_context(host(hub, "one", experts, "abcde"))
        parts = [(name, np.random.default_rng(index).standard_normal((4, DIM)).astype(np.float32)) for index, name in enumerate(NAMES)]
        together = served.bank.compute(parts)
        alone = list(itertools.chain.from_iterable(served.bank.compute([part]) for part in parts))
        assert served.bank._stack is not None
        assert all(np.allclose(one, other, atol=1e-5) for one, other in zip(together, alone, strict=True))
