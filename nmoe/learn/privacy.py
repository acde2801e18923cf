"""Differential privacy of shared correlation matrices: the Gaussian mechanism, calibrated and composed by dp-accounting.

Source: FedSC's public code (Jing et al., ICML 2024): R~_j = R_j + s N(0,1)^{d x d}, independent entries.

Sensitivity (derived in the project's spec, tested): every image adds (1/n) times an average of matrices z z^T with trace at most mu, so
replacing one image of n moves R by at most sqrt(2) mu / n in Frobenius norm. T releases of one node compose to a Gaussian mechanism with
noise multiplier z / sqrt(T), where z = s / sensitivity; the accountant (privacy loss distributions) does the arithmetic.

Departures: the source's noise constant is fixed by hand for one data set; here it is calibrated to (epsilon, delta), per node, by its own
number of images. The loss only sees the symmetric part of a matrix, so that alone is sent (post-processing: costs no privacy). What is
private: the matrices only. Model weights are averaged without noise, as in the source.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianMechanism:
    """Add independent Gaussian noise to every entry.

    Attributes:
        sigma: standard deviation of the noise, above 0.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and math.isfinite(self.sigma)):
            raise ValueError(f"sigma of the Gaussian mechanism must be above 0 and finite, got {self.sigma}")

    def release(self, matrix: Float[Tensor, "row column"], *, generator: torch.Generator) -> Float[Tensor, "row column"]:
        """Return the matrix with noise; entries independent, not symmetrised."""
        return matrix + self.sigma * torch.randn(matrix.shape, generator=generator, dtype=matrix.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyBudget:
    """What may be spent over all releases of a run.

    Attributes:
        epsilon: above 0.
        delta: in (0, 1).
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not (self.epsilon > 0 and math.isfinite(self.epsilon)):
            raise ValueError(f"dp epsilon must be above 0 and finite, got {self.epsilon}")
        _check_delta(self.delta)

    def noise_multiplier(self, releases: int) -> float:
        """Return the smallest noise multiplier (sigma over sensitivity) that keeps ``releases`` releases within the budget.

        Raises:
            ValueError: when ``releases`` is below 1.
        """
        import dp_accounting

        if releases < 1:
            raise ValueError(f"releases must be at least 1, got {releases}")
        found = dp_accounting.calibrate_dp_mechanism(
            _accountant, lambda multiplier: _event(float(multiplier), releases), self.epsilon, self.delta
        )
        return float(found)


def correlation_sensitivity(num_images: int, *, mu: float) -> float:
    """Return the Frobenius distance that replacing one of ``num_images`` images can move a correlation matrix: sqrt(2) mu / n."""
    if num_images < 1 or not mu > 0:
        raise ValueError(f"num_images must be at least 1 and mu above 0, got {num_images} and {mu}")
    return math.sqrt(2) * mu / num_images


def spent_epsilon(noise_multiplier: float, *, releases: int, delta: float) -> float:
    """Return the epsilon that ``releases`` Gaussian releases spend at ``delta``.

    Args:
        noise_multiplier: sigma over sensitivity, above 0.
        releases: number of releases by one node, at least 0.
        delta: in (0, 1).

    Raises:
        ValueError: when an argument is out of range.
    """
    if not noise_multiplier > 0:
        raise ValueError(f"noise_multiplier must be above 0, got {noise_multiplier}")
    if releases < 0:
        raise ValueError(f"releases must be at least 0, got {releases}")
    _check_delta(delta)
    if releases == 0:
        return 0.0
    accountant = _accountant()
    accountant.compose(_event(noise_multiplier, releases))
    return float(accountant.get_epsilon(delta))


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"dp delta must be between 0 and 1, got {delta}")


def _accountant() -> Any:
    from dp_accounting import pld

    return pld.PLDAccountant()


def _event(noise_multiplier: float, releases: int) -> Any:
    import dp_accounting

    return dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(noise_multiplier), releases)
