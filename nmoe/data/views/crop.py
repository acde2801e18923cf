"""Random resized crop with a flip: the geometric half of the SimCLR augmentations, batched.

Source: ``torchvision.transforms.RandomResizedCrop`` (Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, sec. 6): ten tries at an
area and an aspect ratio, the first that fits is taken, else the largest centred crop whose ratio is allowed.

Departures: none in distribution; resizing is bilinear without antialiasing, the same thing here since a crop is only ever enlarged.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import grid_sample

from nmoe.data.views.base import uniform

_NUM_TRIES = 10


class Crops(NamedTuple):
    """One window for each image, in whole pixels."""

    top: Int[Tensor, " batch"]
    left: Int[Tensor, " batch"]
    height: Int[Tensor, " batch"]
    width: Int[Tensor, " batch"]


def _fallback(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    """Return height and width of the largest crop whose width to height ratio is allowed."""
    if width / height < ratio[0]:
        return round(width / ratio[0]), width
    if width / height > ratio[1]:
        return height, round(height * ratio[1])
    return height, width


def draw_crops(images: Tensor, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator) -> Crops:
    """Draw a window for each image.

    Args:
        images: [batch, channel, height, width]; only its shape and device are used.
        scale: smallest and largest area of a window, as a fraction of the image's.
        ratio: smallest and largest width to height ratio.
        generator: draws the windows.

    Returns:
        The windows, each inside the image.
    """
    batch, _, height, width = images.shape
    area = height * width * uniform((batch, _NUM_TRIES), scale[0], scale[1], images, generator)
    aspect = uniform((batch, _NUM_TRIES), math.log(ratio[0]), math.log(ratio[1]), images, generator).exp()
    place = uniform((2, batch), 0.0, 1.0, images, generator)
    wide, high = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()  # [batch, try]
    fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)  # 0 where none fits
    found = fits.any(1)
    last_height, last_width = _fallback(height, width, ratio)
    crop_height = torch.where(found, high.gather(1, first)[:, 0], float(last_height)).long()  # [batch]
    crop_width = torch.where(found, wide.gather(1, first)[:, 0], float(last_width)).long()
    spare_height, spare_width = height - crop_height, width - crop_width
    # place < 1 in exact arithmetic, yet float32 may round place * (spare + 1) up to spare + 1
    top = torch.minimum((place[0] * (spare_height + 1)).long(), spare_height)
    left = torch.minimum((place[1] * (spare_width + 1)).long(), spare_width)
    return Crops(torch.where(found, top, spare_height // 2), torch.where(found, left, spare_width // 2), crop_height, crop_width)


def _source(start: Tensor, length: Tensor, size: int, like: Tensor) -> Float[Tensor, "batch side"]:
    """Return where along one side each output pixel's centre lies in the image, in pixels, clamped to its window."""
    centre = torch.arange(size, device=like.device, dtype=like.dtype) + 0.5
    length = length[:, None].to(like)
    inside = centre * (length / size) - 0.5  # [batch, side]
    return start[:, None] + torch.minimum(inside.clamp_min(0), length - 1)


def resize_crops(
    images: Float[Tensor, "batch channel height width"], crops: Crops, flip: Tensor
) -> Float[Tensor, "batch channel height width"]:
    """Cut a window out of each image, enlarge it to the image's size and mirror it left to right where ``flip`` is True.

    Args:
        images: the batch.
        crops: a window for each image.
        flip: bool [batch].

    Returns:
        The enlarged windows, bilinear, no pixel outside a window used.
    """
    height, width = images.shape[2:]
    rows = _source(crops.top, crops.height, height, images)  # [batch, height]
    columns = _source(crops.left, crops.width, width, images)  # [batch, width]
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    rows, columns = (2 * rows + 1) / height - 1, (2 * columns + 1) / width - 1  # grid_sample's corners are -1 and 1
    columns, rows = columns[:, None, :].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)
    grid = torch.stack([columns, rows], -1)  # [batch, height, width, 2]
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
