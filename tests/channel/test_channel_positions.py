"""Positions: tables under any of the usual column names, and distances on the plane against great circles."""

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe.channel.positions import EARTH_RADIUS_M, local_metres, read_positions
from nmoe.core.errors import BadFile

MELBOURNE_DEG = (-37.8136, 144.9631)


def great_circle_m(one: np.ndarray, other: np.ndarray) -> float:
    """Haversine."""
    (lat1, lon1), (lat2, lon2) = np.radians(one), np.radians(other)
    chord = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * EARTH_RADIUS_M * math.asin(math.sqrt(chord))


@pytest.mark.parametrize("header", ["LATITUDE,LONGITUDE", "lat,lon", "Lat, Lng"])
def test_usual_columns_are_understood(header, tmp_path):
    path = tmp_path / "places.csv"
    path.write_text(f"{header}\n-37.8,144.9\n\n-37.9, 145.0\n")
    assert read_positions(path).tolist() == [[-37.8, 144.9], [-37.9, 145.0]]


def test_other_columns_and_compression(tmp_path):
    path = tmp_path / "places.csv.gz"
    path.write_bytes(gzip.compress('site,Longitude,Latitude,name\n1,2.5,50,"a, b"\n'.encode("utf-8-sig")))
    assert read_positions(path).tolist() == [[50.0, 2.5]]


@given(*[st.floats(-0.1, 0.1)] * 4)
def test_distances_over_a_city_are_those_of_the_globe(north1, east1, north2, east2):
    places = np.array(MELBOURNE_DEG) + np.array([[north1, east1], [north2, east2]])
    plane = local_metres(places, origin_deg=MELBOURNE_DEG)
    distance_m = float((plane[0] - plane[1]).norm())
    assert distance_m == pytest.approx(great_circle_m(*places), rel=2e-3, abs=1e-3)


def test_the_plane_by_hand():
    """A degree of latitude is 111.195 km on the sphere, one of longitude that times the cosine of the latitude."""
    plane = local_metres(np.array([[61.0, 10.0], [60.0, 11.0], [60.0, 10.0]]), origin_deg=(60.0, 10.0))
    assert plane.flatten().tolist() == pytest.approx([0, 111_195.08, 55_597.54, 0, 0, 0], abs=0.01)


@pytest.mark.parametrize(("origin", "place"), [(179.9, -179.9), (-179.9, 179.9), (180.0, -180.0), (-180.0, 180.0)])
def test_neighbours_over_the_date_line_are_near(origin, place):
    """Fiji: 0.2 degrees of longitude the short way round, or none."""
    plane = local_metres(np.array([[-17.0, place], [-17.0, origin]]), origin_deg=(-17.0, origin))
    east_deg = place - origin + (360 if place < origin else -360)
    wanted_m = EARTH_RADIUS_M * math.radians(east_deg) * math.cos(math.radians(17.0))
    assert plane.flatten().tolist() == pytest.approx([wanted_m, 0, 0, 0], abs=1e-3)


def test_places_too_far_for_a_plane_are_refused():
    with pytest.raises(ValueError, match="within 10 degrees"):
        local_metres(np.array([[0.0, 0.0]]), origin_deg=MELBOURNE_DEG)
    with pytest.raises(ValueError, match="within 10 degrees"):
        local_metres(np.array([[math.nan, 0.0]]), origin_deg=(0.0, 0.0))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x,y\n1,2\n", "should have columns latitude and longitude, its columns are: x, y"),
        ("lat,lon\n91,0\n", "line 2: lat should be a number in -90..90, it is '91'"),
        ("lat,lon\n1,0\n1,\n", "line 3: lon should be a number in -180..180, it is ''"),
    ],
)
def test_bad_tables_are_refused(text, said, tmp_path):
    path: Path = tmp_path / "places.csv"
    path.write_text(text)
    with pytest.raises(BadFile) as caught:
        read_positions(path)
    assert said in str(caught.value)
