"""Fixup-ResNet-20: a residual network without normalisation, in front of the cut and behind it.

Source: Zhang, Dauphin and Ma, Fixup initialization, ICLR 2019; its form and sizes as in FedSC (Jing et al., ICML 2024, public code).

| source | here | meaning |
|---|---|---|
| L | num_blocks | residual blocks of the whole network, 9, wherever it is cut |
| m | | layers in a block, 2: first convolutions start L^(-1/(2m-2)) smaller than He's, second ones at zero |
| k | widen | width factor; 8 in FedSC (17 108 399 parameters without a head, 512 features) |

Cuts: ``stage1`` and ``stage2`` hand over the feature map behind that stage, flat; ``stage3`` its mean over places.

Departures: Fixup starts the head at zero; here it is drawn (He), as the experts of one mixture would else all start, and stay, alike.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nmoe.moe.expert import Expert, LinearHead
from nmoe.moe.extractor import Extractor, check_cut

CUTS = ("stage1", "stage2", "stage3")
BLOCKS_PER_STAGE = 3


class FixupBlock(nn.Module):
    """One residual block without normalisation: conv(x+b) -> ReLU(+b) -> conv(+b) * scale + b + identity."""

    def __init__(self, *, in_width: int, out_width: int, stride: int, num_blocks: int, generator: torch.Generator) -> None:
        super().__init__()
        self.stride = stride
        self.widens = in_width != out_width
        self.bias1a, self.bias1b, self.bias2a, self.bias2b = (nn.Parameter(torch.zeros(1)) for _ in range(4))
        self.scale = nn.Parameter(torch.ones(1))
        self.conv1 = nn.Conv2d(in_width, out_width, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1, bias=False)
        deviation = math.sqrt(2 / (out_width * 9)) * num_blocks**-0.5
        nn.init.normal_(self.conv1.weight, std=deviation, generator=generator)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, inputs: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch out_channel out_height out_width"]:
        """Return the block's output; height and width are divided by its stride."""
        shifted = inputs + self.bias1a
        hidden = functional.relu(self.conv1(shifted) + self.bias1b)
        hidden = self.conv2(hidden + self.bias2a) * self.scale + self.bias2b
        identity = inputs
        if self.widens:
            identity = functional.avg_pool2d(shifted, 1, stride=self.stride)
            identity = torch.cat((identity, torch.zeros_like(identity)), dim=1)
        return functional.relu(hidden + identity)


def fixup_shape(cut: str, *, widen: int, image_size: int) -> tuple[int, ...]:
    """Return the shape of one sample's features behind the cut: [channel, height, width], or [channel] behind the last stage.

    Args:
        cut: one of ``CUTS``.
        widen: width factor.
        image_size: height and width of an image; 0 for any, behind the last stage.

    Raises:
        ValueError: when the cut is unknown, ``widen`` below 1, or the image size is missing or negative.
    """
    check_cut(cut, CUTS)
    if widen < 1:
        raise ValueError(f"widen must be at least 1, got {widen}")
    last = cut == CUTS[-1]
    if image_size < (0 if last else 1):
        raise ValueError(f"image_size must be at least {0 if last else 1} for a cut at {cut}, got {image_size}")
    stage = CUTS.index(cut)
    side = -(-image_size // 2**stage)  # strides of 2 round up
    channels = 16 * widen * 2**stage
    return (channels,) if last else (channels, side, side)


class FixupResNet(Extractor):
    """The network up to its cut: a convolution and stages of three blocks, of widths 16, 32 and 64 times ``widen``.

    Args:
        in_channels: channels of an image, 1 or 3.
        widen: width factor, at least 1.
        cut: behind which stage it ends, one of ``CUTS``; the default is FedSC's extractor.
        image_size: height and width of an image; 0 for any, where the cut is behind the last stage.
        generator: draws the initial weights.

    Raises:
        ValueError: when an argument is out of range.
    """

    def __init__(self, *, in_channels: int, widen: int, cut: str = "stage3", image_size: int = 0, generator: torch.Generator) -> None:
        shape = fixup_shape(cut, widen=widen, image_size=image_size)
        super().__init__(in_channels=in_channels, feature_dim=math.prod(shape), image_size=image_size)
        self.stem = nn.Conv2d(in_channels, 16 * widen, 3, padding=1, bias=False)
        nn.init.kaiming_uniform_(self.stem.weight, a=math.sqrt(5), generator=generator)  # the source leaves PyTorch's default
        self.stem_bias = nn.Parameter(torch.zeros(1))
        self.output_bias = nn.Parameter(torch.zeros(1)) if cut == CUTS[-1] else None
        self.blocks = _blocks(range(CUTS.index(cut) + 1), widen=widen, generator=generator)

    def embed(self, pixels: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim"]:
        maps: Tensor = self.blocks(functional.relu(self.stem(pixels) + self.stem_bias))
        if self.output_bias is None:
            return maps.flatten(1)  # [batch, channel * height * width]
        return maps.mean(dim=(2, 3)) + self.output_bias


class FixupTail(Expert):
    """The network behind the cut: its other stages, the mean over places and a linear map.

    Args:
        widen: width factor, at least 1.
        cut: behind which stage it begins, one of ``CUTS``.
        image_size: height and width of an image; 0 for any, where the cut is behind the last stage.
        num_classes: logits per sample.
        generator: draws the initial weights.

    Raises:
        ValueError: when an argument is out of range.
    """

    def __init__(self, *, widen: int, cut: str, image_size: int, num_classes: int, generator: torch.Generator) -> None:
        shape = fixup_shape(cut, widen=widen, image_size=image_size)
        super().__init__(feature_dim=math.prod(shape), num_classes=num_classes)
        self.shape = shape
        later = range(CUTS.index(cut) + 1, len(CUTS))
        self.blocks = _blocks(later, widen=widen, generator=generator)
        self.output_bias = nn.Parameter(torch.zeros(1)) if later else None
        self.head = LinearHead(feature_dim=64 * widen, num_classes=num_classes, generator=generator)

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch class"]:
        if self.output_bias is not None:
            maps = self.blocks(features.unflatten(1, self.shape))  # [batch, channel, height, width]
            features = maps.mean(dim=(2, 3)) + self.output_bias
        return self.head(features)  # type: ignore[no-any-return]  # nn.Module calls are untyped


def _blocks(stages: Iterable[int], *, widen: int, generator: torch.Generator) -> nn.Sequential:
    """Make the blocks of some stages, named by their number in the whole network."""
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for stage in stages:
        for position in range(BLOCKS_PER_STAGE):
            widens = stage > 0 and position == 0
            out_width = 16 * widen * 2**stage
            blocks[str(stage * BLOCKS_PER_STAGE + position)] = FixupBlock(
                in_width=out_width // 2 if widens else out_width,
                out_width=out_width,
                stride=2 if widens else 1,
                num_blocks=len(CUTS) * BLOCKS_PER_STAGE,
                generator=generator,
            )
    return nn.Sequential(blocks)
