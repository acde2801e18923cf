"""Colour views: the SimCLR set for small colour images, as FedSC's code has it.

Source: T. Chen, S. Kornblith, M. Norouzi, G. Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020,
appendix A; hyperparameters of the FedSC code: RandomResizedCrop(scale 0.2 to 1), ColorJitter(0.4, 0.4, 0.4, 0.1) with probability 0.8,
HorizontalFlip, Grayscale with probability 0.2, no blur.

Departures: none in distribution. The flip is made with the crop, before the colour operations, with which it commutes. Normalising by a
data set's mean and deviation is left to the network.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from nmoe.data.views import colour
from nmoe.data.views.base import Views, chance, check_fractions, check_images, check_interval, uniform
from nmoe.data.views.crop import draw_crops, resize_crops

_OPERATIONS = (colour.brightness, colour.contrast, colour.saturation, colour.hue)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ColourViews(Views):
    """Random resized crop, mirror image, colour jitter in random order, and loss of colour.

    Attributes:
        scale: smallest and largest area of a crop, as a fraction of the image's.
        ratio: smallest and largest width to height ratio of a crop.
        brightness: largest relative change of brightness, 0 to 1.
        contrast: largest relative change of contrast, 0 to 1.
        saturation: largest relative change of saturation, 0 to 1.
        hue: largest turn of the hue to either side, 0 to 0.5 of the colour circle.
        jitter: probability of the four changes of colour.
        flip: probability of a mirror image.
        grey: probability of a grey image.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter: float = 0.8
    flip: float = 0.5
    grey: float = 0.2

    def __post_init__(self) -> None:
        """Check the hyperparameters."""
        check_interval("scale", self.scale, 0, 1)
        check_interval("ratio", self.ratio, 0, 100)
        check_fractions(brightness=self.brightness, contrast=self.contrast, saturation=self.saturation)
        check_fractions(jitter=self.jitter, flip=self.flip, grey=self.grey)
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue must be in [0, 0.5], got {self.hue}")

    def draw(
        self, images: Float[Tensor, "batch channel height width"], generator: torch.Generator
    ) -> Float[Tensor, "batch channel height width"]:
        """Draw one view of each image; see ``Views.draw``."""
        check_images(images, (3,))
        batch = len(images)
        crops = draw_crops(images, self.scale, self.ratio, generator)
        views = resize_crops(images, crops, chance(batch, self.flip, images, generator))
        views = self._jitter(views, generator)
        greyed = chance(batch, self.grey, images, generator)
        return torch.where(greyed[:, None, None, None], colour.grey(views), views).clamp(0, 1)

    def _jitter(self, images: Tensor, generator: torch.Generator) -> Float[Tensor, "batch 3 height width"]:
        """Change the colours of some images in place, each with its own factors in its own order of operations."""
        batch = len(images)
        chosen = chance(batch, self.jitter, images, generator)
        middles, widths = (1.0, 1.0, 1.0, 0.0), (self.brightness, self.contrast, self.saturation, self.hue)
        factors = [uniform((batch,), at - by, at + by, images, generator) for at, by in zip(middles, widths, strict=True)]
        order = uniform((batch, len(_OPERATIONS)), 0.0, 1.0, images, generator).argsort(1)  # [batch, position]
        for position in range(len(_OPERATIONS)):
            for number, operation in enumerate(_OPERATIONS):
                rows = torch.nonzero(chosen & (order[:, position] == number))[:, 0]  # images with this operation now
                images[rows] = operation(images[rows], factors[number][rows])
        return images
