"""Fading: how the power gain of a link varies from block to block, and how often a link is then too weak.

Sources: J. G. Proakis and M. Salehi, Digital Communications, 5th ed., ch. 13 (laws); M. K. Simon and M.-S. Alouini, Digital Communication
over Fading Channels, 2nd ed., ch. 2 and 5 (outage).

| source | here | unit |
|---|---|---|
| abs(h)^2 | gain | ratio, mean 1 |
| K | k_factor | power of the direct path over that of all scattered ones |
| gamma_bar | mean_snr | ratio |
| gamma_th | threshold | ratio |

h = sqrt(K / (K + 1)) + sqrt(1 / (K + 1)) CN(0, 1) for Rician fading; K = 0 is Rayleigh, K without bound a link that does not fade.

Departures: none in the laws. Uniform numbers in float32 are multiples of 2^-24, so a Rayleigh gain is at least 2^-25 (a link is never lost
for good, and no SNR is 0) and at most 16.6, where the exact law has 6e-8 of its mass above.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from nmoe.channel.base import Fading

SMALLEST_GAIN = 2.0**-25
TERMS_SIGMAS, TERMS_MORE = 12.0, 40.0  # of a Poisson law around its mean; what lies outside is below 1e-16


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Awgn(Fading):
    """A link that does not fade: every gain is 1."""

    def gains(self, shape: Sequence[int], *, generator: torch.Generator) -> Tensor:
        return torch.ones(tuple(shape), device=generator.device)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rayleigh(Fading):
    """Many scattered paths and no direct one: gains are exponential with mean 1."""

    def gains(self, shape: Sequence[int], *, generator: torch.Generator) -> Tensor:
        # Inversion: 5 times as fast as Tensor.exponential_, which takes its numbers one by one.
        uniform = torch.rand(tuple(shape), generator=generator, device=generator.device)
        return uniform.neg_().log1p_().neg_().clamp_min_(SMALLEST_GAIN)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rician(Fading):
    """A direct path beside the scattered ones.

    Attributes:
        k_factor: power of the direct path over that of the others, a ratio, at least 0; infinity for no scattering.
    """

    k_factor: float

    def __post_init__(self) -> None:
        """Check the ratio.

        Raises:
            ValueError: when it is negative or NaN.
        """
        _check_k_factor(self.k_factor)

    def gains(self, shape: Sequence[int], *, generator: torch.Generator) -> Tensor:
        scattered = 1 / (self.k_factor + 1)
        normal = torch.randn((2, *shape), generator=generator, device=generator.device).mul_(math.sqrt(scattered / 2))
        in_phase, quadrature = normal[0].add_(math.sqrt(1 - scattered)), normal[1]
        return in_phase.square_().addcmul_(quadrature, quadrature)


def rayleigh_outage(mean_snr: Float[Tensor, "*link"], threshold: Float[Tensor, "*#link"]) -> Float[Tensor, "*link"]:
    """Return how probable it is that a Rayleigh link's SNR is below a threshold: 1 - exp(-threshold / mean).

    Args:
        mean_snr: ratios above 0.
        threshold: ratios, at least 0.

    Raises:
        ValueError: when a ratio is out of range or NaN.
    """
    _check_outage(mean_snr, threshold)
    return -torch.expm1(-threshold / mean_snr)


def rician_outage(mean_snr: Float[Tensor, "*link"], threshold: Float[Tensor, "*#link"], *, k_factor: float) -> Float[Tensor, "*link"]:
    """Return how probable it is that a Rician link's SNR is below a threshold.

    That is 1 - Q_1(sqrt(2 K), sqrt(2 (K + 1) threshold / mean)), Q_1 being Marcum's function, here summed as the mixture of gamma laws
    that a non-central chi-squared law is: sum over n of Poisson(n; K) P(n + 1, (K + 1) threshold / mean).

    Args:
        mean_snr: ratios above 0.
        threshold: ratios, at least 0.
        k_factor: at least 0, finite.

    Returns:
        Probabilities, computed in float64.

    Raises:
        ValueError: when a ratio is out of range or NaN.
    """
    _check_k_factor(k_factor)
    _check_outage(mean_snr, threshold)
    if k_factor == math.inf:
        raise ValueError("a finite k_factor wanted, got inf: without scattering a link is in outage always or never")
    reach = TERMS_SIGMAS * math.sqrt(k_factor) + TERMS_MORE
    n = torch.arange(max(0, math.floor(k_factor - reach)), math.ceil(k_factor + reach), dtype=torch.float64)
    poisson = torch.exp(torch.xlogy(n, torch.tensor(k_factor, dtype=torch.float64)) - k_factor - torch.lgamma(n + 1))
    scaled = ((k_factor + 1) * threshold.double() / mean_snr.double()).unsqueeze(-1)  # [*link, 1]
    terms: Tensor = torch.special.gammainc(n + 1, scaled)  # [*link, n]
    return (terms @ poisson).clamp(0, 1).to(mean_snr.dtype)


def _check_k_factor(k_factor: float) -> None:
    if not k_factor >= 0:
        raise ValueError(f"the k_factor of Rician fading must be at least 0, got {k_factor}")


def _check_outage(mean_snr: Tensor, threshold: Tensor) -> None:
    if not bool((mean_snr > 0).all()):
        raise ValueError(f"mean SNRs must be above 0 and not NaN, got {mean_snr.tolist()}")
    if not bool((threshold >= 0).all()):
        raise ValueError(f"SNR thresholds must be at least 0 and not NaN, got {threshold.tolist()}")
