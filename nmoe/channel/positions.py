"""Positions: tables of latitudes and longitudes, and the same places in metres on a plane.

Source: J. P. Snyder, Map Projections, USGS Professional Paper 1395 (1987) (equirectangular projection).

Departures: the earth is a sphere of its mean radius. Up to 0.1 degrees (11 km) from the origin a distance is right within 0.2 % of the
great circle's.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from nmoe.core.errors import BadFile
from nmoe.core.table import read_table

EARTH_RADIUS_M = 6_371_008.8
LATITUDES, LONGITUDES = ("latitude", "lat"), ("longitude", "lon", "lng")
FARTHEST_DEG = 10.0  # from the origin; beyond it a plane is no map


def read_positions(path: Path) -> Float64[np.ndarray, "place 2"]:
    """Read a table of places.

    Args:
        path: a ``.csv`` or ``.csv.gz`` file with columns latitude or lat and longitude, lon or lng, in small or capital letters; others are
            ignored.

    Returns:
        Latitude and longitude of every place, in degrees.

    Raises:
        BadFile: when the file cannot be read, lacks a column, or a field is not a latitude or longitude.
    """
    table = read_table(path)
    latitude, longitude = table.first_of(LATITUDES), table.first_of(LONGITUDES)
    if latitude is None or longitude is None:
        raise BadFile(f"{path} should have columns latitude and longitude, its columns are: {', '.join(table.columns)}")
    return np.stack(
        [
            table.numbers(latitude, low=-90.0, high=90.0, missing=False),
            table.numbers(longitude, low=-180.0, high=180.0, missing=False),
        ],
        axis=1,
    )


def local_metres(degrees: Float64[np.ndarray, "place 2"], *, origin_deg: tuple[float, float]) -> Float[Tensor, "place 2"]:
    """Return places on a plane, metres east and north of an origin.

    Args:
        degrees: latitude and longitude of every place.
        origin_deg: latitude and longitude of the point that becomes (0, 0); the same for all tables that are used together.

    Returns:
        float64 coordinates.

    Raises:
        ValueError: when a place is more than 10 degrees of latitude or longitude from the origin, or NaN.
    """
    offsets = degrees - np.array(origin_deg)
    offsets[:, 1] -= 360.0 * np.floor((offsets[:, 1] + 180.0) / 360.0)  # within [-180, 180): the short way round, over the date line too
    if not (np.abs(offsets) <= FARTHEST_DEG).all():
        raise ValueError(f"places within {FARTHEST_DEG:g} degrees of the origin {origin_deg} wanted, got some farther off")
    north_m = EARTH_RADIUS_M * np.radians(offsets[:, 0])
    east_m = EARTH_RADIUS_M * np.cos(np.radians(origin_deg[0])) * np.radians(offsets[:, 1])
    return torch.from_numpy(np.stack([east_m, north_m], axis=1))
