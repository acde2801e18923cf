"""Simulated radio links: the laws of SNRs and noise, and what a running node tells its gate of them and sends over them."""

import asyncio
import math

import numpy as np
import pytest
import torch

from nmoe.channel.analog import Analog
from nmoe.channel.estimate import Source
from nmoe.channel.fading import Awgn, Rayleigh
from nmoe.channel.radio import Radio
from nmoe.channel.trace import LinkTrace
from nmoe.core.bundle import read_bundle
from nmoe.node import MemoryHub, NodeOptions, NodeRunner, RadioLinks, TensorFormat
from nmoe.node.radio import Air

FADING = Radio(fading=Rayleigh(), transmission=Analog(), low_db=-10.0, high_db=20.0)
STEADY = Radio(fading=Awgn(), transmission=Analog(), low_db=-10.0, high_db=20.0)


def air(node="a", **changes) -> Air:
    return Air(RadioLinks(**({"radio": STEADY, "seed": 3} | changes)), node=node, started_s=100.0)


def trace(times, snr_db) -> LinkTrace:
    nothing = np.full(len(times), math.nan)
    return LinkTrace(times_s=np.array(times, dtype=float), snr_db=np.array(snr_db, dtype=float), rate_bps=nothing, cqi=nothing)


def test_means_belong_to_directed_pairs_and_stay():
    peers = [f"p{number}" for number in range(400)]
    first = air().block(peers, 100.0)
    assert first == air().block(reversed(peers), 105.0) == air().block(peers, 100.0)
    assert air("p0").block(["a"], 100.0)["a"] != first["p0"]
    assert first != air(seed=4).block(peers, 100.0)
    found = np.sort(list(first.values()))
    assert -10 <= found[0] < -9
    assert 19 < found[-1] <= 20
    assert np.abs(found - np.linspace(-10, 20, 400)).max() < 3  # uniform in dB; Kolmogorov-Smirnov at 1 % allows 2.4
    assert air(mean_snr_db={"p0": 7.0}).block(["p0"], 100.0) == {"p0": pytest.approx(7.0)}


def test_blocks_fade_about_their_mean():
    one = air(radio=FADING, mean_snr_db={"b": 7.0})
    ratios = np.array([10 ** (one.block(["b"], 100.0)["b"] / 10) for _ in range(4000)]) / 10**0.7
    assert ratios.mean() == pytest.approx(1.0, abs=0.06)  # exponential: standard error 1 / sqrt(4000)
    assert (ratios < 0.1).mean() == pytest.approx(1 - math.exp(-0.1), abs=0.02)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 10.0])
def test_what_arrives_carries_the_noise_of_its_link(snr_db):
    features = np.random.default_rng(0).standard_normal((200, 128)).astype(np.float32)
    noise = air().send(features, snr_db) - features
    assert np.square(noise).sum() / np.square(features).sum() == pytest.approx(10 ** (-snr_db / 10), rel=0.03)
    assert air().send(features, math.nan) is features


def test_a_trace_says_the_snr_of_now_begins_again_and_grows_stale():
    links = {"b": trace([5, 6, 40], [10, 20, 30]), "x": trace([0], [-3])}
    one = air(traces=links)
    told = [one.block(["b"], 100.0 + elapsed)["b"] for elapsed in (0.0, 0.5, 1.5, 34.0 + 1.5)]  # 40 - 5 = 35 s long
    assert told == pytest.approx([10, 10, 20, 10])
    assert math.isnan(one.block(["b"], 134.9)["b"]), "its latest report is over 30 s old"
    assert one.state("b", 135.0).source is Source.TRACE
    assert set(one.block(["stranger"], 100.0).values()) <= {10.0, -3.0}


def test_what_cannot_be_simulated_is_said():
    for wrong in ({"seed": -1}, {"mean_snr_db": {"b": math.nan}}, {"bandwidth_hz": 0.0}):
        with pytest.raises(ValueError, match=r"at least 0|mean SNR|bandwidth"):
            RadioLinks(radio=STEADY, **wrong)


# In a node


def run_with_radio(write_mesh, tmp_path, eventually, images, means: dict[str, float], *, worth: float | None, formats=tuple(TensorFormat)):
    """Serve a mesh whose first node has radio links; ask it for every image alone; return its answers and its view."""
    folders = write_mesh(tmp_path, 4, worth=worth)
    radio = RadioLinks(radio=STEADY, mean_snr_db=means)
    with MemoryHub() as hub:
        runners = []
        try:
            for number, folder in enumerate(folders):
                bundle = read_bundle(folder)
                options = NodeOptions(radio=None if number else radio, formats=formats)
                runners.append(NodeRunner(bundle, hub.transport(bundle.card.node), options=options))
                runners[-1].start()
            origin = runners[0].dispatcher.origin
            eventually(lambda: sum(link.usable for link in origin.links.values()) == 3)

            async def ask():
                return [await runners[0].infer(images[row : row + 1], deadline_s=5.0) for row in range(len(images))]

            return asyncio.run(ask()), runners[0].view()
        finally:
            for runner in runners:
                runner.stop()


def shares(answers) -> dict[str, float]:
    names = [answer.names[expert] for answer in answers for expert in answer.experts.flatten().tolist() if expert >= 0]
    return {name: names.count(name) / len(names) for name in set(names)}


def test_a_gate_that_sees_links_leaves_the_noisy_one_alone(write_mesh, tmp_path, eventually, images):
    means = dict.fromkeys(("node-1", "node-2", "node-3"), 25.0)
    naive, _ = run_with_radio(write_mesh, tmp_path / "naive", eventually, images, means, worth=None)
    asked = shares(naive)
    noisy = max(means, key=lambda peer: asked.get(peer, 0.0))
    assert asked[noisy] > 0.1
    means[noisy] = -15.0
    answers, view = run_with_radio(write_mesh, tmp_path / "aware", eventually, images, means, worth=100.0)
    assert shares(answers).get(noisy, 0.0) == 0.0
    links = {link.peer: link for link in view.links}
    assert {peer: round(link.snr_db) for peer, link in links.items()} == means
    assert all(link.snr_source == "simulated" and link.snr_age_s < 30 for link in links.values())


def test_over_perfect_links_the_answers_are_those_without_radio(mesh, write_mesh, tmp_path, eventually, images):
    means = dict.fromkeys(("node-1", "node-2", "node-3"), 100.0)
    plain = (TensorFormat.FLOAT32,)
    answers, _ = run_with_radio(write_mesh, tmp_path, eventually, images, means, worth=None, formats=plain)
    wanted = mesh.reference(0, images, k=2).probabilities
    assert torch.allclose(torch.cat([answer.probabilities for answer in answers]), wanted, atol=1e-3)


def test_a_node_without_radio_and_with_a_naive_gate_computes_nothing_about_links(serve, mesh, images, monkeypatch):
    with serve(mesh) as (_, client, runners):
        quality = runners[0].desk.quality
        assert quality.air is None
        assert not runners[0].newcomers.sees_links
        monkeypatch.setattr(type(quality), "told", lambda *_, **__: pytest.fail("nobody looks at this"))
        client.infer("node-0", images, deadline_s=5.0)
