"""Remote experts: callers share journeys and nothing else; the coalescer's laws."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nmoe.core.errors import MeshError
from nmoe.core.seeds import torch_generator
from nmoe.moe.layer import LocalExperts
from nmoe.node import ExpertClient, ExpertHost, MemoryHub, NodeOptions, RemoteExperts, RemoteMixture
from nmoe.node.coalescer import Coalescer

NAMES = ("one", "two", "three")


def modules() -> list[nn.Module]:
    made = [nn.Linear(6, 4) for _ in NAMES]
    for number, module in enumerate(made):
        with torch.no_grad():
            module.weight.normal_(generator=torch_generator(0, number))
            module.bias.normal_(generator=torch_generator(1, number))
    return [module.eval().requires_grad_(False) for module in made]


@pytest.fixture
def client() -> Iterator[ExpertClient]:
    """A client of one host with three experts, over memory."""
    experts = dict(zip(NAMES, modules(), strict=True))
    with (
        MemoryHub() as hub,
        ExpertHost("host", experts, in_dim=6, out_dim=4, transport=hub.transport("host"), options=NodeOptions(gradients=True)),
        ExpertClient(hub.transport("client"), experts=NAMES, in_dim=6, out_dim=4) as made,
    ):
        made.wait_for()
        yield made


def inputs(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch_generator(seed)
    return torch.randn(rows, 6, generator=generator), torch.randn(rows, 3, generator=generator)


@pytest.mark.parametrize("rows", [1, 2, 33])
def test_remote_experts_equal_local_ones(client: ExpertClient, rows: int) -> None:
    features, scores = inputs(rows)
    remote, local = RemoteExperts(client), LocalExperts(modules())
    for said, wanted in zip(remote(features, scores, k=2), local(features, scores, k=2), strict=True):
        assert torch.allclose(said.float(), wanted.float(), atol=1e-6)


def test_gradients_flow_to_features_and_scores_and_never_to_remote_weights(client: ExpertClient) -> None:
    features, scores = inputs(5)
    derivatives = []
    for layer in (RemoteExperts(client, gradients=True), LocalExperts(modules())):
        leaves = features.clone().requires_grad_(), scores.clone().requires_grad_()
        layer(*leaves, k=2).mixed().square().sum().backward()
        derivatives.append([leaf.grad for leaf in leaves])
    for said, wanted in zip(*derivatives, strict=True):
        assert said is not None
        assert torch.allclose(said, wanted, atol=1e-5)


def test_many_tasks_share_journeys_and_get_their_own_answers(client: ExpertClient) -> None:
    gate = nn.Linear(6, 3).requires_grad_(False)
    mixture, local = RemoteMixture(gate=gate, experts=RemoteExperts(client), k=2), LocalExperts(modules())
    samples = [inputs(1 + number % 3, seed=number)[0] for number in range(40)]

    async def ask() -> list[torch.Tensor]:
        with torch.inference_mode():
            return await asyncio.gather(*(mixture.ask(sample) for sample in samples))

    for said, sample in zip(asyncio.run(ask()), samples, strict=True):
        assert torch.allclose(said, local(sample, gate(sample), k=2).mixed(), atol=1e-5)
    assert client.dispatcher.origin.links["host"].asked < len(samples)


def test_a_gate_that_raises_fails_its_own_callers_alone(client: ExpertClient) -> None:
    class Broken(nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("a broken gate")

    experts = RemoteExperts(client)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="a broken gate"):
        RemoteMixture(gate=Broken(), experts=experts, k=2)(inputs(1)[0])
    features, scores = inputs(2)
    assert experts(features, scores, k=2).outputs.shape == (2, 2, 4)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (torch.full((1, 6), torch.nan), "finite"),
        (torch.zeros(1, 5), r"\[1, 5\]"),
        (torch.zeros(1, 6, dtype=torch.float64), "float32"),
        (torch.zeros(0, 6), "batch"),
        (torch.zeros(70_000, 6), "at most"),
    ],
)
def test_bad_samples_never_leave(client: ExpertClient, features: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RemoteExperts(client)(features, torch.zeros(len(features), 3), k=1)
    assert client.dispatcher.origin.links["host"].asked == 0


def test_a_call_with_time_does_not_share_a_hurried_one_s_deadline(client: ExpertClient) -> None:
    hurried, patient = RemoteExperts(client, deadline_s=0.02), RemoteExperts(client, deadline_s=20.0)
    features, scores = inputs(1)

    async def ask() -> list[object]:
        calls = [layer.ask(features, scores, k=2) for layer in (hurried, patient, hurried, patient)]
        return await asyncio.gather(*calls, return_exceptions=True)

    said = asyncio.run(ask())
    assert not isinstance(said[1], BaseException)
    assert not isinstance(said[3], BaseException)


def test_a_call_that_waits_for_a_flight_is_told_in_time() -> None:
    with MemoryHub(delay_s=0.3) as hub:
        experts = dict(zip(NAMES, modules(), strict=True))
        with (
            ExpertHost("host", experts, in_dim=6, out_dim=4, transport=hub.transport("host")),
            ExpertClient(hub.transport("client"), experts=NAMES, in_dim=6, out_dim=4, max_flights=1) as client,
        ):
            client.wait_for(timeout_s=10)
            first = threading.Thread(target=lambda: RemoteExperts(client, deadline_s=10)(*inputs(1), k=1))
            first.start()
            time.sleep(0.1)
            began_s = time.monotonic()
            with pytest.raises(MeshError, match="in time"):
                RemoteExperts(client, deadline_s=0.2)(*inputs(1), k=1)
            assert time.monotonic() - began_s < 0.5
            first.join()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=20), st.integers(1, 3))
def test_every_call_leaves_once_in_flights_that_are_never_too_many_or_too_large(groups: list[list[int]], max_flights: int) -> None:
    out: list[list[int]] = []

    def launch(calls: list[int]) -> None:
        assert len(calls) == 1 or sum(calls) <= 50
        out.append(calls)

    coalescer: Coalescer[int] = Coalescer(launch, lambda rows: rows, max_flights=max_flights, max_rows=50, max_waiting=1000)
    offered = [rows for group in groups for rows in group]
    for group in groups:
        assert coalescer.submit(list(group)) == []
    assert 1 <= len(out) <= max_flights
    landed, until_s = 0, time.monotonic() + 10
    while sum(map(len, out)) < len(offered) and time.monotonic() < until_s:
        if landed < len(out):
            assert len(out) - landed <= max_flights
            landed += 1
            coalescer.landed()
        else:
            time.sleep(0.0005)
    assert coalescer.close() == []
    assert sorted(rows for calls in out for rows in calls) == sorted(offered)
