"""Formats: how rows of numbers travel. float32 as they are, float16, or int8 with one float32 scale per row.

Per row x the scale is s = max|x| / 127 and x travels as round(x / s), half to even; so |x - s round(x / s)| <= s / 2, up to float32's own
rounding. A row of zeros has scale 0.

Departures: a row whose s would be below float32's smallest normal number takes that number, so that the law holds there too. float16
saturates at its largest number, 65504. Replies may hold NaN and infinity, which whoever asked has to see: float16 has them, and in int8 the
whole row becomes NaN, by a scale of NaN. Numbers beyond +-3.37e38 count as infinite in int8, so that no scale's products are.
"""

from enum import StrEnum

import numpy as np
from jaxtyping import Float16, Float32, Int8
from torch.utils.dlpack import from_dlpack

_INFO = np.finfo(np.float32)
LARGEST_CODE = 127
MIN_SCALE = np.float32(_INFO.tiny)
MAX_SCALE = np.float32(_INFO.max / 128)
MAX_HALF = 65504.0


class TensorFormat(StrEnum):
    """How a tensor of features or outputs travels."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"


def quantise(rows: Float32[np.ndarray, "rows dim"], *, strict: bool) -> tuple[Int8[np.ndarray, "rows dim"], Float32[np.ndarray, " rows"]]:
    """Return rows as int8 and their scales.

    Args:
        rows: with at least one number each.
        strict: refuse what is not finite, instead of making its row NaN.

    Raises:
        ValueError: when a number is not finite and ``strict``.
    """
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))  # [rows], NaN where any is
    scales: np.ndarray = largest / np.float32(LARGEST_CODE)
    divisors = np.maximum(scales, MIN_SCALE)
    if not (divisors <= MAX_SCALE).all():  # false for NaN as well
        if strict:
            raise ValueError("numbers that travel as int8 must be finite and within +-3.37e38")
        bad = ~(divisors <= MAX_SCALE)
        rows = np.where(bad[:, None], np.float32(0), rows)
        divisors = np.where(bad, np.float32(1), divisors)
        largest = np.where(bad, np.float32(np.nan), largest)
    codes = rows / divisors[:, None]  # [rows, dim]
    np.rint(codes, out=codes)
    scales = np.where(largest == 0, np.float32(0), np.where(np.isnan(largest), largest, divisors))
    return codes.astype(np.int8), scales


def dequantise(codes: Int8[np.ndarray, "rows dim"], scales: Float32[np.ndarray, " rows"]) -> Float32[np.ndarray, "rows dim"]:
    """Return the numbers behind int8 codes; scales up to ``MAX_SCALE``, or NaN."""
    rows = codes.astype(np.float32)
    rows *= scales[:, None]
    return rows


def to_half(rows: Float32[np.ndarray, "rows dim"], *, strict: bool) -> Float16[np.ndarray, "rows dim"]:
    """Return rows as float16, finite ones beyond its range as +-65504.

    Args:
        rows: numbers.
        strict: refuse what is not finite.

    Raises:
        ValueError: when a number is not finite and ``strict``.
    """
    if not (rows.min() >= -MAX_HALF and rows.max() <= MAX_HALF):  # NaN comes here as well
        if np.isfinite(rows).all():
            rows = rows.clip(-MAX_HALF, MAX_HALF)
        elif strict:
            raise ValueError("numbers that travel as float16 must be finite")
    half: np.ndarray = from_dlpack(rows).half().numpy()  # 25 times as fast as numpy's own conversion; numpy's rounding
    return half


def from_half(rows: Float16[np.ndarray, "rows dim"]) -> Float32[np.ndarray, "rows dim"]:
    """Return float16 rows as float32, exactly."""
    whole: np.ndarray = from_dlpack(rows).float().numpy()  # from_numpy would warn of read-only memory
    return whole
