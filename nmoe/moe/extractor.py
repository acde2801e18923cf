"""Extractors: images to features, shared by every node and frozen after stage 1.

Source: Fixup-ResNet-20 as in FedSC (Jing et al., ICML 2024, public code; Fixup by Zhang, Dauphin and Ma, ICLR 2019). The small
convolutional extractor is ours (spec of the project, own trial on digits).

Departures: none of the two uses batch normalisation, as in the source: it couples samples, which would break the sensitivity analysis of
the shared correlation matrices and makes averaging awkward. Pixels and features are standardised inside the extractor by constants
(buffers), so that a bundle cannot be served with others than it was trained with; the features' are 0 and 1 until stage 2 measures them.
"""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

CONSTANTS = frozenset({"pixel_mean", "pixel_std", "feature_mean", "feature_std"})  # buffers: never trained, never averaged


class Extractor(nn.Module, ABC):
    """Images in [0, 1] to features.

    Args:
        in_channels: channels of an image, 1 or 3.
        feature_dim: numbers per feature vector.
    """

    def __init__(self, *, in_channels: int, feature_dim: int) -> None:
        super().__init__()
        if in_channels not in (1, 3):
            raise ValueError(f"in_channels must be 1 or 3, got {in_channels}")
        self.in_channels = in_channels
        self.feature_dim = feature_dim
        self.pixel_mean = nn.Buffer(torch.full((in_channels,), 0.5))
        self.pixel_std = nn.Buffer(torch.full((in_channels,), 0.5))
        self.feature_mean = nn.Buffer(torch.zeros(feature_dim))
        self.feature_std = nn.Buffer(torch.ones(feature_dim))

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim"]:
        """Extract features from images with values in [0, 1]."""
        shape = (1, self.in_channels, 1, 1)
        features = self.embed((images - self.pixel_mean.view(shape)) / self.pixel_std.view(shape))
        return (features - self.feature_mean) / self.feature_std

    @abstractmethod
    def embed(self, pixels: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim"]:
        """Extract features from normalised pixels."""


class ConvExtractor(Extractor):
    """Three 3x3 convolutions and an average over places; for images from 8x8 to 28x28.

    Args:
        in_channels: channels of an image, 1 or 3.
        feature_dim: channels of the last convolution; the first two have a quarter and a half of it. A multiple of 4.
        generator: draws the initial weights (He).
    """

    def __init__(self, *, in_channels: int, feature_dim: int, generator: torch.Generator) -> None:
        if feature_dim < 4 or feature_dim % 4:
            raise ValueError(f"feature_dim must be a positive multiple of 4, got {feature_dim}")
        super().__init__(in_channels=in_channels, feature_dim=feature_dim)
        quarter, half = feature_dim // 4, feature_dim // 2
        self.conv1 = nn.Conv2d(in_channels, quarter, 3, padding=1)
        self.conv2 = nn.Conv2d(quarter, half, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(half, feature_dim, 3, stride=2, padding=1)
        for conv in (self.conv1, self.conv2, self.conv3):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # a convolution made with a bias has one

    def embed(self, pixels: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim"]:
        hidden = functional.relu(self.conv1(pixels))
        hidden = functional.relu(self.conv2(hidden))  # [batch, half, height/2, width/2]
        hidden = functional.relu(self.conv3(hidden))  # [batch, dim, height/4, width/4]
        return hidden.mean(dim=(2, 3))  # [batch, dim]


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


class FixupResNet(Extractor):
    """Fixup-ResNet-20: three stages of three blocks, widths 16, 32 and 64 times ``widen``.

    Args:
        in_channels: channels of an image, 1 or 3.
        widen: width factor, at least 1; 8 in the source (17 108 399 parameters without a head, 512 features).
        generator: draws the initial weights.
    """

    BLOCKS_PER_STAGE = 3
    NUM_STAGES = 3

    def __init__(self, *, in_channels: int, widen: int, generator: torch.Generator) -> None:
        if widen < 1:
            raise ValueError(f"widen must be at least 1, got {widen}")
        super().__init__(in_channels=in_channels, feature_dim=64 * widen)
        width = 16 * widen
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        nn.init.kaiming_uniform_(self.stem.weight, a=math.sqrt(5), generator=generator)  # the source leaves PyTorch's default
        self.stem_bias = nn.Parameter(torch.zeros(1))
        self.output_bias = nn.Parameter(torch.zeros(1))
        num_blocks = self.NUM_STAGES * self.BLOCKS_PER_STAGE
        blocks = []
        for stage in range(self.NUM_STAGES):
            for position in range(self.BLOCKS_PER_STAGE):
                widens = stage > 0 and position == 0
                out_width = 16 * widen * 2**stage
                in_width = out_width // 2 if widens else out_width
                blocks.append(
                    FixupBlock(
                        in_width=in_width, out_width=out_width, stride=2 if widens else 1, num_blocks=num_blocks, generator=generator
                    )
                )
        self.blocks = nn.Sequential(*blocks)

    def embed(self, pixels: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim"]:
        hidden = functional.relu(self.stem(pixels) + self.stem_bias)
        return self.blocks(hidden).mean(dim=(2, 3)) + self.output_bias  # type: ignore[no-any-return]  # nn.Sequential is untyped
