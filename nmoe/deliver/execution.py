"""Execution: in which order a model touches its weights, and how much it computes in between, found without any weights.

The model is run once on the meta device, where tensors have shapes and no values, with weights that note when they are touched. Where its
code asks for a value (is this mask all ones?) the answer is one: the order is a hint that saves time, and a wrong one costs only time.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from nmoe.deliver.arriving import await_weights, weight_slots

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Weights that are touched together, and what is computed from then until the next ones are.

    Attributes:
        name: of the module that owns them; ``model`` for the whole model's own.
        tensors: their names, in the order in which they are touched.
        bytes: of these tensors.
        flops: floating-point operations per sample (a multiplication and an addition are two); None where not traced.
    """

    name: str
    tensors: tuple[str, ...]
    bytes: int
    flops: float | None


def call_arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments of a call: a mapping has keywords, a sequence positions, a tensor is alone."""
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return tuple(inputs), {}


def meta_arguments(args: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a copy of a call's arguments that shares nothing with them, its tensors on the meta device wherever they are held.

    Raises:
        Exception: whatever an argument raises that cannot be copied.
    """
    with torch.inference_mode(False), _MetaCopies():  # fit to be written to, whatever mode the caller is in
        return copy.deepcopy((tuple(args), dict(keywords)))


def traceable_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model on the meta device. It takes no memory for weights if the model's are there already."""
    return copy.deepcopy(model).to("meta")


def trace_touches(
    twin: nn.Module, args: Sequence[Any], keywords: Mapping[str, Any], *, count_flops: bool = False
) -> list[tuple[str, float]]:
    """Run a copy from ``traceable_copy``, which is used up, and note when each weight is touched first.

    Args:
        twin: on the meta device.
        args: of a call, of the kind and size of a real one.
        keywords: of that call.
        count_flops: count operations too, which takes longer.

    Returns:
        Names of weights in order, and how many operations had been counted when they were touched; at the end the name "" and all of them.
        Of a tied weight the first name in the module tree is given.

    Raises:
        Exception: whatever the model raises, for example where it cannot do without values.
    """
    touches: dict[str, float] = {}
    counter = FlopCounterMode(display=False) if count_flops else None

    def note(name: str, placeholder: Tensor) -> Tensor:
        touches.setdefault(name, counter.get_total_flops() if counter is not None else 0.0)
        return placeholder

    slots = weight_slots(twin)
    first: dict[int, str] = {}
    names = {slot.name: first.setdefault(id(slot.tensor), slot.name) for slot in slots}
    await_weights(slots, names, note)
    args, keywords = meta_arguments(args, keywords)
    with torch.no_grad(), torch.device("meta"), _OnesForValues():  # type: ignore[no-untyped-call]
        if counter is None:
            twin(*args, **keywords)
        else:
            with counter:
                twin(*args, **keywords)
    return [*touches.items(), ("", counter.get_total_flops() if counter is not None else 0.0)]


def layer_groups(touches: Sequence[tuple[str, float]], num_bytes: Mapping[str, int], *, batch: int | None) -> tuple[LayerGroup, ...]:
    """Group touched weights by the module that owns them; one that computes nothing worth counting joins the one before.

    Args:
        touches: from ``trace_touches``, with or without the end; or all names with any numbers.
        num_bytes: of every weight.
        batch: samples of the traced call, at least 1; None when operations were not counted.
    """
    groups: list[LayerGroup] = []
    ends = [flops for _, flops in touches[1:]] + [touches[-1][1]] if touches else []
    for (name, began), ended in zip(touches, ends, strict=True):
        if not name:
            continue
        owner, flops = name.rpartition(".")[0], None if batch is None else (ended - began) / batch
        one = LayerGroup(name=owner or "model", tensors=(name,), bytes=num_bytes[name], flops=flops)
        if groups and groups[-1].name == one.name:
            groups[-1] = _joined(groups[-1], one)
        else:
            groups.append(one)
    merged: list[LayerGroup] = []
    for group in groups:
        if merged and group.flops == 0:
            merged[-1] = _joined(merged[-1], group)
        else:
            merged.append(group)
    return tuple(merged)


def batch_of(inputs: Inputs) -> int:
    """Return the first dimension of the first tensor of a call.

    Raises:
        ValueError: when there is none.
    """
    args, keywords = call_arguments(inputs)
    for value in (*args, *keywords.values()):
        if isinstance(value, Tensor) and value.ndim and len(value):
            return len(value)
    raise ValueError("an input with a batch dimension wanted, got none")


def _joined(group: LayerGroup, other: LayerGroup) -> LayerGroup:
    flops = None if group.flops is None or other.flops is None else group.flops + other.flops
    return replace(group, tensors=group.tensors + other.tensors, bytes=group.bytes + other.bytes, flops=flops)


class _MetaCopies(TorchFunctionMode):
    """Makes copies of tensors on the meta device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.__deepcopy__, Tensor.clone):  # the second is how parameters are copied
            return args[0].detach().to("meta")
        return func(*args, **(kwargs or {}))


class _OnesForValues(TorchDispatchMode):
    """Answers one, or true, where code asks for the value of a tensor that has none."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype, device="cpu").item()
        return func(*args, **(kwargs or {}))
