"""Mobility: the fading of a link whose end moves, block after block.

Sources: R. H. Clarke, A statistical theory of mobile-radio reception, Bell System Technical Journal 47 (1968); W. C. Jakes, Microwave
Mobile Communications, 1974, ch. 1.

| source | here | unit |
|---|---|---|
| v | speed_m_s | m/s |
| f_c | carrier_hz | Hz |
| f_D = v f_c / c | doppler_hz | Hz |
| tau | lag_s | s |
| R(tau) = J_0(2 pi f_D tau) | correlation | of the complex gains; that of the power gains is its square |
| alpha_m | angles | direction of the m-th plane wave against that of travel |

How a series is drawn: as Clarke's sum of plane waves, h(t) = sum_m g_m e^(i 2 pi f_D t cos alpha_m), with independent amplitudes g_m ~
CN(0, 1/M) and alpha_m = pi (m + 1/2) / M. So h is exactly Gaussian, and its correlation is the Gauss-Chebyshev quadrature of J_0's
integral, which is right to 1e-9 once M is a little above pi f_D times the length of the series. First-order Gauss-Markov, the usual choice,
is right for one step only; a Cholesky factor of the covariance does not exist in float64 for blocks much shorter than 1 / f_D.

Departures: Jakes takes fixed amplitudes and random phases, which are Gaussian in the limit only. A series is at most about 10,000
wavelengths long (50,000 plane waves): beyond that blocks are as good as independent. Rayleigh fading only.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Complex64, Float
from torch import Tensor

from nmoe.channel.path_loss import SPEED_OF_LIGHT_M_S

MOST_WAVES = 50_000
WAVES_AT_ONCE = 2**21  # cosines and sines in memory at a time


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """Rayleigh fading that is correlated over time as for a receiver moving among scatterers all around it.

    Attributes:
        speed_m_s: at least 0; at 0 the gain stays what it was drawn to be.
        carrier_hz: above 0.
        block_s: time from one block to the next, above 0.
    """

    speed_m_s: float
    carrier_hz: float
    block_s: float

    def __post_init__(self) -> None:
        """Check the motion.

        Raises:
            ValueError: when a field is out of range.
        """
        doppler_hz(self.speed_m_s, carrier_hz=self.carrier_hz)
        if not 0 < self.block_s < math.inf:
            raise ValueError(f"a block of more than 0 s wanted, got {self.block_s} s")

    def coefficients(self, blocks: int, links: int, *, generator: torch.Generator) -> Complex64[Tensor, "block link"]:
        """Draw complex gains h, CN(0, 1) at any time, independent over links.

        Args:
            blocks: length of the series, at least 1.
            links: how many, at least 0.
            generator: of the plane waves' amplitudes.

        Raises:
            ValueError: when an argument is out of range, or the series is longer than 50,000 plane waves describe.
        """
        if blocks < 1 or links < 0:
            raise ValueError(f"at least 1 block and 0 links wanted, got {blocks} and {links}")
        waves = self._num_waves(blocks)
        amplitudes = torch.randn((waves, links), generator=generator, device=generator.device, dtype=torch.complex64) / math.sqrt(waves)
        parts = self._responses(blocks, waves, generator.device)
        return torch.cat([part @ amplitudes for part in parts])

    def gains(self, blocks: int, links: int, *, generator: torch.Generator) -> Float[Tensor, "block link"]:
        """Draw power gains |h|^2, exponential with mean 1 at any time; see ``coefficients``."""
        drawn = torch.view_as_real(self.coefficients(blocks, links, generator=generator))
        return drawn.square().sum(dim=2)

    @property
    def _turn(self) -> float:
        """Largest change of phase from block to block in radians, 2 pi f_D block_s."""
        return 2 * math.pi * self.block_s * doppler_hz(self.speed_m_s, carrier_hz=self.carrier_hz)

    def _num_waves(self, blocks: int) -> int:
        reach = self._turn * (blocks - 1)  # the largest argument of J_0
        waves = reach / 2 + 4 * math.cbrt(reach) + 8  # the quadrature errs by about 2 J_2M(reach), here below 1e-9
        if waves > MOST_WAVES:
            raise ValueError(f"a series of at most {MOST_WAVES} plane waves wanted, {blocks} blocks of {self.block_s:g} s take {waves:.0f}")
        return math.ceil(waves)

    def _responses(self, blocks: int, waves: int, device: torch.device) -> Iterator[Complex64[Tensor, "part wave"]]:
        """Yield e^(i 2 pi f_D t cos alpha_m) of some blocks at a time."""
        angles = math.pi / waves * (torch.arange(waves, dtype=torch.float64, device=device) + 0.5)
        turns = self._turn * angles.cos()
        for part in torch.arange(blocks, dtype=torch.float64, device=device).split(max(1, WAVES_AT_ONCE // waves)):
            phases = torch.outer(part, turns)  # [part, wave]
            yield torch.complex(phases.cos().float(), phases.sin().float())


def doppler_hz(speed_m_s: float, *, carrier_hz: float) -> float:
    """Return the largest Doppler shift v f_c / c in Hz.

    Raises:
        ValueError: when the speed is negative or the carrier not above 0, or one is not finite.
    """
    if not 0 <= speed_m_s < math.inf:
        raise ValueError(f"a speed of at least 0 m/s wanted, got {speed_m_s} m/s")
    if not 0 < carrier_hz < math.inf:
        raise ValueError(f"a carrier above 0 Hz wanted, got {carrier_hz} Hz")
    return speed_m_s * carrier_hz / SPEED_OF_LIGHT_M_S


def jakes_correlation(lag_s: Float[Tensor, "*lag"], *, doppler_hz: float) -> Float[Tensor, "*lag"]:
    """Return the correlation J_0(2 pi f_D tau) of complex gains ``lag_s`` apart, within 4e-7 (what torch's J_0 errs by).

    Args:
        lag_s: of either sign.
        doppler_hz: at least 0.

    Raises:
        ValueError: when ``doppler_hz`` is negative or not finite.
    """
    if not 0 <= doppler_hz < math.inf:
        raise ValueError(f"a Doppler shift of at least 0 Hz wanted, got {doppler_hz} Hz")
    correlation: Tensor = torch.special.bessel_j0(2 * math.pi * doppler_hz * lag_s)  # R(tau)
    return correlation
