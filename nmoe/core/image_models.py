"""Image models: what each block of a well-known architecture holds, computes and passes on, counted from its formulas.

Sources: K. He, X. Zhang, S. Ren, J. Sun, Deep residual learning for image recognition, CVPR 2016 (ResNet); K. Simonyan, A. Zisserman, Very
deep convolutional networks, ICLR 2015 (VGG); A. Dosovitskiy et al., An image is worth 16x16 words, ICLR 2021 (ViT); A. Krizhevsky, One
weird trick for parallelizing convolutional neural networks, arXiv 1404.5997 (AlexNet in its second form, as most code has it);
M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen, MobileNetV2, CVPR 2018.

| source | here | unit |
|---|---|---|
| parameters | params | numbers |
| multiply-accumulates | macs | per image |
| size of a feature map | outputs | numbers per image |

A block is the first convolution or patch embedding, each residual, inverted residual or transformer block, each layer of VGG and AlexNet,
and the head; for one image of 224 x 224 and 1000 classes. Pooling belongs to the block before it, so that its outputs are the pooled ones.

Departures: a ResNet's stages halve the image in the first 1x1 convolution of their first block, as He et al. did; most code does it in the
3x3 one, which takes more operations (``stride_in_3x3``). Norms, activations, pooling and softmax cost no operations here.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

CLASSES = 1000
IMAGE_SIDE = 224  # pixels
INPUT_NUMBERS = 3 * IMAGE_SIDE**2
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # widths, 0 for a pooling
MOBILENET_V2 = (  # expansion, channels, blocks, stride of the first: table 2 of its paper
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class LayerWork(NamedTuple):
    """What one layer holds, does and passes on.

    Attributes:
        params: numbers in it, norms and biases included.
        macs: multiply-accumulates for one sample.
        outputs: numbers that the next layer gets for one sample; 0 where it is not known.
    """

    params: int
    macs: int
    outputs: int = 0


def image_model_blocks(*, stride_in_3x3: bool = False) -> Mapping[str, list[LayerWork]]:
    """Return the blocks of nine models by name, in the order in which they run.

    Args:
        stride_in_3x3: where ResNet-50 and ResNet-152 halve the image, see above.
    """
    return {
        "resnet18": _resnet((2, 2, 2, 2)),
        "resnet34": _resnet((3, 4, 6, 3)),
        "resnet50": _bottleneck_resnet((3, 4, 6, 3), stride_in_3x3=stride_in_3x3),
        "resnet152": _bottleneck_resnet((3, 8, 36, 3), stride_in_3x3=stride_in_3x3),
        "vgg16": _vgg(VGG16),
        "vit_b_16": _vit(width=768, depth=12),
        "vit_l_16": _vit(width=1024, depth=24),
        "alexnet": _alexnet(),
        "mobilenet_v2": _mobilenet_v2(),
    }


def _sum(parts: Iterable[LayerWork]) -> LayerWork:
    """Return one block of parts, of which the last one's outputs go on."""
    listed = list(parts)
    return LayerWork(sum(part.params for part in listed), sum(part.macs for part in listed), listed[-1].outputs)


def _pooled(block: LayerWork, outputs: int) -> LayerWork:
    return block._replace(outputs=outputs)


def _convolution(into: int, out: int, kernel: int, size: int, *, beside: int, groups: int = 1) -> LayerWork:
    """Return a convolution to ``size`` x ``size`` with ``beside`` parameters per output channel: 1 for a bias, 2 for a batch norm."""
    weights = into // groups * out * kernel**2
    return LayerWork(weights + beside * out, weights * size**2, out * size**2)


def _linear(into: int, out: int) -> LayerWork:
    return LayerWork((into + 1) * out, into * out, out)


def _first_of_resnet() -> LayerWork:
    return _pooled(_convolution(3, 64, 7, 112, beside=2), 64 * 56**2)


def _resnet(stages: Sequence[int]) -> list[LayerWork]:
    """Return a ResNet of basic blocks: two 3x3 convolutions each."""
    blocks, into, size = [_first_of_resnet()], 64, 56
    for stage, count in enumerate(stages):
        width = 64 * 2**stage
        size = size if stage == 0 else size // 2
        for _ in range(count):
            parts = [_convolution(into, width, 3, size, beside=2), _convolution(width, width, 3, size, beside=2)]
            if into != width:
                parts.append(_convolution(into, width, 1, size, beside=2))  # the shortcut
            blocks.append(_sum(parts))
            into = width
    return [*blocks[:-1], _pooled(blocks[-1], into), _linear(into, CLASSES)]


def _bottleneck_resnet(stages: Sequence[int], *, stride_in_3x3: bool) -> list[LayerWork]:
    """Return a ResNet of bottleneck blocks: convolutions of 1x1, 3x3 and 1x1."""
    blocks, into, before = [_first_of_resnet()], 64, 56
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
    return [*blocks[:-1], _pooled(blocks[-1], into), _linear(into, CLASSES)]


def _vgg(widths: Sequence[int]) -> list[LayerWork]:
    """Return a VGG of 3x3 convolutions of these widths, 0 for a pooling that halves the image, and three full layers."""
    blocks: list[LayerWork] = []
    into, size = 3, IMAGE_SIDE
    for width in widths:
        if width == 0:
            size //= 2
            blocks[-1] = _pooled(blocks[-1], into * size**2)
            continue
        blocks.append(_convolution(into, width, 3, size, beside=1))
        into = width
    return [*blocks, _linear(into * size**2, 4096), _linear(4096, 4096), _linear(4096, CLASSES)]


def _alexnet() -> list[LayerWork]:
    """Return AlexNet: five convolutions, poolings after the first, second and fifth, and three full layers."""
    return [
        _pooled(_convolution(3, 64, 11, 55, beside=1), 64 * 27**2),
        _pooled(_convolution(64, 192, 5, 27, beside=1), 192 * 13**2),
        _convolution(192, 384, 3, 13, beside=1),
        _convolution(384, 256, 3, 13, beside=1),
        _pooled(_convolution(256, 256, 3, 13, beside=1), 256 * 6**2),
        _linear(256 * 6**2, 4096),
        _linear(4096, 4096),
        _linear(4096, CLASSES),
    ]


def _mobilenet_v2() -> list[LayerWork]:
    """Return MobileNetV2: a convolution, seventeen inverted residuals, a last convolution, and the head."""
    blocks, into, size = [_convolution(3, 32, 3, 112, beside=2)], 32, 112
    for expansion, out, count, stride in MOBILENET_V2:
        for number in range(count):
            wide, after = expansion * into, size // stride if number == 0 else size
            parts = [] if expansion == 1 else [_convolution(into, wide, 1, size, beside=2)]
            parts.append(_convolution(wide, wide, 3, after, beside=2, groups=wide))
            parts.append(_convolution(wide, out, 1, after, beside=2))
            blocks.append(_sum(parts))
            into, size = out, after
    return [*blocks, _pooled(_convolution(into, 1280, 1, size, beside=2), 1280), _linear(1280, CLASSES)]


def _vit(*, width: int, depth: int) -> list[LayerWork]:
    """Return a vision transformer on patches of 16 x 16, its perceptrons four times as wide."""
    patches = (IMAGE_SIDE // 16) ** 2
    tokens = patches + 1
    embedding = _convolution(3, width, 16, 14, beside=1)
    first = LayerWork(embedding.params + (tokens + 1) * width, embedding.macs, tokens * width)  # positions and the class token
    projections = [_linear(width, 3 * width), _linear(width, width), _linear(width, 4 * width), _linear(4 * width, width)]
    attention_macs = 2 * tokens**2 * width  # queries with keys, weights with values
    held = sum(one.params for one in projections) + 2 * 2 * width  # two layer norms
    block = LayerWork(held, tokens * sum(one.macs for one in projections) + attention_macs, tokens * width)
    head = _linear(width, CLASSES)
    last = _pooled(block, width)  # the head reads the class token alone
    return [first, *([block] * (depth - 1)), last, LayerWork(head.params + 2 * width, head.macs, head.outputs)]
