"""Profiles: the layers of image models as bytes to download and floating-point operations to run, from a table or from the architectures.

Source: the architectures, as ``nmoe.core.image_models`` counts them.

| source | here | unit |
|---|---|---|
| S_l | layer_bytes | bytes here, bits in the paper |
| W_l | layer_flops | FLOP per sample, 2 x MACs |
| l | layer | a block below; a row of a table that has parameters |

``image_models`` counts blocks as the layers to deliver: the first convolution or patch embedding, each residual or transformer block, each
layer of VGG, and the head, for one image of 224 x 224.

Departures: which models and which layers the paper delivers is not known; these are ours.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nmoe.core.errors import BadFile
from nmoe.core.image_models import LayerWork, image_model_blocks
from nmoe.core.table import read_table
from nmoe.deliver.scenario import ModelProfile

__all__ = ["LayerWork", "image_model_works", "image_models", "merged", "profile", "read_profiles"]

PRECISIONS = {"fp32": 4, "fp16": 2, "int8": 1}  # bytes per parameter
COLUMNS = ("model", "params", "macs")
DELIVERED = ("resnet18", "resnet34", "resnet50", "resnet152", "vgg16", "vit_b_16", "vit_l_16")


def read_profiles(path: Path, *, precision: str = "fp16") -> dict[str, ModelProfile]:
    """Read a table of layers: ``.csv`` or ``.csv.gz`` with columns model, params and macs, in the order in which layers run.

    Layers without parameters, such as pooling, become part of the layer before them (at the beginning of a model, of the one after).

    Args:
        path: the table; other columns are ignored.
        precision: one of ``PRECISIONS``.

    Returns:
        Profiles by name of the model, in the table's order.

    Raises:
        ValueError: when the precision is unknown.
        BadFile: when the table cannot be read, lacks a column, holds a field that is no such number, or a model without parameters.
    """
    table = read_table(path)
    table.require(COLUMNS)
    params = table.numbers("params", low=0.0, high=1e15, missing=False).tolist()
    macs = table.numbers("macs", low=0.0, high=1e18, missing=False).tolist()
    rows: dict[str, list[LayerWork]] = {}
    for name, held, done in zip(table.columns["model"], params, macs, strict=True):
        rows.setdefault(name, []).append(LayerWork(round(held), round(done)))
    for name, works in rows.items():
        if not any(work.params for work in works):
            raise BadFile(f"{path}: model {name!r} has no layer with parameters")
    return {name: profile(name, merged(works), precision=precision) for name, works in rows.items()}


def merged(works: Sequence[LayerWork]) -> list[LayerWork]:
    """Return layers that all have parameters: those without are added to the one before, or to the first that has some."""
    found: list[LayerWork] = []
    waiting = 0
    for work in works:
        if work.params:
            found.append(LayerWork(work.params, work.macs + waiting, work.outputs))
            waiting = 0
        elif found:
            found[-1] = LayerWork(found[-1].params, found[-1].macs + work.macs, work.outputs)
        else:
            waiting += work.macs
    return found


def profile(name: str, works: Iterable[LayerWork], *, precision: str = "fp16") -> ModelProfile:
    """Return layers as bytes and FLOPs.

    Raises:
        ValueError: when the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    counted = list(works)
    return ModelProfile(
        name=name,
        layer_bytes=tuple(float(PRECISIONS[precision] * work.params) for work in counted),
        layer_flops=tuple(2.0 * work.macs for work in counted),
    )


def image_models(*, precision: str = "fp16", stride_in_3x3: bool = False) -> dict[str, ModelProfile]:
    """Return the profiles of seven models for images of 224 x 224, in blocks.

    Args:
        precision: one of ``PRECISIONS``.
        stride_in_3x3: where ResNet-50 and ResNet-152 halve the image, see ``nmoe.core.image_models``.

    Raises:
        ValueError: when the precision is unknown.
    """
    works = image_model_works(stride_in_3x3=stride_in_3x3)
    return {name: profile(name, blocks, precision=precision) for name, blocks in works.items()}


def image_model_works(*, stride_in_3x3: bool = False) -> Mapping[str, list[LayerWork]]:
    """Return the blocks of the seven models, see ``image_models``."""
    blocks = image_model_blocks(stride_in_3x3=stride_in_3x3)
    return {name: blocks[name] for name in DELIVERED}
