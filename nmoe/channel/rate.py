"""Rates: how many bits a second a link of some SNR carries, by Shannon's law and by 5G's table of modulation and coding, and back.

Sources: C. E. Shannon, Communication in the presence of noise, Proc. IRE 37 (1949); 3GPP TS 38.214, Table 5.2.2.1-2 (channel
quality indicators up to 64-QAM).

| source | here | unit |
|---|---|---|
| W | bandwidth_hz | Hz |
| P / N | snr | ratio |
| C | rate_bps | bit/s |
| Gamma | gap | ratio, at least 1: how much more SNR a real code needs than Shannon's |
| CQI index | cqi | 0 (out of range) to 15 |

C = W log2(1 + SNR / Gamma), and SNR = Gamma (2^(C / W) - 1): the effective SNR of a link whose rate was measured.

Departures: the standard says what a CQI stands for (a block error rate of at most 0.1), not at which SNR; here that is where Shannon's law
with a gap of 2 dB reaches the efficiency. Sionna 2.2.0's tables of simulated 5G code blocks of 1000 bits over AWGN agree within their steps
of 1.8 dB for 11 of 12 entries, and ask at least 0.57 dB less for the other (CQI 4) (a test compares). Control channels, pilots and repeats
are not taken off the rate.
"""

import math
from dataclasses import dataclass
from typing import overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nmoe.channel.base import check_all
from nmoe.core.units import from_db

TABLE_GAP = from_db(2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CqiEntry:
    """What one channel quality indicator stands for.

    Attributes:
        bits_per_symbol: 2 for QPSK, 4 for 16-QAM, 6 for 64-QAM.
        code_rate: share of information among the bits sent.
    """

    bits_per_symbol: int
    code_rate: float

    @property
    def efficiency(self) -> float:
        """Information bits per second and hertz."""
        return self.bits_per_symbol * self.code_rate


CQI_TABLE = tuple(
    CqiEntry(bits_per_symbol=bits, code_rate=rate / 1024)
    for bits, rates in ((2, (78, 120, 193, 308, 449, 602)), (4, (378, 490, 616)), (6, (466, 567, 666, 772, 873, 948)))
    for rate in rates
)  # of the indicators 1 to 15


@overload
def shannon_rate(snr: float, *, bandwidth_hz: float, gap: float = 1.0) -> float: ...
@overload
def shannon_rate(snr: Tensor, *, bandwidth_hz: float, gap: float = 1.0) -> Tensor: ...
def shannon_rate(snr: float | Tensor, *, bandwidth_hz: float, gap: float = 1.0) -> float | Tensor:
    """Return the rate W log2(1 + SNR / gap) in bit/s.

    Args:
        snr: ratios, at least 0; of infinity infinity.
        bandwidth_hz: above 0.
        gap: at least 1; 1 for Shannon's bound.

    Raises:
        ValueError: when an argument is out of range or NaN.
    """
    _check_link(bandwidth_hz, gap)
    if isinstance(snr, Tensor):
        check_all(snr, snr >= 0, wanted="SNRs of at least 0")
        return bandwidth_hz / math.log(2) * torch.log1p(snr / gap)
    if not snr >= 0:
        raise ValueError(f"an SNR of at least 0 wanted, got {snr}")
    return bandwidth_hz / math.log(2) * math.log1p(snr / gap)


@overload
def shannon_snr(rate_bps: float, *, bandwidth_hz: float, gap: float = 1.0) -> float: ...
@overload
def shannon_snr(rate_bps: Tensor, *, bandwidth_hz: float, gap: float = 1.0) -> Tensor: ...
def shannon_snr(rate_bps: float | Tensor, *, bandwidth_hz: float, gap: float = 1.0) -> float | Tensor:
    """Return the effective SNR gap (2^(rate / W) - 1) of a link that carries a rate.

    Args:
        rate_bps: at least 0.
        bandwidth_hz: above 0.
        gap: at least 1; 1 for Shannon's bound.

    Returns:
        Ratios; infinity where the float type ends.

    Raises:
        ValueError: when an argument is out of range or NaN.
    """
    _check_link(bandwidth_hz, gap)
    if isinstance(rate_bps, Tensor):
        check_all(rate_bps, rate_bps >= 0, wanted="rates of at least 0 bit/s", unit="bit/s")
        return gap * torch.expm1(rate_bps * (math.log(2) / bandwidth_hz))
    if not rate_bps >= 0:
        raise ValueError(f"a rate of at least 0 bit/s wanted, got {rate_bps}")
    exponent = rate_bps / bandwidth_hz * math.log(2)
    return gap * math.expm1(exponent) if exponent < 700 else math.inf  # exp(710) is beyond float64


def cqi_of_snr(snr: Float[Tensor, "*link"], *, gap: float = TABLE_GAP) -> Int[Tensor, "*link"]:
    """Return the best channel quality indicator that an SNR bears: 1 to 15, or 0 below the first.

    Args:
        snr: ratios, at least 0.
        gap: at least 1; see the departures above.

    Raises:
        ValueError: when an argument is out of range or NaN.
    """
    check_all(snr, snr >= 0, wanted="SNRs of at least 0")
    return torch.bucketize(snr.contiguous(), _thresholds(gap).to(snr), right=True)


def rate_of_snr(snr: Float[Tensor, "*link"], *, bandwidth_hz: float, gap: float = TABLE_GAP) -> Float[Tensor, "*link"]:
    """Return the rate in bit/s at the best indicator that an SNR bears; 0 below the first.

    Args:
        snr: ratios, at least 0.
        bandwidth_hz: above 0.
        gap: at least 1; see the departures above.

    Raises:
        ValueError: when an argument is out of range or NaN.
    """
    _check_link(bandwidth_hz, gap)
    efficiencies = torch.tensor([0.0, *(entry.efficiency for entry in CQI_TABLE)], dtype=snr.dtype, device=snr.device)
    return bandwidth_hz * efficiencies[cqi_of_snr(snr, gap=gap)]


def snr_of_cqi(cqi: Int[Tensor, "*link"], *, gap: float = TABLE_GAP) -> Float[Tensor, "*link"]:
    """Return the lowest SNR that an indicator stands for; for 0, one step (as from 2 to 1) below the first.

    Args:
        cqi: 0 to 15.
        gap: at least 1; see the departures above.

    Returns:
        float32 ratios above 0.

    Raises:
        ValueError: when an argument is out of range.
    """
    if not bool(((cqi >= 0) & (cqi <= len(CQI_TABLE))).all()):
        raise ValueError(f"channel quality indicators of 0 to {len(CQI_TABLE)} wanted, got {int(cqi.min())} to {int(cqi.max())}")
    thresholds = _thresholds(gap)
    below = thresholds[:1].square() / thresholds[1:2]
    return torch.cat([below, thresholds]).float().to(cqi.device)[cqi.long()]


def _thresholds(gap: float) -> Float[Tensor, "15"]:
    _check_link(1.0, gap)
    efficiencies = torch.tensor([entry.efficiency for entry in CQI_TABLE], dtype=torch.float64)
    return shannon_snr(efficiencies, bandwidth_hz=1.0, gap=gap)


def _check_link(bandwidth_hz: float, gap: float) -> None:
    if not 0 < bandwidth_hz < math.inf:
        raise ValueError(f"a bandwidth above 0 Hz wanted, got {bandwidth_hz} Hz")
    if not 1 <= gap < math.inf:
        raise ValueError(f"a gap to Shannon's bound of at least 1 (0 dB) wanted, got {gap}")
