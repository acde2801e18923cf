"""Members against a real server: they run what they are given, at the clocks they are given."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nmoe.core.seeds import torch_generator
from nmoe.deliver.delivery import Delivery
from nmoe.deliver.execution import LayerGroup
from nmoe.deliver.http import DeliveryError
from nmoe.deliver.member import ClockedLayers, DeliveryMember
from nmoe.deliver.pack import pack
from nmoe.deliver.scenario import Receiver
from nmoe.deliver.server import DeliveryServer, DeliverySettings

WIDTH, LAYERS = 256, 8


def stack() -> nn.Module:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


def receiver(name: str, **changes) -> Receiver:
    told = {
        "spectral_efficiency": 4.0,
        "deadline_s": 3.0,
        "energy_j": 1e6,
        "batch": 4,
        "device_flops": 1e7,  # 0.42 s for all of it
        "power_w": 10.0,
        "layer_overhead_s": 0.001,
        "models": ("stack",),
    }
    return Receiver(id=name, **{**told, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model, generator = stack(), torch_generator(0, "stack")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1, generator=generator)
    path = tmp_path / "models" / "stack.safetensors"
    path.parent.mkdir()
    save_file(dict(model.state_dict()), path)
    pack(path, model, torch.zeros(1, WIDTH))
    return path.parent


@pytest.fixture
def server(folder: Path):
    one = DeliveryServer(folder, "127.0.0.1", 0, settings=DeliverySettings(bandwidth_hz=4e6))
    one.address = f"http://{one.start()}"
    yield one
    one.stop()


def test_a_member_runs_what_it_is_given_in_time_and_leaves(server, folder, tmp_path):
    inputs = torch.randn(4, WIDTH, generator=torch_generator(0, "inputs"))
    with DeliveryMember(server.address, receiver("a")) as member:
        assert member.given.served
        run = member.run(stack, inputs, cache_dir=tmp_path / "cache")
        assert set(server.replanner.users) == {"a"}
    assert server.replanner.users == {}
    whole = stack()
    from safetensors.torch import load_file

    whole.load_state_dict(load_file(folder / "stack.safetensors"))
    with torch.no_grad():
        assert torch.equal(run.output, whole(inputs))
    assert run.given.model == "stack"
    assert len(run.layers) == LAYERS == len(run.given.clocks)
    for before, after in zip(run.layers[:-1], run.layers[1:], strict=True):
        assert before.finished_s <= after.started_s + 1e-6
        assert before.downloaded_s <= after.downloaded_s
    assert all(layer.downloaded_s <= layer.started_s + 0.05 for layer in run.layers)
    assert run.layers[-1].finished_s <= run.finish_s
    download_s = 8 * (folder / "stack.safetensors").stat().st_size / run.given.rate_bps
    assert run.finish_s > 0.8 * download_s, "it was paced"


def test_who_is_not_served_is_told_why(server, tmp_path):
    with DeliveryMember(server.address, receiver("a", deadline_s=0.1)) as member:
        assert not member.given.served
        with pytest.raises(ValueError, match="deadline_s"):
            member.run(stack, torch.zeros(4, WIDTH), cache_dir=tmp_path)


def test_a_server_that_refuses_or_is_not_there_is_one_line(server):
    with pytest.raises(DeliveryError, match=r"400.*absent"), DeliveryMember(server.address, receiver("a", models=("absent",))):
        pass
    with pytest.raises(DeliveryError, match="cannot reach"), DeliveryMember("http://127.0.0.1:9", receiver("a")):
        pass
    with pytest.raises(ValueError, match="http://"):
        DeliveryMember("127.0.0.1:80", receiver("a"))


def test_clocks_stretch_what_was_computed_and_not_what_was_waited():
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, inputs):
            nonlocal now_s, busy_s
            now_s += 1.25 if self is model[1] else 1.0  # a quarter of it waits
            busy_s += 1.0
            return inputs

    now_s, busy_s, slept = 0.0, 0.0, []

    def sleep(seconds):
        nonlocal now_s
        slept.append(seconds)
        now_s += seconds

    model, delivery = nn.Sequential(*(Slow() for _ in range(3))), Delivery(notify=None)
    delivery.waited_s["1.weight"] = 0.25
    layers = tuple(LayerGroup(name=str(n), tensors=(f"{n}.weight",), bytes=4, flops=1.0) for n in range(3))
    clocks = [1.0, 0.5, 0.25].__getitem__
    clocked = ClockedLayers(model, layers, delivery, clock=clocks, slowdown=2.0, sleep=sleep, now=lambda: now_s, busy=lambda: busy_s)
    model(torch.zeros(1))
    assert slept == pytest.approx([1.0 * (2 - 1), 1.0 * (4 - 1), 1.0 * (8 - 1)])
    assert [span[:2] for span in clocked.spans] == [(0, 0), (1, 1), (2, 2)]
    ends = [span[3] for span in clocked.spans]
    assert ends == pytest.approx([2.0, 2.0 + 0.25 + 4.0, 6.25 + 8.0])
    assert [span[2] for span in clocked.spans] == pytest.approx([0.0, 2.25, 6.25])


def test_a_slow_device_is_slow_for_real(server, tmp_path):
    slow = receiver("a", deadline_s=4.0, device_flops=1e9, min_clock=1.0)
    with DeliveryMember(server.address, slow) as member:
        run = member.run(stack, torch.zeros(4, WIDTH), cache_dir=tmp_path / "cache", slowdown=20.0)
        assert set(run.given.clocks) == {1.0}
        with pytest.raises(ValueError, match="slowdown"):
            member.run(stack, torch.zeros(4, WIDTH), cache_dir=tmp_path / "other", slowdown=0.5)
    assert 0 < sum(layer.finished_s - layer.started_s for layer in run.layers) < run.finish_s
