"""LeNet-5: two convolutions and three full layers, in front of the cut and behind it.

Source: LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document recognition, Proc. IEEE 1998, section II-B.

| paper | here | one sample of 32 x 32 |
|---|---|---|
| C1, S2 | stages.pool1 | 6 x 14 x 14 |
| C3, S4 | stages.pool2 | 16 x 5 x 5 |
| C5 | stages.fc1 | 120 |
| F6 | fc2 | 84 |
| output | head | classes |

Cuts: ``pool1``, ``pool2`` and ``fc1`` hand over what the stage of that name gives, flat.

Departures: the common modern form, 61 706 parameters for grey images and 10 classes: ReLU for scaled tanh, maxima for trainable averages,
every map of C3 sees every map of S2, a linear output for radial basis functions, and He's initial weights. Images smaller than 32 x 32
get a frame of 2 pixels, as the source's digits of 28 x 28 did. Nothing below 12 x 12 is left over by two convolutions and two poolings.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nmoe.moe.expert import Expert, LinearHead
from nmoe.moe.extractor import Extractor, check_cut

CUTS = ("pool1", "pool2", "fc1")
KERNEL = 5
FRAMED = 32  # smaller images get a frame
SMALLEST = 12
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def lenet_shape(cut: str, *, image_size: int) -> tuple[int, ...]:
    """Return the shape of one sample's features behind the cut.

    Args:
        cut: one of ``CUTS``.
        image_size: height and width of an image, at least 12.

    Raises:
        ValueError: when the cut is unknown or images are too small.
    """
    check_cut(cut, CUTS)
    if image_size < SMALLEST:
        raise ValueError(f"image_size must be at least {SMALLEST}, got {image_size}")
    first = (image_size + 2 * _frame(image_size) - KERNEL + 1) // 2
    second = (first - KERNEL + 1) // 2
    shapes = {"pool1": (6, first, first), "pool2": (16, second, second), "fc1": (120,)}
    return shapes[cut]


class LeNet(Extractor):
    """The network up to its cut.

    Args:
        in_channels: channels of an image, 1 or 3.
        image_size: height and width of an image, at least 12.
        cut: the stage it ends with, one of ``CUTS``.
        generator: draws the initial weights.

    Raises:
        ValueError: when an argument is out of range.
    """

    def __init__(self, *, in_channels: int, image_size: int, cut: str, generator: torch.Generator) -> None:
        shape = lenet_shape(cut, image_size=image_size)
        super().__init__(in_channels=in_channels, feature_dim=math.prod(shape), image_size=image_size)
        names = CUTS[: CUTS.index(cut) + 1]
        self.stages = _stages(names, in_channels=in_channels, image_size=image_size, generator=generator)

    def embed(self, pixels: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim"]:
        maps: Tensor = self.stages(pixels)
        return maps.flatten(1)  # [batch, dim]


class LeNetTail(Expert):
    """The network behind the cut.

    Args:
        image_size: height and width of an image, at least 12.
        cut: the stage it follows, one of ``CUTS``.
        num_classes: logits per sample.
        generator: draws the initial weights.

    Raises:
        ValueError: when an argument is out of range.
    """

    def __init__(self, *, image_size: int, cut: str, num_classes: int, generator: torch.Generator) -> None:
        shape = lenet_shape(cut, image_size=image_size)
        super().__init__(feature_dim=math.prod(shape), num_classes=num_classes)
        self.shape = shape
        names = CUTS[CUTS.index(cut) + 1 :]
        self.stages = _stages(names, in_channels=shape[0], image_size=image_size, generator=generator)
        self.fc2 = _drawn(nn.Linear(120, 84), generator)
        self.head = LinearHead(feature_dim=84, num_classes=num_classes, generator=generator)

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch class"]:
        hidden = self.stages(features.unflatten(1, self.shape))  # [batch, 120]
        return self.head(functional.relu(self.fc2(hidden)))  # type: ignore[no-any-return]  # nn.Module calls are untyped


def _frame(image_size: int) -> int:
    """Return how many pixels are added at each side."""
    return 2 if image_size < FRAMED else 0


def _drawn(layer: Layer, generator: torch.Generator) -> Layer:
    """Draw a layer's weights."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _stages(names: Sequence[str], *, in_channels: int, image_size: int, generator: torch.Generator) -> nn.Sequential:
    """Make some consecutive stages; ``in_channels`` counts the maps before the first of them."""
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for name in names:
        if name == "fc1":
            last_map = math.prod(lenet_shape("pool2", image_size=image_size))
            stages[name] = nn.Sequential(nn.Flatten(), _drawn(nn.Linear(last_map, 120), generator), nn.ReLU())
            continue
        out_channels, padding = (6, _frame(image_size)) if name == "pool1" else (16, 0)
        convolution = _drawn(nn.Conv2d(in_channels, out_channels, KERNEL, padding=padding), generator)
        stages[name] = nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(2))
        in_channels = out_channels
    return nn.Sequential(stages)
