"""The families of the channel: how links fade, how far they carry, and how features cross them.

Signal-to-noise ratios (SNR) are ratios of powers here, never decibels; infinity is a perfect link.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class Fading(ABC):
    """The law of a link's power gain |h|^2, whose mean is 1; constant over one block, a message."""

    @abstractmethod
    def gains(self, shape: Sequence[int], *, generator: torch.Generator) -> Tensor:
        """Draw independent power gains |h|^2.

        Args:
            shape: of the result.
            generator: of the draws; the result lies on its device.

        Returns:
            float32 gains of that shape, at least 0.
        """


class PathLoss(ABC):
    """How much weaker a signal arrives the farther away, on average."""

    @abstractmethod
    def loss_db(self, distance_m: Float[Tensor, "*link"]) -> Float[Tensor, "*link"]:
        """Return the loss in dB at distances in metres (in space, not along the ground, unless the law says otherwise).

        Raises:
            ValueError: when a distance is outside the law's range.
        """


class Transmission(ABC):
    """How a feature vector crosses a link whose SNR is known."""

    @abstractmethod
    def send(
        self, features: Float[Tensor, "row dim"], snr: Float[Tensor, " row"], *, generator: torch.Generator
    ) -> Float[Tensor, "row dim"]:
        """Return what arrives of each row; gradients flow back to the features.

        Args:
            features: rows of numbers.
            snr: of the link that each row crosses, the SNR per symbol during its block: at least 0, infinity for a perfect link.
            generator: of the noise; on the features' device.

        Raises:
            ValueError: when shapes do not fit, or an SNR is negative or NaN.
        """


def check_send(features: Tensor, snr: Tensor) -> None:
    """Check what ``Transmission.send`` is given.

    Raises:
        ValueError: when shapes do not fit, or an SNR is negative or NaN.
    """
    if features.ndim != 2 or snr.shape != features.shape[:1]:
        raise ValueError(f"features [row, dim] and one SNR per row wanted, got {list(features.shape)} and {list(snr.shape)}")
    check_all(snr, snr >= 0, wanted="SNRs of at least 0")


def check_all(values: Tensor, allowed: Tensor, *, wanted: str, unit: str = "") -> None:
    """Check numbers, of which a mask says which ones are allowed.

    Args:
        values: the numbers.
        allowed: of the same shape; false where a number is NaN.
        wanted: what numbers were wanted, in words.
        unit: of the numbers; empty for none.

    Raises:
        ValueError: when one is not allowed; names the first such number and how many more there are.
    """
    if bool(allowed.all()):
        return
    wrong = values[~allowed]
    first = f"{float(wrong[0]):g} {unit}".rstrip()
    more = f" and {wrong.numel() - 1} more" if wrong.numel() > 1 else ""
    raise ValueError(f"{wanted} wanted, got {first}{more}")
