"""Views: random augmentations of a batch, two of which make the positive pair of contrastive learning."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor


class Views(ABC):
    """A random augmentation; call it twice on the same images for a pair."""

    __slots__ = ()

    @abstractmethod
    def draw(
        self, images: Float[Tensor, "batch channel height width"], generator: torch.Generator
    ) -> Float[Tensor, "batch channel height width"]:
        """Draw one random view of each image, each with its own parameters, in one batched pass.

        Args:
            images: pixels in [0, 1], float32 or float64; not changed.
            generator: draws the parameters, on its own device; the result lies on the device of ``images``.

        Returns:
            Views of the same shape, dtype and range.

        Raises:
            ValueError: when shape, dtype or range is wrong.
        """


def check_images(images: Tensor, channels: tuple[int, ...]) -> None:
    """Check a batch before it is augmented.

    Args:
        images: the batch.
        channels: numbers of channels that are allowed.

    Raises:
        ValueError: when it is not float32 or float64 [batch, channel, height, width] in [0, 1] with such channels.
    """
    if images.ndim != 4 or images.dtype not in (torch.float32, torch.float64) or images.numel() == 0:
        raise ValueError(f"images must be float32 or float64 [batch, channel, height, width], got {images.dtype} {list(images.shape)}")
    if images.shape[1] not in channels:
        raise ValueError(f"images must have {' or '.join(str(count) for count in channels)} channels, got {images.shape[1]}")
    low, high = (float(bound) for bound in images.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images must be in [0, 1], got [{low:g}, {high:g}] (see to_unit)")


def check_interval(name: str, interval: tuple[float, float], low: float, high: float) -> None:
    """Check that an interval is ordered and lies in (``low``, ``high``].

    Raises:
        ValueError: when it is not.
    """
    if not low < interval[0] <= interval[1] <= high:
        raise ValueError(f"{name} must be an ordered pair above {low:g} and at most {high:g}, got {interval}")


def check_fractions(**fractions: float) -> None:
    """Check that each named number lies in [0, 1].

    Raises:
        ValueError: when one does not.
    """
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")


def uniform(shape: tuple[int, ...], low: float, high: float, like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw numbers in [low, high) on the generator's device, with dtype and device of ``like``."""
    drawn = torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low
    return drawn.to(like)


def chance(batch: int, probability: float, like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one truth value for each of ``batch`` images, True with this probability, on the device of ``like``."""
    return (torch.rand(batch, generator=generator, device=generator.device) < probability).to(like.device)


def to_unit(images: UInt8[np.ndarray, "batch height width channel"]) -> Float32[Tensor, "batch channel height width"]:
    """Turn stored pixels into what networks and views take.

    Args:
        images: uint8 [N, H, W, C], 0 to 255.

    Returns:
        float32 [N, C, H, W] in [0, 1], contiguous, a copy.

    Raises:
        ValueError: when dtype or number of dimensions is wrong.
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 [N, H, W, C], got {images.dtype} {list(images.shape)}")
    return torch.from_numpy(np.divide(images.transpose(0, 3, 1, 2), 255, dtype=np.float32)).contiguous()
