"""Colour operations on a batch, each image with its own factor.

Source: ``torchvision.transforms.functional`` (``adjust_brightness``, ``adjust_contrast``, ``adjust_saturation``, ``adjust_hue``,
``rgb_to_grayscale``), whose definitions these follow. Hue by the conversions of A. R. Smith, "Color Gamut Transform Pairs", SIGGRAPH 1978,
as in Python's ``colorsys``.

All take and return Float[Tensor, "batch channel height width"] in [0, 1]; a factor is Float[Tensor, " batch"].
"""

import torch
from jaxtyping import Float
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601 as torchvision rounds it; the sum is 0.9999


def grey(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 height width"]:
    """Return the luma of colour images."""
    return (images * images.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Go from ``other`` (factor 0) past ``images`` (factor 1) and clamp to [0, 1]."""
    return torch.lerp(other, images, factor[:, None, None, None]).clamp(0, 1)


def brightness(images: Float[Tensor, "batch channel height width"], factor: Float[Tensor, " batch"]) -> Tensor:
    """Multiply every pixel by the image's factor, at least 0."""
    return (images * factor[:, None, None, None]).clamp(0, 1)


def contrast(images: Float[Tensor, "batch channel height width"], factor: Float[Tensor, " batch"]) -> Tensor:
    """Stretch each image about its mean luma by its factor, at least 0."""
    luma = grey(images) if images.shape[1] == 3 else images
    return _blend(images, luma.mean((1, 2, 3), keepdim=True).expand_as(images), factor)


def saturation(images: Float[Tensor, "batch 3 height width"], factor: Float[Tensor, " batch"]) -> Tensor:
    """Stretch each pixel about its luma by the image's factor, at least 0."""
    return _blend(images, grey(images).expand_as(images), factor)


def hue(images: Float[Tensor, "batch 3 height width"], shift: Float[Tensor, " batch"]) -> Tensor:
    """Turn each image's hue by its shift, in turns of the colour circle, -0.5 to 0.5; value and saturation stay."""
    red, green, blue = images.unbind(1)  # [batch, height, width]
    value, strongest = images.max(1)
    chroma = value - images.amin(1)
    divisor = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    from_red, from_green, from_blue = (green - blue) / divisor, 2 + (blue - red) / divisor, 4 + (red - green) / divisor
    sixths = torch.where(strongest == 0, from_red, torch.where(strongest == 1, from_green, from_blue))
    turned = sixths + 6 * shift[:, None, None]
    offset = images.new_tensor((5.0, 3.0, 1.0))[:, None, None]  # for red, green, blue
    k = (offset + turned[:, None]) % 6  # [batch, channel, height, width]
    return (value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)).clamp(0, 1)
