"""Path loss: how much weaker a signal arrives the farther away.

Sources: H. T. Friis, A note on a simple transmission formula, Proc. IRE 34 (1946); 3GPP TR 38.901, Tables 7.4.1-1 and 7.4.2-1
(urban micro, street canyon); 3GPP TR 36.942, section 4.5.2 (urban macro at 2 GHz, antenna 15 m above the roofs).

| source | here | unit |
|---|---|---|
| d_2D | distance_m | along the ground, for both 3GPP laws |
| d_3D | in_space_m | between the antennas |
| f_c | carrier_hz | Hz (the tables take GHz) |
| h_BS, h_UT | base_height_m, user_height_m | m |
| d'_BP | breakpoint_m | m |
| c | SPEED_OF_LIGHT_M_S | 3e8 m/s, as the tables have it |

Departures: users indoors are not modelled (no building penetration loss). Whether a link has a line of sight is an argument;
``line_of_sight_probability`` says how often. The macro law counts from 35 m on (TR 36.814, section A.2.1.1): nearer than 21 m it would
promise less loss than free space.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from nmoe.channel.base import PathLoss, check_all

SPEED_OF_LIGHT_M_S = 3e8
LOWEST_CARRIER_HZ, HIGHEST_CARRIER_HZ = 0.5e9, 100e9
MICRO_NEAREST_M, MICRO_FARTHEST_M = 10.0, 5000.0
MACRO_NEAREST_M, MACRO_FARTHEST_M = 35.0, 20000.0
ENVIRONMENT_HEIGHT_M = 1.0  # h_E of urban micro


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FreeSpace(PathLoss):
    """Nothing but distance: 20 log10(4 pi d f / c), d in space.

    Attributes:
        carrier_hz: above 0.
    """

    carrier_hz: float

    def __post_init__(self) -> None:
        """Check the carrier.

        Raises:
            ValueError: when it is not above 0 and finite.
        """
        if not 0 < self.carrier_hz < math.inf:
            raise ValueError(f"a carrier above 0 Hz wanted, got {self.carrier_hz} Hz")

    def loss_db(self, distance_m: Float[Tensor, "*link"]) -> Float[Tensor, "*link"]:
        check_all(distance_m, (distance_m > 0) & (distance_m < math.inf), wanted="distances above 0 m", unit="m")
        return 20 * torch.log10(4 * math.pi * self.carrier_hz / SPEED_OF_LIGHT_M_S * distance_m)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UrbanMicro(PathLoss):
    """Base stations below the roofs of a street canyon (UMi), 10 to 5000 m along the ground.

    Attributes:
        carrier_hz: 0.5e9 to 100e9.
        line_of_sight: whether the antennas see each other.
        base_height_m: of the base station's antenna; the table's 10 m.
        user_height_m: of the user's antenna, 1.5 to 22.5.
    """

    carrier_hz: float
    line_of_sight: bool
    base_height_m: float = 10.0
    user_height_m: float = 1.5

    def __post_init__(self) -> None:
        """Check carrier and heights.

        Raises:
            ValueError: when one is outside the table's range.
        """
        if not LOWEST_CARRIER_HZ <= self.carrier_hz <= HIGHEST_CARRIER_HZ:
            raise ValueError(f"a carrier of 0.5e9 to 100e9 Hz wanted, got {self.carrier_hz:g} Hz")
        if not 1.5 <= self.user_height_m <= 22.5:
            raise ValueError(f"a user's height of 1.5 to 22.5 m wanted, got {self.user_height_m} m")
        if not ENVIRONMENT_HEIGHT_M < self.base_height_m < math.inf:
            raise ValueError(f"a base station's height above {ENVIRONMENT_HEIGHT_M:g} m wanted, got {self.base_height_m} m")

    @property
    def breakpoint_m(self) -> float:
        """Distance along the ground from which on the loss grows with its fourth power."""
        heights = (self.base_height_m - ENVIRONMENT_HEIGHT_M) * (self.user_height_m - ENVIRONMENT_HEIGHT_M)
        return 4 * heights * self.carrier_hz / SPEED_OF_LIGHT_M_S  # Table 7.4.1-1, note 1

    def loss_db(self, distance_m: Float[Tensor, "*link"]) -> Float[Tensor, "*link"]:
        _check_distances(distance_m, MICRO_NEAREST_M, MICRO_FARTHEST_M)
        height_m = self.base_height_m - self.user_height_m
        log_distance = torch.log10(torch.hypot(distance_m, torch.full_like(distance_m, height_m)))
        log_ghz = math.log10(self.carrier_hz / 1e9)
        near = 32.4 + 21 * log_distance + 20 * log_ghz  # PL_1
        bend = 9.5 * math.log10(self.breakpoint_m**2 + height_m**2)
        far = 32.4 + 40 * log_distance + 20 * log_ghz - bend  # PL_2
        in_sight = torch.where(distance_m <= self.breakpoint_m, near, far)
        if self.line_of_sight:
            return in_sight
        hidden = 22.4 + 35.3 * log_distance + 21.3 * log_ghz - 0.3 * (self.user_height_m - 1.5)
        return torch.maximum(in_sight, hidden)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UrbanMacro(PathLoss):
    """Base stations above the roofs, about 2 GHz: 128.1 + 37.6 log10(d / km), 35 m to 20 km along the ground."""

    def loss_db(self, distance_m: Float[Tensor, "*link"]) -> Float[Tensor, "*link"]:
        _check_distances(distance_m, MACRO_NEAREST_M, MACRO_FARTHEST_M)
        return 128.1 + 37.6 * torch.log10(distance_m / 1000)


def line_of_sight_probability(distance_m: Float[Tensor, "*link"]) -> Float[Tensor, "*link"]:
    """Return how probable a line of sight is in urban micro (TR 38.901, Table 7.4.2-1).

    Args:
        distance_m: along the ground, at least 0.

    Raises:
        ValueError: when a distance is negative or NaN.
    """
    _check_distances(distance_m, 0.0, math.inf)
    certain = 18 / distance_m.clamp_min(18)
    return certain + torch.exp(-distance_m / 36) * (1 - certain)


def _check_distances(distance_m: Tensor, nearest_m: float, farthest_m: float) -> None:
    within = (distance_m >= nearest_m) & (distance_m <= farthest_m)
    check_all(distance_m, within, wanted=f"distances of {nearest_m:g} to {farthest_m:g} m", unit="m")
