"""Knowledge: what a node is told of its links' SNRs, where it does not know them exactly.

Sources: A. Goldsmith, Wireless Communications, 2005, ch. 9 (estimates with errors and delays); W. C. Jakes, 1974
(correlation over time); 3GPP TS 38.214, section 5.2.2 (reports).

| source | here | unit |
|---|---|---|
| gamma | snr | ratio, true |
| gamma_bar | mean_snr | ratio |
| gamma_hat | the SNR told | ratio |
| e | error | share of the estimate's power that is error |
| rho = J_0(2 pi f_D tau) | sqrt(1 - error) | of the complex gain then and now |

An estimate h_hat = sqrt(1 - e) h + sqrt(e) n, n ~ CN(0, 1), depends on h, in law, through its amplitude alone, which is
sqrt(gamma / gamma_bar). A delay is the same map with sqrt(1 - e) = rho.

Departures: what is told has the true law when the link is Rayleigh. Under Rician fading the error takes from the direct path too, which a
real estimator would know; K is then understated.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from nmoe.channel.base import check_all
from nmoe.channel.mobility import jakes_correlation
from nmoe.channel.rate import TABLE_GAP, cqi_of_snr, snr_of_cqi
from nmoe.core.units import from_db


class Knowledge(ABC):
    """What is told of SNRs; a perfect link, of infinite SNR, is always told as such."""

    def tell(
        self, snr: Float[Tensor, "batch link"], mean_snr: Float[Tensor, "batch link"], *, generator: torch.Generator
    ) -> Float[Tensor, "batch link"]:
        """Return the SNRs that are told.

        Args:
            snr: true ones of the block, at least 0.
            mean_snr: over many blocks, above 0.
            generator: of the errors; on the SNRs' device.

        Raises:
            ValueError: when shapes differ or an SNR is out of range or NaN.
        """
        if snr.shape != mean_snr.shape:
            raise ValueError(f"as many SNRs as mean SNRs wanted, got {list(snr.shape)} and {list(mean_snr.shape)}")
        check_all(snr, snr >= 0, wanted="SNRs of at least 0")
        check_all(mean_snr, mean_snr > 0, wanted="mean SNRs above 0")
        return torch.where(torch.isinf(snr), snr, self._told(snr, mean_snr, generator))

    @abstractmethod
    def _told(self, snr: Tensor, mean_snr: Tensor, generator: torch.Generator) -> Tensor:
        """Return what is told of finite SNRs; whatever else for infinite ones."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Exact(Knowledge):
    """What is told is true."""

    def _told(self, snr: Tensor, mean_snr: Tensor, generator: torch.Generator) -> Tensor:
        return snr


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated(Knowledge):
    """The complex gain is known up to Gaussian noise, or as it was some time ago.

    Attributes:
        error: e, from 0 (exact) to 1 (nothing known but the mean).
    """

    error: float

    def __post_init__(self) -> None:
        """Check the error.

        Raises:
            ValueError: when it is outside 0..1.
        """
        if not 0 <= self.error <= 1:
            raise ValueError(f"an error of 0 to 1 wanted, got {self.error}")

    @classmethod
    def outdated(cls, *, delay_s: float, doppler_hz: float) -> "Estimated":
        """Return knowledge that is ``delay_s`` old.

        Args:
            delay_s: at least 0.
            doppler_hz: see ``nmoe.channel.mobility.doppler_hz``.

        Raises:
            ValueError: when an argument is out of range.
        """
        if not 0 <= delay_s < math.inf:
            raise ValueError(f"a delay of at least 0 s wanted, got {delay_s} s")
        rho = jakes_correlation(torch.tensor(delay_s, dtype=torch.float64), doppler_hz=doppler_hz)
        return cls(error=1 - float(rho.square().clamp_max(1)))

    def _told(self, snr: Tensor, mean_snr: Tensor, generator: torch.Generator) -> Tensor:
        if self.error == 0:
            return snr
        noise = torch.randn((2, *snr.shape), generator=generator, device=snr.device, dtype=snr.dtype) * math.sqrt(self.error / 2)
        in_phase = (snr * ((1 - self.error) / mean_snr)).sqrt() + noise[0]  # Re h_hat, h turned to be real
        return mean_snr * (in_phase.square() + noise[1].square())


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Blurred(Knowledge):
    """The SNR is told with a normal error in decibels, as power meters have it.

    Attributes:
        sigma_db: standard deviation of the error, at least 0.
    """

    sigma_db: float

    def __post_init__(self) -> None:
        """Check the deviation.

        Raises:
            ValueError: when it is negative, infinite or NaN.
        """
        if not 0 <= self.sigma_db < math.inf:
            raise ValueError(f"a sigma of at least 0 dB wanted, got {self.sigma_db} dB")

    def _told(self, snr: Tensor, mean_snr: Tensor, generator: torch.Generator) -> Tensor:
        error_db = self.sigma_db * torch.randn(snr.shape, generator=generator, device=snr.device, dtype=snr.dtype)
        return snr * from_db(error_db)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Reported(Knowledge):
    """The SNR is told as one of 16 channel quality indicators; what is believed is the lowest SNR that the indicator stands for.

    Attributes:
        gap: of the table to Shannon's bound; see ``nmoe.channel.rate``.
    """

    gap: float = TABLE_GAP

    def __post_init__(self) -> None:
        """Check the gap.

        Raises:
            ValueError: when it is below 1 or not finite.
        """
        if not 1 <= self.gap < math.inf:
            raise ValueError(f"a gap to Shannon's bound of at least 1 (0 dB) wanted, got {self.gap}")

    def _told(self, snr: Tensor, mean_snr: Tensor, generator: torch.Generator) -> Tensor:
        return snr_of_cqi(cqi_of_snr(snr, gap=self.gap), gap=self.gap).to(snr.dtype)
