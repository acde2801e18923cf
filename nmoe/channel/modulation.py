"""Modulation: bits as complex symbols of unit power, decisions and reliabilities of what arrives, and closed-form bit error rates.

Source: Gray maps of 3GPP TS 38.211, 5.1 (QPSK, 16-QAM); BPSK on the real axis. Error rates: Proakis and Salehi, Digital Communications, 5th
ed., McGraw-Hill 2008, 4.3 and 13.3; 16-QAM per bit position: Cho and Yoon, IEEE Trans. Commun. 50(7), 2002.

| source | here | unit |
|---|---|---|
| gamma = Es / N0 | snr | ratio, per symbol; per bit it is gamma / bits_per_symbol |
| gbar | mean_snr | ratio, mean over Rayleigh fading |
| Q(x) | 0.5 erfc(x / sqrt 2) | |
| w, c in sum of w Q(sqrt(c gamma)) | error_terms | one sum per bit position |

    AWGN:      P_b = sum w Q(sqrt(c gamma))                              BPSK c = 2, QPSK c = 1
    Rayleigh:  E Q(sqrt(c gamma)) = 0.5 (1 - sqrt(c gbar / (2 + c gbar)))    BPSK: 0.5 (1 - sqrt(gbar / (1 + gbar)))

Departures: BPSK of TS 38.211 is turned by 45 degrees; here it is not, which changes no law. LLRs are exact, not max-log.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

Terms = tuple[tuple[float, float], ...]
MAX_LLR_SNR = 1e6  # 60 dB, where no bit is in doubt: infinity would make inf - inf of an LLR


class Modulation(ABC):
    """A map from bits to symbols.

    Attributes:
        bits_per_symbol: bits that one symbol carries.
        error_terms: (w, c) of each bit position's error rate, sum of w Q(sqrt(c gamma)). Positions of one term have a real dimension of
            the carrier to themselves, so that their errors are independent.
    """

    bits_per_symbol: ClassVar[int]
    error_terms: ClassVar[tuple[Terms, ...]]

    @abstractmethod
    def symbols(self, bits: Bool[Tensor, "row bit"]) -> Complex[Tensor, "row symbol"]:
        """Map bits to symbols of mean power 1.

        Raises:
            ValueError: when a row's bits do not fill its symbols.
        """

    @abstractmethod
    def decide(self, received: Complex[Tensor, "row symbol"]) -> Bool[Tensor, "row bit"]:
        """Return the bits of the nearest symbols."""

    @abstractmethod
    def llrs(self, received: Complex[Tensor, "row symbol"], snr: Float[Tensor, " row"]) -> Float[Tensor, "row bit"]:
        """Return log p(bit is 0) / p(bit is 1) of every bit, given what arrived, for equally likely bits.

        Args:
            received: equalised symbols with noise.
            snr: of each row, at least 0; above 60 dB taken as 60 dB.
        """

    @property
    def separate(self) -> bool:
        """Whether every bit has a real dimension to itself, so that errors are independent of each other and of the bits sent."""
        return all(len(terms) == 1 for terms in self.error_terms)

    def error_rates(self, snr: Float[Tensor, "*link"]) -> Float[Tensor, "*link position"]:
        """Return the error rate of each bit position of a symbol over AWGN.

        Args:
            snr: Es / N0, at least 0.
        """
        return self._error_rates(lambda c: 0.5 * torch.erfc((c * snr / 2).sqrt()))  # Q(sqrt(c gamma))

    def rayleigh_error_rates(self, mean_snr: Float[Tensor, "*link"]) -> Float[Tensor, "*link position"]:
        """Return the error rate of each bit position of a symbol, averaged over Rayleigh fading.

        Args:
            mean_snr: mean Es / N0, at least 0.
        """

        def average(c: float) -> Tensor:
            x = c * mean_snr / 2
            return 0.5 / ((1 + x) * (1 + (1 + 1 / x).rsqrt()))  # 0.5 (1 - sqrt(x / (1 + x))), rid of its cancellation

        return self._error_rates(average)

    def _error_rates(self, tail: Callable[[float], Tensor]) -> Tensor:
        """Return the sums of w tail(c), the bit positions last."""
        return torch.stack([torch.stack([w * tail(c) for w, c in terms]).sum(dim=0) for terms in self.error_terms], dim=-1)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Bpsk(Modulation):
    """One bit per symbol, on the real axis."""

    bits_per_symbol: ClassVar[int] = 1
    error_terms: ClassVar[tuple[Terms, ...]] = (((1.0, 2.0),),)

    def symbols(self, bits: Bool[Tensor, "row bit"]) -> Complex[Tensor, "row symbol"]:
        return torch.complex(_sign(bits), torch.zeros(bits.shape, device=bits.device))

    def decide(self, received: Complex[Tensor, "row symbol"]) -> Bool[Tensor, "row bit"]:
        return received.real < 0

    def llrs(self, received: Complex[Tensor, "row symbol"], snr: Float[Tensor, " row"]) -> Float[Tensor, "row bit"]:
        return 4 * _bounded(snr) * received.real


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Qpsk(Modulation):
    """Two bits per symbol, one on each axis."""

    bits_per_symbol: ClassVar[int] = 2
    error_terms: ClassVar[tuple[Terms, ...]] = (((1.0, 1.0),),) * 2

    def symbols(self, bits: Bool[Tensor, "row bit"]) -> Complex[Tensor, "row symbol"]:
        return torch.view_as_complex(_per_symbol(_sign(bits), 2) / math.sqrt(2))

    def decide(self, received: Complex[Tensor, "row symbol"]) -> Bool[Tensor, "row bit"]:
        return (torch.view_as_real(received) < 0).flatten(1)

    def llrs(self, received: Complex[Tensor, "row symbol"], snr: Float[Tensor, " row"]) -> Float[Tensor, "row bit"]:
        return 2 * math.sqrt(2) * _bounded(snr) * torch.view_as_real(received).flatten(1)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Qam16(Modulation):
    """Four bits per symbol: signs of both axes, then amplitudes of both (1 or 3)."""

    bits_per_symbol: ClassVar[int] = 4
    error_terms: ClassVar[tuple[Terms, ...]] = (((0.5, 0.2), (0.5, 1.8)),) * 2 + (((1.0, 0.2), (0.5, 1.8), (-0.5, 5.0)),) * 2

    def symbols(self, bits: Bool[Tensor, "row bit"]) -> Complex[Tensor, "row symbol"]:
        signs = _per_symbol(_sign(bits), 4)  # [row, symbol, 4]
        return torch.view_as_complex(signs[..., :2] * (2 - signs[..., 2:]) / math.sqrt(10))  # TS 38.211, 5.1.4

    def decide(self, received: Complex[Tensor, "row symbol"]) -> Bool[Tensor, "row bit"]:
        axes = torch.view_as_real(received)
        return torch.cat([axes < 0, axes.abs() > 2 / math.sqrt(10)], dim=2).flatten(1)

    def llrs(self, received: Complex[Tensor, "row symbol"], snr: Float[Tensor, " row"]) -> Float[Tensor, "row bit"]:
        axes = torch.view_as_real(received)  # [row, symbol, 2]
        levels = torch.tensor([1.0, 3.0, -1.0, -3.0], device=axes.device) / math.sqrt(10)
        likelihoods = -_bounded(snr)[..., None, None] * (axes.unsqueeze(3) - levels).square()  # [row, symbol, 2, level], log
        signs = likelihoods[..., :2].logsumexp(dim=3) - likelihoods[..., 2:].logsumexp(dim=3)
        amplitudes = likelihoods[..., ::2].logsumexp(dim=3) - likelihoods[..., 1::2].logsumexp(dim=3)
        return torch.cat([signs, amplitudes], dim=2).flatten(1)


def _sign(bits: Bool[Tensor, "row bit"]) -> Float[Tensor, "row bit"]:
    """Return 1 for a bit of 0 and -1 for a bit of 1."""
    return 1 - 2 * bits.float()


def _per_symbol(values: Float[Tensor, "row bit"], bits_per_symbol: int) -> Float[Tensor, "row symbol position"]:
    if values.shape[1] % bits_per_symbol:
        raise ValueError(f"a multiple of {bits_per_symbol} bits per row wanted, got {values.shape[1]}")
    return values.reshape(values.shape[0], values.shape[1] // bits_per_symbol, bits_per_symbol)


def _bounded(snr: Float[Tensor, " row"]) -> Float[Tensor, "row 1"]:
    return snr.clamp(max=MAX_LLR_SNR).unsqueeze(1)
