"""Pack: write the card of a model's file, so that clients fetch its tensors in the order of execution and can check each as it comes."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
from torch import nn

from nmoe.core.errors import BadFile
from nmoe.core.files import sha256, write_bytes
from nmoe.deliver.architectures import saved_names
from nmoe.deliver.arriving import weight_slots
from nmoe.deliver.card import CARD_FORMAT, CARD_SUFFIX, CardFile, CardTensor, DeliveryCard
from nmoe.deliver.execution import Inputs, batch_of, call_arguments, layer_groups, trace_touches, traceable_copy
from nmoe.deliver.layout import Layout, TensorPlace, check_index, parse_index, read_layout
from nmoe.deliver.matching import match_tensors


def pack(file: Path, model: nn.Module | None = None, example: Inputs | None = None) -> Path:
    """Write the card of a model's file beside it.

    Args:
        file: a ``*.safetensors`` or ``*.safetensors.index.json``; it is not changed.
        model: whose weights these are, with or without values (``build_empty``); without it tensors keep the file's order.
        example: inputs of a call to it, whose first dimension is the batch; values do not matter.

    Returns:
        The card's path.

    Raises:
        BadFile: when the file is missing or not what its name promises.
        ValueError: when model and example are not given together, or the model does not fit the file.
    """
    if (model is None) != (example is None):
        raise ValueError("a model and example inputs are wanted together, or neither")
    layouts = _read_layouts(file)
    places = {place.name: (path, place) for path, layout in layouts.items() for place in layout.tensors}
    sizes = {name: place.end - place.start for name, (_, place) in places.items()}
    if model is None or example is None:
        touches = [(name, 0.0) for name in places]
        batch = None
    else:
        slots = weight_slots(model)
        saved = saved_names(model, {slot.name: slot.tensor for slot in slots})
        names = match_tensors(slots, [place for _, place in places.values()], name=file.name, saved=saved)
        traced = trace_touches(traceable_copy(model), *call_arguments(example), count_flops=True)
        touched = {names[name]: flops for name, flops in traced[:-1]}
        total_flops = traced[-1][1]
        touches = [*touched.items(), *((name, total_flops) for name in places if name not in touched), ("", total_flops)]
        batch = batch_of(example)
    card = DeliveryCard(
        format=CARD_FORMAT,
        traced=model is not None,
        files={path.name: _card_file(path, layout) for path, layout in layouts.items()},
        tensors=_card_tensors([name for name, _ in touches if name], places),
        layers=layer_groups(touches, sizes, batch=batch),
    )
    path = file.with_name(file.name + CARD_SUFFIX)
    write_bytes(path, msgspec.json.format(msgspec.json.encode(card), indent=1) + b"\n")
    return path


def _read_layouts(file: Path) -> dict[Path, Layout]:
    """Return the layouts of a file, or of an index's shards, by path."""
    if not file.name.endswith(".index.json"):
        return {file: read_layout(file)}
    try:
        shards = parse_index(file.read_bytes(), name=file.name)
    except OSError as error:
        raise BadFile(f"cannot read {file}: {error.strerror}") from error
    layouts = {shard: read_layout(file.with_name(shard)) for shard in sorted(set(shards.values()))}
    check_index(shards, layouts, name=file.name)
    return {file.with_name(shard): layout for shard, layout in layouts.items()}


def _card_file(path: Path, layout: Layout) -> CardFile:
    with path.open("rb") as file:
        head_sha256 = hashlib.sha256(file.read(layout.data_start)).hexdigest()
    return CardFile(bytes=layout.file_bytes, sha256=sha256(path), head_sha256=head_sha256)


def _card_tensors(order: list[str], places: Mapping[str, tuple[Path, TensorPlace]]) -> tuple[CardTensor, ...]:
    """Return the card's tensors: those in the order given, then the others."""
    tensors = []
    for name in dict.fromkeys((*order, *places)):
        path, place = places[name]
        with path.open("rb") as file:
            file.seek(place.start)
            data = file.read(place.end - place.start)
        tensors.append(CardTensor(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
    return tuple(tensors)
