"""Shadowing: what buildings and hills add to a path loss or take from it, alike for places near each other.

Source: M. Gudmundson, Correlation model for shadow fading in mobile radio systems, Electronics Letters 27(23), 1991.

| source | here | unit |
|---|---|---|
| s | sigma_db | dB, standard deviation of a log-normal loss |
| D, with e^(-d / D) | correlation_m | m |

Departures: the source follows one mobile along a road; here the same exponential law holds between all places in the plane, for one site,
and is drawn exactly (Cholesky). Different sites shadow independently (TR 38.901, section 7.4.4 has it so too).
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

NUGGET = 1e-9  # share of the variance that is not correlated, so that places in one spot can be factorised too


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Shadowing:
    """Log-normal shadowing.

    Attributes:
        sigma_db: at least 0. TR 38.901 gives urban micro 4 dB with a line of sight and 7.82 dB without.
        correlation_m: distance at which the correlation has fallen to 1/e; 0 for none. TR 38.901 gives urban micro 10 m and 13 m.
    """

    sigma_db: float
    correlation_m: float

    def __post_init__(self) -> None:
        """Check both.

        Raises:
            ValueError: when one is negative, infinite or NaN.
        """
        if not 0 <= self.sigma_db < math.inf:
            raise ValueError(f"a sigma of shadowing of at least 0 dB wanted, got {self.sigma_db} dB")
        if not 0 <= self.correlation_m < math.inf:
            raise ValueError(f"a correlation distance of at least 0 m wanted, got {self.correlation_m} m")

    def draw_db(self, places_m: Float[Tensor, "place axis"], *, num_sites: int, generator: torch.Generator) -> Float[Tensor, "place site"]:
        """Draw what shadowing adds to the loss between places and sites.

        Args:
            places_m: coordinates in metres; as many places as n^2 numbers fit in memory, when they are correlated.
            num_sites: columns of the result, independent of each other.
            generator: of the draws; on the places' device.

        Returns:
            Losses in dB with mean 0, positive and negative, of the places' dtype.

        Raises:
            ValueError: when ``num_sites`` is below 0 or a coordinate is not finite.
        """
        if num_sites < 0:
            raise ValueError(f"num_sites must be at least 0, got {num_sites}")
        if not bool(torch.isfinite(places_m).all()):
            raise ValueError("finite coordinates of places in metres wanted, got some that are not")
        normal = torch.randn((len(places_m), num_sites), generator=generator, device=generator.device, dtype=places_m.dtype)
        if self.correlation_m == 0:
            return normal.mul_(self.sigma_db)
        distance_m = torch.cdist(places_m.double(), places_m.double(), compute_mode="donot_use_mm_for_euclid_dist")
        correlation = torch.exp(-distance_m / self.correlation_m)  # e^(-d / D)
        correlation.diagonal().add_(NUGGET)
        factor: Tensor = torch.linalg.cholesky(correlation)
        return (self.sigma_db * factor @ normal.double()).to(places_m.dtype)
