"""Matching: which tensor of the file goes where in the model, settled from the header alone, before a weight is downloaded."""

from collections.abc import Mapping, Sequence

from nmoe.deliver.arriving import WeightSlot
from nmoe.deliver.layout import TensorPlace


def match_tensors(slots: Sequence[WeightSlot], places: Sequence[TensorPlace], *, name: str, saved: Mapping[str, str]) -> dict[str, str]:
    """Return for each slot's name the tensor that belongs there: its own, under its own name or another, or that of a slot it is tied to.

    Args:
        slots: of the model.
        places: of the file's tensors, or those of all shards; their dtype is kept.
        name: of the file, for errors.
        saved: under which other name a slot's tensor may be in the file, see ``saved_names``.

    Raises:
        ValueError: when the model or the file lacks a tensor, or a shape differs; the message names it.
    """
    found = {place.name: place for place in places}
    if len(found) != len(places):
        raise ValueError(f"{name} has a tensor twice")
    own = {slot.name: slot.name if slot.name in found else saved.get(slot.name, "") for slot in slots}
    tied: dict[int, str] = {}
    for slot in slots:
        if own[slot.name] in found:
            tied.setdefault(id(slot.tensor), own[slot.name])
    names = {slot.name: own[slot.name] if own[slot.name] in found else tied.get(id(slot.tensor), "") for slot in slots}
    lacking = [slot for slot, tensor in names.items() if not tensor]
    if lacking:
        raise ValueError(f"{name} lacks {_few(lacking)} of the model")
    unknown = [tensor for tensor in found if tensor not in names and tensor not in names.values()]
    if unknown:
        raise ValueError(f"the model lacks {_few(unknown)} of {name}")
    for slot in slots:
        wanted, got = tuple(slot.tensor.shape), found[names[slot.name]].shape
        if wanted != got:
            raise ValueError(f"tensor {slot.name} of the model has shape {list(wanted)}, in {name} it has {list(got)}")
    return names


def _few(names: Sequence[str]) -> str:
    return ("tensor " if len(names) == 1 else "tensors ") + ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
