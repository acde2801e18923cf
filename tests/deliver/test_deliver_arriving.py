"""Weights that arrive: waited for when touched, whoever touches them, and plain again afterwards."""

import copy

import pytest
import torch
from torch import nn

from nmoe.deliver.arriving import ArrivingTensors, await_weights, build_empty, settle, weight_slots


class Fed:
    """A model with a loaded twin, whose weights arrive when they are asked for."""

    def __init__(self, build):
        self.loaded = build().eval()
        self.model = build_empty(build).eval()
        self.asked = []
        slots = weight_slots(self.model)
        first = {}
        self.names = {slot.name: first.setdefault(id(slot.tensor), slot.name) for slot in slots}
        self.weights = {slot.name: slot.tensor for slot in weight_slots(self.loaded)}
        await_weights(slots, self.names, self.take)

    def take(self, name, placeholder):
        assert placeholder.is_meta or not isinstance(placeholder, nn.Parameter)
        self.asked.append(name)
        return self.weights[name]


class Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("phase", torch.arange(4.0), persistent=False)
        self.register_buffer("scale", torch.full((4,), 2.0))
        self.absent = nn.Parameter(torch.zeros(4))
        self.register_parameter("nothing", None)

    def forward(self, x):
        return self.second(self.first(x) * self.scale + self.phase)


ENCODER = {"batch_first": True, "dropout": 0.0}
MODELS = {
    "convolution": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), torch.rand(2, 3, 5, 5)),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 16, **ENCODER), torch.rand(2, 3, 8)),
    "recurrent": (lambda: nn.LSTM(4, 5, num_layers=2, bidirectional=True), torch.rand(3, 2, 4)),
    "tied": (Norms, torch.rand(2, 4)),
    "parametrized": (lambda: nn.utils.parametrize.register_parametrization(nn.Linear(4, 3), "weight", nn.Identity()), torch.rand(2, 4)),
}


def first(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize(("build", "x"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_results_are_those_of_the_loaded_model_before_and_after(build, x, mode):
    fed = Fed(build)
    with mode():
        wanted = first(fed.loaded(x))
        assert torch.equal(first(fed.model(x)), wanted)
        asked = list(fed.asked)
        assert torch.equal(first(fed.model(x)), wanted)
    assert fed.asked == asked, "asked for again"
    settle(fed.model)
    assert all(type(vars(module)[kind]) is dict for module in fed.model.modules() for kind in ("_parameters", "_buffers"))
    assert not any(module._forward_pre_hooks for module in fed.model.modules())
    with mode():
        assert torch.equal(first(fed.model(x)), wanted)


def test_only_what_is_touched_is_waited_for():
    fed = Fed(lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    fed.model[0](torch.zeros(1, 2))
    assert fed.asked == ["0.weight", "0.bias"]
    fed.model.train(False).requires_grad_  # noqa: B018  # touching the module itself asks for nothing
    assert fed.asked == ["0.weight", "0.bias"]


def test_state_dict_to_and_copies_wait_for_everything():
    for touch in (nn.Module.state_dict, lambda model: model.to(torch.float64), copy.deepcopy):
        fed = Fed(Norms)
        touch(fed.model)
        assert set(fed.asked) == set(fed.names.values())
    fed = Fed(Norms)
    twin = copy.deepcopy(fed.model)
    assert torch.equal(twin(torch.ones(1, 4)), fed.loaded(torch.ones(1, 4)))
    assert type(vars(twin)["_parameters"]) is dict


def test_the_dict_behaves_as_a_dict():
    weights, asked = {"a": torch.ones(1), "b": torch.zeros(2), "n": None}, []

    def take(name, _):
        asked.append(name)
        return weights[name]

    def arriving():
        asked.clear()
        return ArrivingTensors({"a": torch.empty(0), "b": torch.empty(0), "n": None}, {"a": "a", "b": "b", "n": "n"}, take)

    one = arriving()
    assert len(one) == 3
    assert "a" in one
    assert list(one) == ["a", "b", "n"]
    assert asked == []
    assert one.get("n", 3) is None
    assert one.get("x", 3) == 3
    assert one.get("a") is weights["a"]
    assert one.pop("a") is weights["a"]
    assert one.pop("a", 3) == 3
    assert asked == ["a"]
    assert dict(arriving()) == weights == arriving().copy() == {**arriving()}
    two = arriving()
    two["a"] = weights["b"]
    del two["b"]
    assert list(two.values()) == [weights["b"], None]
    assert asked == []
    iterator = iter(arriving().items())
    assert next(iterator)[1] is weights["a"]
    assert asked == ["a"], "each is waited for as it is reached"


def test_a_failure_is_raised_where_the_weight_is_touched_and_again():
    model = build_empty(lambda: nn.Linear(2, 2))

    def fail(name, _):
        raise OSError(name)

    slots = weight_slots(model)
    await_weights(slots, {slot.name: slot.name for slot in slots}, fail)
    for _ in range(2):
        with pytest.raises(OSError, match="weight"):
            model(torch.zeros(1, 2))


def test_an_empty_model_has_no_parameters_and_everything_else():
    model = build_empty(Norms)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.first.weight is model.second.weight
    assert torch.equal(model.phase, torch.arange(4.0))
    assert not nn.Linear(2, 2).weight.is_meta, "building elsewhere is as ever"


def test_models_that_cannot_be_filled_are_refused():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)
            self.kept = [self.inner.weight]

    def on_meta():
        with torch.device("meta"):
            return Norms()

    for build, words in ((Hidden, "kept holds weights"), (lambda: nn.LazyLinear(3), "no shape"), (on_meta, "phase"), (lambda: 3, "int")):
        with pytest.raises(ValueError, match=words):
            build_empty(build)
