"""Link budget: the mean SNR of every link from where its ends stand.

Source: 3GPP TR 38.901, section 7.4, and TR 36.814, section A.2.1.1 (the sum of gains and losses in dB); thermal noise k T at 290 K.

| source | here | unit |
|---|---|---|
| P_TX | power_dbm | dBm, antenna gains included |
| N_0 | THERMAL_NOISE_DBM_PER_HZ | dBm/Hz, -174 |
| W | bandwidth_hz | Hz |
| NF | noise_figure_db | dB |
| PL | path_loss | dB |
| X_sigma | shadowing | dB |

SNR = P_TX - PL - X_sigma - (N_0 + 10 log10 W + NF), in dB.

Departures: no interference between sites. A user nearer to a site than ``nearest_m`` counts as that far, as the standards' simulations keep
a least distance.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from nmoe.channel.base import PathLoss
from nmoe.channel.shadowing import Shadowing
from nmoe.core.units import from_db, to_db

THERMAL_NOISE_DBM_PER_HZ = -174.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LinkBudget:
    """What makes the mean SNR of a link.

    Attributes:
        power_dbm: of the transmitter, antenna gains included; finite.
        bandwidth_hz: above 0.
        noise_figure_db: of the receiver, at least 0.
        path_loss: over distance.
        shadowing: over places; None for none.
        nearest_m: shorter distances count as this one, above 0. TR 38.901, Table 7.2-1 keeps users 10 m from urban micro sites.
    """

    power_dbm: float
    bandwidth_hz: float
    noise_figure_db: float
    path_loss: PathLoss
    shadowing: Shadowing | None = None
    nearest_m: float = 10.0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: when one is out of range.
        """
        if not math.isfinite(self.power_dbm):
            raise ValueError(f"a finite power in dBm wanted, got {self.power_dbm}")
        if not 0 < self.nearest_m < math.inf:
            raise ValueError(f"a nearest distance above 0 m wanted, got {self.nearest_m} m")
        noise_dbm(self.bandwidth_hz, noise_figure_db=self.noise_figure_db)

    def mean_snr(
        self, users_m: Float[Tensor, "user axis"], sites_m: Float[Tensor, "site axis"], *, generator: torch.Generator
    ) -> Float[Tensor, "user site"]:
        """Return the mean SNR of every link.

        Args:
            users_m: coordinates in metres, on the ground for the laws that count distance so (see ``nmoe.channel.path_loss``).
            sites_m: the same of the sites.
            generator: of the shadowing.

        Returns:
            Ratios above 0, before fading.

        Raises:
            ValueError: when the coordinates have unlike axes or are not finite, or a link is longer than the path loss allows.
        """
        if users_m.ndim != 2 or sites_m.ndim != 2 or users_m.shape[1] != sites_m.shape[1]:
            raise ValueError(f"users [user, axis] and sites [site, axis] wanted, got {list(users_m.shape)} and {list(sites_m.shape)}")
        distance_m = torch.cdist(users_m, sites_m, compute_mode="donot_use_mm_for_euclid_dist").clamp_min(self.nearest_m)  # [user, site]
        loss_db = self.path_loss.loss_db(distance_m)
        if self.shadowing is not None:
            loss_db = loss_db + self.shadowing.draw_db(users_m, num_sites=len(sites_m), generator=generator)
        return from_db(self.power_dbm - loss_db - noise_dbm(self.bandwidth_hz, noise_figure_db=self.noise_figure_db))


def noise_dbm(bandwidth_hz: float, *, noise_figure_db: float) -> float:
    """Return the power of the receiver's noise, -174 dBm/Hz + 10 log10 W + NF, in dBm.

    Raises:
        ValueError: when the bandwidth is not above 0, the noise figure negative, or one not finite.
    """
    if not 0 < bandwidth_hz < math.inf:
        raise ValueError(f"a bandwidth above 0 Hz wanted, got {bandwidth_hz} Hz")
    if not 0 <= noise_figure_db < math.inf:
        raise ValueError(f"a noise figure of at least 0 dB wanted, got {noise_figure_db} dB")
    return THERMAL_NOISE_DBM_PER_HZ + to_db(bandwidth_hz) + noise_figure_db
