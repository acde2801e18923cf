"""Units: decibels at the edge, ratios inside."""

import math
from typing import overload

import torch
from torch import Tensor

LOWEST_GATE_SNR_DB, HIGHEST_GATE_SNR_DB = (
    -20.0,
    40.0,
)  # range of SNRs that gates tell apart; beyond it a link is as bad, or good, as it gets


@overload
def from_db(value_db: float) -> float: ...
@overload
def from_db(value_db: Tensor) -> Tensor: ...
def from_db(value_db: float | Tensor) -> float | Tensor:
    """Return the ratio 10^(dB / 10) of powers; of infinity infinity."""
    if isinstance(value_db, Tensor):
        return torch.pow(10.0, value_db / 10)
    return math.inf if value_db == math.inf else 10.0 ** (value_db / 10)


@overload
def to_db(ratio: float) -> float: ...
@overload
def to_db(ratio: Tensor) -> Tensor: ...
def to_db(ratio: float | Tensor) -> float | Tensor:
    """Return 10 log10 of a ratio of powers in dB; of 0 minus infinity.

    Raises:
        ValueError: when a plain number is negative; a negative number in a tensor becomes NaN.
    """
    if isinstance(ratio, Tensor):
        return 10 * torch.log10(ratio)
    if ratio < 0:
        raise ValueError(f"a ratio of powers must not be negative, got {ratio}")
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf
