"""Arriving weights: a module that waits for a tensor whenever, and only when, somebody touches it.

A module keeps its parameters and buffers in two dicts, and every way to a weight, ``self.weight``, ``F.linear(x, self.out_proj.weight)``, a
fused fast path, ``state_dict()``, reads them by item. So until everything is there those dicts are of a kind that waits: no module is
wrapped, no forward is rewritten, and a module that is run in an unforeseen order is only slower. Recurrent layers keep a list of their
weights beside the dicts; it is brought up to date before each of their calls.
"""

import threading
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

Arrive = Callable[[str, Tensor], Tensor]
DICTS = ("_parameters", "_buffers")
_building = threading.Lock()
_DRAWS = set("uniform_ normal_ bernoulli_ erfinv_ fill_ zero_ copy_ mul_ div_ add_ sub_ clamp_".split()) | {
    name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_")
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSlot:
    """A place in a model where a parameter or a persistent buffer belongs.

    Attributes:
        module: that owns it.
        container: ``_parameters`` or ``_buffers``.
        key: its name there.
        name: its name in the whole model.
        tensor: what is there before it arrives; the same object in all slots of a tied weight.
    """

    module: nn.Module
    container: str
    key: str
    name: str
    tensor: Tensor


class ArrivingTensors(dict[str, Tensor | None]):
    """A module's parameters or buffers, some of which have not arrived.

    Args:
        tensors: what is there, placeholders for what is not.
        awaited: for each key that is not there, the name under which to wait for it.
        arrive: waits for a name, and turns the placeholder into what arrived.
    """

    def __init__(self, tensors: Mapping[str, Tensor | None], awaited: Mapping[str, str], arrive: Arrive) -> None:
        super().__init__(tensors)
        self._awaited = dict(awaited)
        self._arrive = arrive

    def __getitem__(self, key: str) -> Tensor | None:
        tensor = super().__getitem__(key)
        name = self._awaited.get(key)
        if name is None or tensor is None:
            return tensor
        arrived = self._arrive(name, tensor)
        self[key] = arrived
        return arrived

    def __setitem__(self, key: str, tensor: Tensor | None) -> None:
        super().__setitem__(key, tensor)
        self._awaited.pop(key, None)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self._awaited.pop(key, None)

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()  # defined here, else dict(self) copies the placeholders without asking

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # a copy has the tensors, and waits for none

    def get(self, key: str, default: Any = None) -> Any:
        """Return an entry once it has arrived, or the default where there is none."""
        return self[key] if key in self else default  # noqa: SIM401  # this is get

    def items(self) -> ItemsView[str, Tensor | None]:  # type: ignore[override]
        """Return names and tensors; each is waited for as it is reached."""
        return ItemsView(self)

    def values(self) -> ValuesView[Tensor | None]:  # type: ignore[override]
        """Return the tensors; each is waited for as it is reached."""
        return ValuesView(self)

    def copy(self) -> dict[str, Tensor | None]:
        """Return a plain dict, once everything in it has arrived."""
        return dict(self)

    def pop(self, key: str, *default: Any) -> Any:
        """Take an entry out, once it has arrived."""
        if key not in self and default:
            return default[0]
        tensor = self[key]
        del self[key]
        return tensor


def build_empty(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model whose parameters are on the meta device, while everything else it computes is real.

    Whatever is not in the file, such as a rotary embedding's frequencies, has its value from this one build; only parameters have none.

    Raises:
        ValueError: when ``build`` returns no module, or one that cannot be filled.
    """
    thread = threading.get_ident()

    def to_meta(_module: nn.Module, _name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if threading.get_ident() != thread or parameter.is_meta or isinstance(parameter, UninitializedParameter):
            return None  # another thread's business; or tied to one that is there
        if id(parameter) not in made:
            empty = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
            empty.__dict__.update(parameter.__dict__)
            made[id(parameter)] = (parameter, empty)  # kept, since a dead object's id is used again
        return made[id(parameter)][1]

    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    with _building:
        hook = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]  # its documentation lets it return one
        try:
            with _NoInitialValues():
                model = build()
        finally:
            hook.remove()
    if not isinstance(model, nn.Module):
        raise ValueError(f"build must return a torch.nn.Module, got {type(model).__name__}")
    _check_fillable(model)
    return model


class _NoInitialValues(TorchFunctionMode):
    """Leaves out drawing values for tensors that have none; without this the first draw makes torch import a compiler, for seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        tensor = args[0] if args else keywords.get("tensor")  # as torch.nn.init calls it
        if func.__name__ in _DRAWS and isinstance(tensor, Tensor) and tensor.is_meta:
            return tensor
        return func(*args, **keywords)


def weight_slots(model: nn.Module) -> list[WeightSlot]:
    """Return the slots of all parameters and persistent buffers, in the order of the module tree."""
    slots = []
    for prefix, module in model.named_modules(remove_duplicate=False):
        passing = module._non_persistent_buffers_set
        for container in DICTS:
            for key, tensor in vars(module)[container].items():
                if tensor is not None and not (container == "_buffers" and key in passing):
                    name = f"{prefix}.{key}" if prefix else key
                    slots.append(WeightSlot(module=module, container=container, key=key, name=name, tensor=tensor))
    return slots


def await_weights(slots: list[WeightSlot], names: Mapping[str, str], arrive: Arrive) -> None:
    """Make a model's modules wait for their weights.

    Args:
        slots: of the model.
        names: for each slot's name, the one under which to wait for it.
        arrive: called with that name and the placeholder when the weight is touched first; returns the weight.
    """
    awaited: dict[tuple[int, str], tuple[nn.Module, dict[str, str]]] = {}
    for slot in slots:
        awaited.setdefault((id(slot.module), slot.container), (slot.module, {}))[1][slot.key] = names[slot.name]
    for (_, container), (module, keys) in awaited.items():
        vars(module)[container] = ArrivingTensors(vars(module)[container], keys, arrive)
        if isinstance(module, nn.RNNBase) and container == "_parameters":
            module.register_forward_pre_hook(_refresh_flat_weights)


def settle(model: nn.Module) -> None:
    """Give a model plain dicts again, once everything has arrived."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            _refresh_flat_weights(module, ())
            drop_hook(module, _refresh_flat_weights)
        for container in DICTS:
            if isinstance(vars(module)[container], ArrivingTensors):
                vars(module)[container] = dict(vars(module)[container])


def drop_hook(module: nn.Module, hook: Callable[..., Any]) -> None:
    """Take a hook that runs before a module's calls away again. A copied module has its own, which no handle knows."""
    for key in [key for key, registered in module._forward_pre_hooks.items() if registered is hook]:
        del module._forward_pre_hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)


def _refresh_flat_weights(module: nn.Module, _inputs: Any) -> None:
    """Put a recurrent layer's weights into the list from which it reads them."""
    assert isinstance(module, nn.RNNBase)
    for name in module._flat_weights_names:
        setattr(module, name, getattr(module, name))


def _check_fillable(model: nn.Module) -> None:
    """Refuse a model with weights that could not be seen to arrive.

    Raises:
        ValueError: naming the module.
    """
    for prefix, module in model.named_modules():
        where = prefix or type(module).__name__
        for key, tensor in vars(module)["_parameters"].items():
            if isinstance(tensor, UninitializedParameter):
                raise ValueError(f"{where}.{key} has no shape before the first call: give the module its sizes")
        for key in module._non_persistent_buffers_set:
            buffer = vars(module)["_buffers"].get(key)
            if buffer is not None and buffer.is_meta:
                raise ValueError(
                    f"buffer {where}.{key} is not in files, and build left it on the meta device: do not choose a device there"
                )
        if isinstance(module, nn.RNNBase) and not is_parametrized(module):
            continue
        for key, value in vars(module).items():
            held = value if isinstance(value, list | tuple) else [value]
            if key not in (*DICTS, "_modules") and any(isinstance(tensor, torch.Tensor) and tensor.is_meta for tensor in held):
                raise ValueError(f"{where}.{key} holds weights beside the module's parameters and buffers: they cannot be seen to arrive")
