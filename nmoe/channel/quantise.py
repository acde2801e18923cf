"""Quantisation: rows of numbers as whole numbers of b bits, as bits, and back; what rounding costs, as an SNR.

Source: the uniform quantiser of the textbooks (Gersho and Gray, Vector Quantization and Signal Compression, Kluwer 1992, ch. 5).

| textbook | here | meaning |
|---|---|---|
| b | bits | bits per number, 2 to 16 |
| L | 2^(b-1) - 1 | largest code; codes lie in -L..L |
| s = max abs(x) / L | scales | one step per row |
| q = round(x / s) | codes | half to even |

b bits are worth about 6.02 b dB: for x uniform on [-A, A] the error is uniform within a step of s = A / L, so that the SNR is exactly
(A^2 / 3) / (s^2 / 12) = 4 L^2. Real features are peaked, their largest value far from their usual one, and get less: measure them.

Departures: symmetric, one scale per row, rounding and the smallest scale are those of the wire's int8 and int4, so that simulation and wire
give the same numbers (tested). Bits are the code's two's complement, most significant first; -L - 1 is never sent but may arrive.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int16
from torch import Tensor

MIN_BITS = 2
MAX_BITS = 16
_INFO = torch.finfo(torch.float32)


class Quantised(NamedTuple):
    """Rows as codes, and the step of each row."""

    codes: Int16[Tensor, "row dim"]
    scales: Float[Tensor, " row"]


def largest_code(bits: int) -> int:
    """Return L = 2^(b-1) - 1.

    Raises:
        ValueError: when ``bits`` is outside 2 to 16.
    """
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"a quantiser of {MIN_BITS} to {MAX_BITS} bits wanted, got {bits}")
    return int(2 ** (bits - 1)) - 1


def quantise(features: Float[Tensor, "row dim"], *, bits: int) -> Quantised:
    """Round every row to its own grid.

    Args:
        features: rows of at least one finite number.
        bits: per number, 2 to 16.

    Returns:
        codes in -L..L, and float32 scales, 0 for a row of zeros; neither carries gradients.

    Raises:
        ValueError: when ``bits`` is out of range, a row is empty, or a number is not finite or too large for its scale's products.
    """
    largest = largest_code(bits)
    if features.shape[1] == 0:
        raise ValueError("rows of at least one number wanted, got none")
    features = features.detach().float()
    peaks = features.abs().amax(dim=1)  # [row], NaN where any is
    divisors = (peaks / largest).clamp(min=_INFO.tiny)
    max_scale = _INFO.max / (largest + 1)
    if not bool((divisors <= max_scale).all()):  # false for NaN as well
        raise ValueError(f"numbers to quantise must be finite and within +-{max_scale * largest:.3g}")
    codes = torch.round(features / divisors.unsqueeze(1)).to(torch.int16)
    return Quantised(codes=codes, scales=torch.where(peaks == 0, 0.0, divisors))


def dequantise(codes: Int16[Tensor, "row dim"], scales: Float[Tensor, " row"]) -> Float[Tensor, "row dim"]:
    """Return the numbers behind the codes."""
    return codes * scales.unsqueeze(1)


def to_bits(codes: Int16[Tensor, "row dim"], *, bits: int) -> Bool[Tensor, "row bit"]:
    """Return each code's two's complement, most significant bit first, code after code.

    Args:
        codes: whole numbers that fit.
        bits: b, per code.

    Returns:
        [row, dim * b].
    """
    places = [(codes & (1 << place if place < MAX_BITS - 1 else -(1 << place))) != 0 for place in reversed(range(bits))]
    return torch.stack(places, dim=2).flatten(1)


def from_bits(arrived: Bool[Tensor, "row bit"], *, bits: int) -> Int16[Tensor, "row dim"]:
    """Return the codes of bits, the inverse of ``to_bits``.

    Raises:
        ValueError: when a row's bits are not a multiple of ``bits``.
    """
    if arrived.shape[1] % bits:
        raise ValueError(f"a multiple of {bits} bits per row wanted, got {arrived.shape[1]}")
    places = arrived.to(torch.int16).reshape(arrived.shape[0], arrived.shape[1] // bits, bits).unbind(dim=2)
    codes = -places[0]  # two's complement: the first place weighs -2^(b-1)
    for place in places[1:]:
        codes = 2 * codes + place
    return codes


def straight_through(arrived: Float[Tensor, "row dim"], features: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
    """Return ``arrived``, exactly, with the gradient of ``features``: as if every step in between were the identity."""
    return arrived + (features - features.detach())


def distortion_snr(features: Float[Tensor, "row dim"], *, bits: int) -> float:
    """Measure the SNR that rounding leaves of given features.

    Args:
        features: rows of finite numbers, not all 0.
        bits: per number, 2 to 16.

    Returns:
        signal power over error power, over all rows together; infinity where nothing is lost.

    Raises:
        ValueError: as ``quantise``, and when all features are 0.
    """
    features = features.detach().float()
    signal = float(features.double().square().sum())
    if signal == 0:
        raise ValueError("features to measure must not all be 0")
    error = float((features.double() - dequantise(*quantise(features, bits=bits)).double()).square().sum())
    return signal / error if error > 0 else float("inf")


def uniform_distortion_snr(bits: int) -> float:
    """Return the SNR that rounding leaves of numbers uniform on [-A, A] at full scale: 4 L^2.

    Raises:
        ValueError: when ``bits`` is outside 2 to 16.
    """
    return 4.0 * largest_code(bits) ** 2
