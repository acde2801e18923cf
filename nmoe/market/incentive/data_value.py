"""Data value: what effective samples are worth to the publisher, g; every class rises and is strictly concave, with g(0) = 0, g'(0) = 1.

Source: ln(1 + X) is this project's reconstruction of the game's publisher (the paper's formula is not known to us); the others are options.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from nmoe.market.incentive.base import DataValue


@dataclass(frozen=True, slots=True, kw_only=True)
class LogValue(DataValue):
    """ln(1 + X)."""

    def value(self, total: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
        return np.asarray(np.log1p(total))

    def slope(self, total: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
        return np.asarray(1 / (1 + total))

    def total_at(self, slope: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
        return np.asarray(np.maximum(1 / slope - 1, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerValue(DataValue):
    """((1 + X)^a - 1) / a: grows faster than the logarithm, which it is in the limit of a = 0.

    Attributes:
        exponent: a, above 0 and below 1.
    """

    exponent: float

    def __post_init__(self) -> None:
        """Check the exponent.

        Raises:
            ValueError: when it is out of range.
        """
        if not 0 < self.exponent < 1:
            raise ValueError(f"exponent must be above 0 and below 1, got {self.exponent}")

    def value(self, total: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
        return np.asarray(np.expm1(self.exponent * np.log1p(total)) / self.exponent)

    def slope(self, total: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
        return np.asarray((1 + total) ** (self.exponent - 1))

    def total_at(self, slope: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
        return np.asarray(np.maximum(slope ** (1 / (self.exponent - 1)) - 1, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class SaturatingValue(DataValue):
    """b (1 - exp(-X / b)): no more than b, however much is trained.

    Attributes:
        limit: b, in effective samples, finite and above 0.
    """

    limit: float

    def __post_init__(self) -> None:
        """Check the limit.

        Raises:
            ValueError: when it is out of range.
        """
        if not 0 < self.limit < float("inf"):
            raise ValueError(f"limit must be finite and above 0, got {self.limit}")

    def value(self, total: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
        return np.asarray(-self.limit * np.expm1(-total / self.limit))

    def slope(self, total: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
        return np.asarray(np.exp(-total / self.limit))

    def total_at(self, slope: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
        return np.asarray(np.maximum(-self.limit * np.log(slope), 0.0))
