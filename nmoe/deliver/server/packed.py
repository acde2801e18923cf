"""Packed: from a model file and its card to what the planner and the accounting need."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from nmoe.core.errors import BadFile
from nmoe.deliver.card import MAX_CARD_BYTES, DeliveryCard, fit_card, parse_card
from nmoe.deliver.layout import LENGTH_BYTES, Layout, data_start, parse_layout
from nmoe.deliver.scenario import ModelProfile
from nmoe.deliver.server.ranges import Stretch
from nmoe.deliver.server.task import PackedModel

MAX_LAYERS = 4096  # of a model that is planned for
MAX_FLOPS = 1e18  # of a layer per sample


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadableFile:
    """A file to read from.

    Attributes:
        name: for errors.
        descriptor: open for reading.
        size: in bytes.
    """

    name: str
    descriptor: int
    size: int

    def head(self, count: int) -> bytes:
        """Return the first ``count`` bytes, or fewer if it has no more."""
        pieces, position = [], 0
        while position < count and (piece := os.pread(self.descriptor, count - position, position)):
            pieces.append(piece)
            position += len(piece)
        return b"".join(pieces)


def read_packed(name: str, model: ReadableFile, card: ReadableFile) -> PackedModel:
    """Return a model as it can be planned for.

    Args:
        name: of the model.
        model: its file.
        card: the card beside it.

    Raises:
        BadFile: when it cannot be; says why.
    """
    head = model.head(data_start(model.head(LENGTH_BYTES), model.size, name=model.name))
    layout = parse_layout(head, model.size, name=model.name)
    if card.size > MAX_CARD_BYTES:
        raise BadFile(f"{card.name} has {card.size} bytes, at most {MAX_CARD_BYTES} wanted")
    told = parse_card(card.head(card.size), name=card.name)
    fit_card(told, {model.name: (layout, head)}, name=card.name)
    flops = _flops(told, card.name)
    layers = _stretches(told, layout, card.name)
    sizes = tuple(float(sum(one.size for one in layer)) for layer in layers)
    try:
        profile = ModelProfile(name=name, layer_bytes=sizes, layer_flops=flops)
    except ValueError as error:
        raise BadFile(f"{card.name}: {error}") from error
    return PackedModel(profile=profile, layers=layers)


def _flops(card: DeliveryCard, name: str) -> tuple[float, ...]:
    """Return the operations per sample of each layer."""
    if len(card.layers) > MAX_LAYERS:
        raise BadFile(f"{name} has {len(card.layers)} layers, at most {MAX_LAYERS} wanted")
    flops = tuple(group.flops for group in card.layers if group.flops is not None)
    if not flops or len(flops) < len(card.layers):
        raise BadFile(f"{name} does not say what layers compute: pack again with the model and an example input")
    if max(flops) > MAX_FLOPS:
        raise BadFile(f"{name}: at most {MAX_FLOPS:g} operations per layer and sample wanted, got {max(flops):g}")
    return flops


def _stretches(card: DeliveryCard, layout: Layout, name: str) -> tuple[tuple[Stretch, ...], ...]:
    """Return where each layer's bytes lie; all before the data belongs to the first."""
    places = {place.name: Stretch(place.start, place.end) for place in layout.tensors}
    listed = [tensor for group in card.layers for tensor in group.tensors]
    if len(listed) != len(places) or set(listed) != set(places):
        raise BadFile(f"{name}: each tensor must belong to one layer")
    layers = [[places[tensor] for tensor in group.tensors] for group in card.layers]
    layers[0].append(Stretch(0, layout.data_start))
    return tuple(_joined(layer) for layer in layers)


def _joined(pieces: Sequence[Stretch]) -> tuple[Stretch, ...]:
    """Return pieces in the order of the file, neighbours as one."""
    joined: list[Stretch] = []
    for piece in sorted(pieces):
        if joined and joined[-1].stop == piece.start:
            joined[-1] = Stretch(joined[-1].start, piece.stop)
        else:
            joined.append(piece)
    return tuple(joined)
