"""Shadowing: normal, correlated over distance as Gudmundson's law says, independent over sites."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nmoe.channel.shadowing import Shadowing

DRAWS = 40_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_correlation_falls_exponentially_with_distance():
    """Sites are independent draws, so each column is one draw of the field over all places."""
    places_m = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 10.0], [30.0, 40.0]])
    drawn_db = Shadowing(sigma_db=6.0, correlation_m=20.0).draw_db(places_m, num_sites=DRAWS, generator=generator())
    assert drawn_db.dtype == torch.float32
    covariance = torch.cov(drawn_db.double())
    for one in range(4):
        for other in range(4):
            distance_m = float((places_m[one] - places_m[other]).norm())
            assert float(covariance[one, other]) / 36 == pytest.approx(math.exp(-distance_m / 20), abs=4 * math.sqrt(2 / DRAWS))


@pytest.mark.parametrize("correlation_m", [0.0, 50.0])
def test_each_place_is_normal_with_the_sigma(correlation_m):
    places_m = torch.rand(3, 2, generator=generator(1)) * 100
    drawn_db = Shadowing(sigma_db=7.82, correlation_m=correlation_m).draw_db(places_m, num_sites=DRAWS, generator=generator())
    for row in drawn_db:
        assert stats.kstest(row.numpy() / 7.82, "norm").pvalue > 0.01


def test_sites_are_independent():
    places_m = torch.arange(DRAWS / 20).unsqueeze(1) * 1000  # far apart: each place is one draw
    drawn_db = Shadowing(sigma_db=8.0, correlation_m=10.0).draw_db(places_m, num_sites=2, generator=generator())
    assert abs(float(torch.corrcoef(drawn_db.T)[0, 1])) < 4 / math.sqrt(len(places_m))


def test_places_in_one_spot_are_shadowed_alike():
    places_m = torch.tensor([[1.0, 2.0], [1.0, 2.0], [500.0, 2.0], [1.0, 2.0]])
    drawn_db = Shadowing(sigma_db=10.0, correlation_m=50.0).draw_db(places_m, num_sites=100, generator=generator())
    assert float((drawn_db[0] - drawn_db[1]).abs().max()) < 0.01
    assert float((drawn_db[0] - drawn_db[3]).abs().max()) < 0.01
    assert float((drawn_db[0] - drawn_db[2]).abs().max()) > 1


@given(st.integers(0, 30), st.integers(0, 4), st.sampled_from([0.0, 15.0]), st.integers(0, 5))
def test_same_seed_same_field(places, sites, correlation_m, seed):
    places_m = 100 * torch.rand(places, 2, generator=generator(seed))
    law = Shadowing(sigma_db=4.0, correlation_m=correlation_m)
    drawn_db = law.draw_db(places_m, num_sites=sites, generator=generator(seed))
    assert drawn_db.shape == (places, sites)
    assert torch.equal(drawn_db, law.draw_db(places_m, num_sites=sites, generator=generator(seed)))


def test_no_sigma_no_shadow():
    assert not Shadowing(sigma_db=0.0, correlation_m=10.0).draw_db(torch.rand(5, 2), num_sites=3, generator=generator()).any()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sigma_db": -1.0, "correlation_m": 0.0}, "got -1.0 dB"),
        ({"sigma_db": math.nan, "correlation_m": 0.0}, "got nan dB"),
        ({"sigma_db": 1.0, "correlation_m": -3.0}, "got -3.0 m"),
        ({"sigma_db": 1.0, "correlation_m": math.inf}, "got inf m"),
    ],
)
def test_bad_fields_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Shadowing(**fields)


def test_bad_places_are_refused():
    law = Shadowing(sigma_db=4.0, correlation_m=10.0)
    with pytest.raises(ValueError, match="finite coordinates"):
        law.draw_db(torch.tensor([[0.0, math.nan]]), num_sites=1, generator=generator())
    with pytest.raises(ValueError, match="at least 0, got -1"):
        law.draw_db(torch.zeros(1, 2), num_sites=-1, generator=generator())
