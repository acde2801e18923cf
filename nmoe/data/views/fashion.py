"""Fashion views: for small grey images that keep their meaning when mirrored, such as clothes.

Source: the geometric half of the SimCLR set (T. Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML
2020, appendix A), as in the FedSC code.

Departures: no colour operations, for grey images. Smallest crops of 0.2 and 0.4 were tried on Fashion-MNIST, 120 to 200 steps, one seed: no
verdict, so the source's 0.2 stands.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from nmoe.data.views.base import Views, chance, check_fractions, check_images, check_interval
from nmoe.data.views.crop import draw_crops, resize_crops


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FashionViews(Views):
    """Random resized crop and mirror image.

    Attributes:
        scale: smallest and largest area of a crop, as a fraction of the image's.
        ratio: smallest and largest width to height ratio of a crop.
        flip: probability of a mirror image.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        """Check the hyperparameters."""
        check_interval("scale", self.scale, 0, 1)
        check_interval("ratio", self.ratio, 0, 100)
        check_fractions(flip=self.flip)

    def draw(
        self, images: Float[Tensor, "batch channel height width"], generator: torch.Generator
    ) -> Float[Tensor, "batch channel height width"]:
        """Draw one view of each image; see ``Views.draw``."""
        check_images(images, (1, 3))
        crops = draw_crops(images, self.scale, self.ratio, generator)
        return resize_crops(images, crops, chance(len(images), self.flip, images, generator)).clamp(0, 1)
