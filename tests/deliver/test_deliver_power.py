"""Power: shares and rates are each other's inverses under both laws, down to bad links."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe.deliver.power import rate_of_share, share_of_rate

BAND_HZ = 1e8


def links(efficiency: float, *, fixed: bool) -> dict:
    return {"bandwidth_hz": BAND_HZ, "spectral_efficiency": np.array([efficiency]), "fixed_power": np.array([fixed])}


@given(share=st.floats(1e-6, 1), efficiency=st.floats(1e-4, 15), fixed=st.booleans())
def test_share_of_the_rate_of_a_share_is_that_share(share, efficiency, fixed):
    rate = rate_of_share(np.array([share]), **links(efficiency, fixed=fixed))
    again = share_of_rate(rate, **links(efficiency, fixed=fixed))
    # Where a bad link's rate hardly depends on its share, the share is known only as well as that allows.
    np.testing.assert_allclose(rate_of_share(again, **links(efficiency, fixed=fixed)), rate, rtol=1e-12)
    if not fixed or efficiency > 0.1:
        snr = 2**efficiency - 1
        assert again.item() == pytest.approx(share, rel=1e-9 if not fixed or snr / share < 1e6 else 1e-6)


def test_whole_band_has_the_same_rate_under_both_laws():
    rates = [rate_of_share(np.array([1.0]), **links(3.0, fixed=fixed)).item() for fixed in (False, True)]
    assert rates == pytest.approx([3 * BAND_HZ / 8] * 2)


def test_worked_example_of_fixed_power():
    share = share_of_rate(np.array([0.2 * np.log2(1 + 3 / 0.2) * BAND_HZ / 8]), **links(2.0, fixed=True))  # SNR 3 over all, 15 in a fifth
    assert share.item() == pytest.approx(0.2)


def test_fixed_power_needs_less_than_its_power_per_hz():
    rate = np.array([1e6])
    assert share_of_rate(rate, **links(3.0, fixed=True)).item() < share_of_rate(rate, **links(3.0, fixed=False)).item()


def test_no_share_is_enough_beyond_the_power_limit():
    limit = 3 * BAND_HZ / np.log(2) / 8  # SNR 3 over all of the band, an endless share
    found = [share_of_rate(np.array([factor * limit]), **links(2.0, fixed=True)).item() for factor in (0.999, 1.0, 1.001)]
    assert 1 < found[0] < np.inf
    assert found[1:] == [np.inf, np.inf]


def test_infinite_rates_need_infinite_shares():
    for fixed in (False, True):
        assert share_of_rate(np.array([np.inf]), **links(2.0, fixed=fixed)).item() == np.inf


@pytest.mark.parametrize("efficiency", [100.0, 30.0, 1.0, 1e-2, 1e-4, 1e-6, 1e-9])
@pytest.mark.parametrize("share", [1e-9, 1e-6, 1e-3, 0.1, 0.5, 1.0, 10.0])
def test_shares_at_fixed_power_are_known_as_well_as_the_link_allows(efficiency, share):
    again = share_of_rate(rate_of_share(np.array([share]), **links(efficiency, fixed=True)), **links(efficiency, fixed=True)).item()
    ratio = math.expm1(efficiency * math.log(2)) / share
    sensitivity = 1 / (1 - ratio / (1 + ratio) / math.log1p(ratio)) if ratio > 1e-6 else 2 / ratio  # of the share to the rate, relative
    if sensitivity < 1e13:
        assert again == pytest.approx(share, rel=1e-15 * sensitivity + 1e-13)
