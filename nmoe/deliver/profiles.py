"""Profiles: the layers of image models as bytes to download and floating-point operations to run, from a table or from the architectures.

Sources: K. He, X. Zhang, S. Ren, J. Sun, Deep residual learning for image recognition, CVPR 2016 (ResNet); K. Simonyan, A. Zisserman, Very
deep convolutional networks, ICLR 2015 (VGG); A. Dosovitskiy et al., An image is worth 16x16 words, ICLR 2021 (ViT).

| source | here | unit |
|---|---|---|
| S_l | layer_bytes | bytes here, bits in the paper |
| W_l | layer_flops | FLOP per sample, 2 x MACs |
| l | layer | a block below; a row of a table that has parameters |

``image_models`` counts blocks as the layers to deliver: the first convolution or patch embedding, each residual or transformer block, each
layer of VGG, and the head, for one image of 224 x 224.

Departures: which models and which layers the paper delivers is not known; these are ours. A ResNet's stages halve the image in the first
1x1 convolution of their first block, as He et al. did; most code does it in the 3x3 one, which takes more operations (``stride_in_3x3``).
Norms, activations, pooling and softmax cost no operations here.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nmoe.channel.table import read_table
from nmoe.core.errors import BadFile
from nmoe.deliver.scenario import ModelProfile

PRECISIONS = {"fp32": 4, "fp16": 2, "int8": 1}  # bytes per parameter
COLUMNS = ("model", "params", "macs")
CLASSES = 1000


class LayerWork(NamedTuple):
    """What one layer holds and does.

    Attributes:
        params: numbers in it, norms and biases included.
        macs: multiply-accumulates for one sample.
    """

    params: int
    macs: int


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
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise BadFile(f"{path} should have columns {', '.join(COLUMNS)}, it lacks {', '.join(missing)}")
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
            found.append(LayerWork(work.params, work.macs + waiting))
            waiting = 0
        elif found:
            found[-1] = LayerWork(found[-1].params, found[-1].macs + work.macs)
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
        stride_in_3x3: where ResNet-50 and ResNet-152 halve the image, see above.

    Raises:
        ValueError: when the precision is unknown.
    """
    works = image_model_works(stride_in_3x3=stride_in_3x3)
    return {name: profile(name, blocks, precision=precision) for name, blocks in works.items()}


def image_model_works(*, stride_in_3x3: bool = False) -> Mapping[str, list[LayerWork]]:
    """Return the blocks of the seven models, see ``image_models``."""
    return {
        "resnet18": _resnet((2, 2, 2, 2)),
        "resnet34": _resnet((3, 4, 6, 3)),
        "resnet50": _bottleneck_resnet((3, 4, 6, 3), stride_in_3x3=stride_in_3x3),
        "resnet152": _bottleneck_resnet((3, 8, 36, 3), stride_in_3x3=stride_in_3x3),
        "vgg16": _vgg((64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)),
        "vit_b_16": _vit(width=768, depth=12),
        "vit_l_16": _vit(width=1024, depth=24),
    }


def _sum(parts: Iterable[LayerWork]) -> LayerWork:
    held, done = zip(*parts, strict=True)
    return LayerWork(sum(held), sum(done))


def _convolution(into: int, out: int, kernel: int, size: int, *, beside: int) -> LayerWork:
    """Return a convolution to ``size`` x ``size`` with ``beside`` parameters per output channel: 1 for a bias, 2 for a batch norm."""
    weights = into * out * kernel**2
    return LayerWork(weights + beside * out, weights * size**2)


def _linear(into: int, out: int) -> LayerWork:
    return LayerWork((into + 1) * out, into * out)


def _resnet(stages: Sequence[int]) -> list[LayerWork]:
    """Return a ResNet of basic blocks: two 3x3 convolutions each."""
    blocks, into, size = [_convolution(3, 64, 7, 112, beside=2)], 64, 56
    for stage, count in enumerate(stages):
        width = 64 * 2**stage
        size = size if stage == 0 else size // 2
        for _ in range(count):
            parts = [_convolution(into, width, 3, size, beside=2), _convolution(width, width, 3, size, beside=2)]
            if into != width:
                parts.append(_convolution(into, width, 1, size, beside=2))  # the shortcut
            blocks.append(_sum(parts))
            into = width
    return [*blocks, _linear(into, CLASSES)]


def _bottleneck_resnet(stages: Sequence[int], *, stride_in_3x3: bool) -> list[LayerWork]:
    """Return a ResNet of bottleneck blocks: convolutions of 1x1, 3x3 and 1x1."""
    blocks, into, before = [_convolution(3, 64, 7, 112, beside=2)], 64, 56
    for stage, count in enumerate(stages):
        width = 64 * 2**stage
        size = before if stage == 0 else before // 2
        for _ in range(count):
            parts = [
                _convolution(into, width, 1, before if stride_in_3x3 else size, beside=2),
                _convolution(width, width, 3, size, beside=2),
                _convolution(width, 4 * width, 1, size, beside=2),
            ]
            if into != 4 * width:
                parts.append(_convolution(into, 4 * width, 1, size, beside=2))
            blocks.append(_sum(parts))
            into, before = 4 * width, size
    return [*blocks, _linear(into, CLASSES)]


def _vgg(widths: Sequence[int]) -> list[LayerWork]:
    """Return a VGG of 3x3 convolutions of these widths, 0 for a pooling that halves the image, and three full layers."""
    blocks, into, size = [], 3, 224
    for width in widths:
        if width == 0:
            size //= 2
            continue
        blocks.append(_convolution(into, width, 3, size, beside=1))
        into = width
    return [*blocks, _linear(into * size**2, 4096), _linear(4096, 4096), _linear(4096, CLASSES)]


def _vit(*, width: int, depth: int) -> list[LayerWork]:
    """Return a vision transformer on patches of 16 x 16, its perceptrons four times as wide."""
    patches = (224 // 16) ** 2
    tokens = patches + 1
    embedding = _convolution(3, width, 16, 14, beside=1)
    first = LayerWork(embedding.params + (tokens + 1) * width, embedding.macs)  # positions and the class token
    projections = [_linear(width, 3 * width), _linear(width, width), _linear(width, 4 * width), _linear(4 * width, width)]
    attention_macs = 2 * tokens**2 * width  # queries with keys, weights with values
    held = sum(one.params for one in projections) + 2 * 2 * width  # two layer norms
    block = LayerWork(held, tokens * sum(one.macs for one in projections) + attention_macs)
    head = _linear(width, CLASSES)
    return [first, *([block] * depth), LayerWork(head.params + 2 * width, head.macs)]
