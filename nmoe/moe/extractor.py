"""Extractors: images to features, shared by every node and frozen after stage 1.

Source: the small convolutional extractor is ours (spec of the project, own trial on digits). Fronts of known networks are in
``nmoe.moe.lenet``, ``nmoe.moe.fixup`` and ``nmoe.moe.vit``.

Departures: none of them uses batch normalisation: it couples samples, which would break the sensitivity analysis of
the shared correlation matrices and makes averaging awkward. Pixels and features are standardised inside the extractor by constants
(buffers), so that a bundle cannot be served with others than it was trained with; the features' are 0 and 1 until stage 2 measures them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

CONSTANTS = frozenset({"pixel_mean", "pixel_std", "feature_mean", "feature_std"})  # buffers: never trained, never averaged


def check_cut(cut: int | str, cuts: Sequence[int | str]) -> None:
    """Check where a network is to be cut in two.

    Raises:
        ValueError: when it is none of the places where it can be.
    """
    if cut not in cuts:
        raise ValueError(f"cut must be one of {', '.join(map(str, cuts))}, got {cut!r}")


class Extractor(nn.Module, ABC):
    """Images in [0, 1] to features.

    Args:
        in_channels: channels of an image, 1 or 3.
        feature_dim: numbers per feature vector.
        image_size: height and width of an image; 0 for an extractor that takes any.

    Raises:
        ValueError: when ``in_channels`` is neither.
    """

    def __init__(self, *, in_channels: int, feature_dim: int, image_size: int = 0) -> None:
        super().__init__()
        if in_channels not in (1, 3):
            raise ValueError(f"in_channels must be 1 or 3, got {in_channels}")
        self.in_channels = in_channels
        self.feature_dim = feature_dim
        self.image_size = image_size
        self.pixel_mean = nn.Buffer(torch.full((in_channels,), 0.5))
        self.pixel_std = nn.Buffer(torch.full((in_channels,), 0.5))
        self.feature_mean = nn.Buffer(torch.zeros(feature_dim))
        self.feature_std = nn.Buffer(torch.ones(feature_dim))

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim"]:
        """Extract features from images with values in [0, 1].

        Raises:
            ValueError: when they are not of the extractor's size.
        """
        if self.image_size and images.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(f"images of {self.image_size} x {self.image_size} wanted, got {' x '.join(map(str, images.shape[2:]))}")
        shape = (1, self.in_channels, 1, 1)
        features = self.embed((images - self.pixel_mean.view(shape)) / self.pixel_std.view(shape))
        return (features - self.feature_mean) / self.feature_std

    def takes(self, image_shape: tuple[int, int, int]) -> bool:
        """Say whether images of a height, a width and a number of channels can be extracted."""
        size = self.image_size
        return image_shape[2] == self.in_channels and (size == 0 or image_shape[:2] == (size, size))

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
