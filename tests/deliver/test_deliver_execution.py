"""The order of execution and the operations, found on the meta device."""

import torch
from torch import nn

from nmoe.deliver.arriving import build_empty
from nmoe.deliver.execution import LayerGroup, batch_of, call_arguments, layer_groups, trace_touches, traceable_copy


class Backwards(nn.Module):
    """Uses its layers in another order than it has them, asks for a value, and leaves one layer out."""

    def __init__(self):
        super().__init__()
        self.c, self.b, self.a, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(2, 4), nn.Linear(1, 1)

    def forward(self, x, mask=None):
        x = self.b(self.a(x))
        if mask is not None and bool(mask.all()) and x.sum().item() > 0:
            x = self.c(x)
        return self.c(x)


def test_weights_are_noted_in_the_order_in_which_they_are_touched():
    model = build_empty(Backwards)
    for keywords in ({}, {"mask": torch.ones(3)}):
        touched = [name for name, _ in trace_touches(traceable_copy(model), (torch.zeros(3, 2),), keywords)]
        assert touched == ["a.weight", "a.bias", "b.weight", "b.bias", "c.weight", "c.bias", ""]
    assert all(parameter.is_meta for parameter in model.parameters()), "the model itself is not changed"


def test_operations_are_counted_between_touches():
    touches = dict(trace_touches(traceable_copy(build_empty(Backwards)), (torch.zeros(3, 2),), {}, count_flops=True))
    assert (touches["b.weight"], touches["c.weight"], touches[""]) == (
        2 * 3 * 2 * 4,
        2 * 3 * (2 * 4 + 4 * 4),
        2 * 3 * (2 * 4 + 2 * 4 * 4),
    )


def test_groups_have_the_bytes_and_operations_of_one_sample():
    touches = [("e.w", 0.0), ("a.w", 0.0), ("a.b", 0.0), ("norm.w", 60.0), ("b.w", 60.0), ("", 90.0)]
    sizes = {"e.w": 100, "a.w": 10, "a.b": 2, "norm.w": 4, "b.w": 20}
    assert layer_groups(touches, sizes, batch=3) == (
        LayerGroup(name="e", tensors=("e.w",), bytes=100, flops=0.0),
        LayerGroup(name="a", tensors=("a.w", "a.b", "norm.w"), bytes=16, flops=20.0),
        LayerGroup(name="b", tensors=("b.w",), bytes=20, flops=10.0),
    )
    assert [group.flops for group in layer_groups(touches, sizes, batch=None)] == [None] * 4


def test_a_call_is_a_tensor_a_sequence_or_a_mapping():
    x = torch.zeros(5, 2)
    assert call_arguments(x) == ((x,), {})
    assert call_arguments([x, 3]) == ((x, 3), {})
    assert call_arguments({"x": x}) == ((), {"x": x})
    assert batch_of({"n": 3, "x": x}) == 5
