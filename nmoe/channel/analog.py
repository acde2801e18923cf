"""Analog transmission: the numbers themselves modulate the carrier, and noise adds to them.

Source: channel-aware gating (arXiv 2504.00819): noise is added to the features sent to an expert according to the SNR of its link.

| paper | here | unit |
|---|---|---|
| z | features | rows of d numbers |
| P = ||z||^2 / d | power | of one row |
| gamma | snr | ratio, per symbol; one real number per real dimension of the carrier |
| z_i = z + n, n ~ N(0, P / gamma I) | what ``send`` returns | |
| h | gains | complex, one per block |

Departures: the equations are the project's reconstruction (spec 3.2); only that noise follows the SNR is known. The sender scales every
row to unit power and the receiver scales it back, so the row's scale has to travel beside it; it is taken as received without error.
Channel inversion (y / h) at the receiver, with h known there. SNRs below -120 dB count as -120 dB, so that noise stays a number.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor
from torch.nn import functional

from nmoe.channel.base import Transmission, check_send

MIN_SNR = 1e-12


def add_noise(
    signal: Inexact[Tensor, "row sample"], snr: Float[Tensor, " row"], *, generator: torch.Generator
) -> Inexact[Tensor, "row sample"]:
    """Return a signal of unit power with white Gaussian noise.

    Args:
        signal: real or complex samples of mean power 1, over the fading where it has faded.
        snr: of each row, at least 0; infinity for no noise, below ``MIN_SNR`` taken as that.
        generator: of the noise; on the signal's device.

    Returns:
        signal + w, where w has mean power 1 / snr; complex noise for a complex signal.
    """
    noise = torch.randn(signal.shape, generator=generator, dtype=signal.dtype, device=signal.device)
    return signal + noise * snr.clamp(min=MIN_SNR).rsqrt().to(signal.dtype).unsqueeze(1)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Analog(Transmission):
    """Power normalisation, noise, equalisation. Reparametrised: gradients flow through the features and their power."""

    def send(
        self, features: Float[Tensor, "row dim"], snr: Float[Tensor, " row"], *, generator: torch.Generator
    ) -> Float[Tensor, "row dim"]:
        check_send(features, snr)
        noise = torch.randn(features.shape, generator=generator, dtype=features.dtype, device=features.device)
        deviation = _root_power(features) * snr.clamp(min=MIN_SNR).rsqrt().to(features.dtype)  # [row]
        return features + noise * deviation.unsqueeze(1)  # n ~ N(0, P / gamma I)

    def send_over(
        self,
        features: Float[Tensor, "row dim"],
        gains: Complex[Tensor, " row"],
        mean_snr: Float[Tensor, " row"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, "row dim"]:
        """Send over an explicit complex gain and equalise: the same law as ``send`` at SNR |h|^2 gbar, symbol by symbol.

        Two numbers make one complex symbol; an odd row is padded with a zero.

        Args:
            features: rows of numbers.
            gains: h of each row's block, not 0.
            mean_snr: gbar of each row's link, at least 0.
            generator: of the noise; on the features' device.

        Returns:
            what arrives of each row.

        Raises:
            ValueError: when shapes do not fit, an SNR is negative or NaN, or a gain is 0 or NaN.
        """
        check_send(features, mean_snr)
        if gains.shape != mean_snr.shape or not bool((gains.abs() > 0).all()):
            raise ValueError(
                f"one complex gain per row wanted, none of them 0 or NaN, got {list(gains.shape)} for {features.shape[0]} rows"
            )
        dim = features.shape[1]
        amplitude = _root_power(features).unsqueeze(1)  # [row, 1]
        pairs = functional.pad(features, (0, dim % 2)) / (amplitude * math.sqrt(2)).clamp(min=torch.finfo(features.dtype).tiny)
        symbols = torch.view_as_complex(pairs.reshape(features.shape[0], -1, 2))  # [row, ceil(dim / 2)], mean power 1
        received = add_noise(gains.unsqueeze(1) * symbols, mean_snr, generator=generator)  # y = h x + w
        equalised = torch.view_as_real(received / gains.unsqueeze(1)).flatten(1)[:, :dim]
        return equalised * amplitude * math.sqrt(2)


def _root_power(features: Float[Tensor, "row dim"]) -> Float[Tensor, " row"]:
    """Return sqrt(P); unlike a square root its gradient at a row of zeros is 0, not NaN."""
    norm: Tensor = torch.linalg.vector_norm(features, dim=1)
    return norm / math.sqrt(max(features.shape[1], 1))
