"""Backbones: known networks cut in two, the front as the shared extractor and the rest as a node's expert.

Where the cut lies is a parameter: the deeper, the more is shared and the less is each expert's own; the number of features, which cross
the network, mostly falls towards the end. The networks have their cards in ``nmoe.moe.lenet``, ``nmoe.moe.fixup`` and ``nmoe.moe.vit``.
"""

from collections.abc import Mapping
from typing import NamedTuple

from nmoe.core.bundle import ModelSpec
from nmoe.moe import fixup, lenet
from nmoe.moe.extractor import check_cut
from nmoe.moe.vit import vit_cuts


class Backbone(NamedTuple):
    """One network: the kinds of its two parts, and the names of its sizes."""

    front: str
    tail: str
    sizes: tuple[str, ...]


BACKBONES = {
    "lenet": Backbone(front="lenet", tail="lenet_tail", sizes=()),
    "fixup_resnet": Backbone(front="fixup_resnet", tail="fixup_tail", sizes=("widen",)),
    "vit": Backbone(front="vit", tail="vit_tail", sizes=("patch_size", "width", "depth", "heads")),
}


def cuts(name: str, sizes: Mapping[str, int]) -> tuple[int | str, ...]:
    """Return where a backbone can be cut, from its beginning to its end.

    Args:
        name: one of ``BACKBONES``.
        sizes: the numbers that it is made by, under the names it lists.

    Raises:
        ValueError: when there is no backbone of that name or its sizes are others.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, got {name!r}")
    wanted = BACKBONES[name].sizes
    if set(sizes) != set(wanted):
        raise ValueError(f"sizes of {name} are {', '.join(wanted) or 'none'}, got {', '.join(sizes) or 'none'}")
    if name == "vit":
        return vit_cuts(sizes["depth"])
    return lenet.CUTS if name == "lenet" else fixup.CUTS


def split(
    name: str, cut: int | str, *, in_channels: int, image_size: int, num_classes: int, sizes: Mapping[str, int]
) -> tuple[ModelSpec, ModelSpec]:
    """Cut a backbone in two.

    Args:
        name: one of ``BACKBONES``.
        cut: where, one of ``cuts``.
        in_channels: channels of an image, 1 or 3.
        image_size: height and width of an image.
        num_classes: logits per sample.
        sizes: the numbers that the backbone is made by, under the names it lists.

    Returns:
        The specs of the extractor before the cut and of the expert behind it; built, they say how many features pass between them.

    Raises:
        ValueError: when the backbone, the cut or the names of the sizes are unknown; other numbers are checked when the parts are built.
    """
    check_cut(cut, cuts(name, sizes))
    shared: dict[str, int | float | bool | str] = {"image_size": image_size, **sizes, "cut": cut}
    backbone = BACKBONES[name]
    return (
        ModelSpec(kind=backbone.front, arguments={"in_channels": in_channels, **shared}),
        ModelSpec(kind=backbone.tail, arguments={**shared, "num_classes": num_classes}),
    )
