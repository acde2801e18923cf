"""Fading: moments, whole distributions against scipy's, limits in K, outage against closed forms and against draws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nmoe.channel.base import Fading
from nmoe.channel.fading import Awgn, Rayleigh, Rician, rayleigh_outage, rician_outage

FADINGS = [Awgn(), Rayleigh(), Rician(k_factor=0.0), Rician(k_factor=4.0), Rician(k_factor=100.0)]
DRAWS = 200_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rician_law(k_factor: float) -> stats.rv_continuous:
    return stats.ncx2(df=2, nc=2 * k_factor, scale=1 / (2 * (k_factor + 1)))


@pytest.mark.parametrize("fading", FADINGS, ids=repr)
def test_gains_are_float32_of_mean_one_and_follow_the_seed(fading):
    gains = fading.gains((DRAWS,), generator=generator())
    assert gains.dtype == torch.float32
    assert gains.shape == (DRAWS,)
    assert (gains >= 0).all()
    assert float(gains.double().mean()) == pytest.approx(1, abs=4 / math.sqrt(DRAWS))  # no law here has a variance above 1
    assert torch.equal(gains, fading.gains((DRAWS,), generator=generator()))
    assert fading.gains([3, 4, 5], generator=generator()).shape == (3, 4, 5)
    assert fading.gains((), generator=generator()).shape == ()
    assert fading.gains((0, 2), generator=generator()).shape == (0, 2)


def test_rayleigh_gains_are_exponential():
    gains = Rayleigh().gains((DRAWS,), generator=generator()).numpy()
    assert stats.kstest(gains, "expon").pvalue > 0.01
    assert gains.var() == pytest.approx(1, abs=0.03)


def test_no_rayleigh_link_is_lost_for_good():
    """A uniform number of 0 comes once in 17 million draws, here in the first 4 million; an SNR of 0 would make infinite noise."""
    assert float(torch.rand(4_000_000, generator=generator(3)).min()) == 0
    assert float(Rayleigh().gains((4_000_000,), generator=generator(3)).min()) == 2**-25


@pytest.mark.parametrize("k_factor", [0.0, 0.5, 4.0, 50.0])
def test_rician_gains_are_non_central_chi_squared(k_factor):
    gains = Rician(k_factor=k_factor).gains((DRAWS,), generator=generator()).numpy()
    assert stats.kstest(gains, rician_law(k_factor).cdf).pvalue > 0.01
    variance = (1 + 2 * k_factor) / (1 + k_factor) ** 2
    assert gains.var() == pytest.approx(variance, rel=0.03)


def test_rician_without_bound_does_not_fade():
    assert torch.equal(Rician(k_factor=math.inf).gains((1000,), generator=generator()), torch.ones(1000))
    assert float((Rician(k_factor=1e8).gains((1000,), generator=generator()) - 1).abs().max()) < 1e-3


def test_links_and_blocks_are_independent():
    gains = Rayleigh().gains((DRAWS, 2), generator=generator())
    assert abs(float(torch.corrcoef(gains.T)[0, 1])) < 4 / math.sqrt(DRAWS)


@given(st.floats(0.01, 1000), st.floats(0, 1000), st.floats(0, 300))
def test_outage_is_the_distribution_function(mean, threshold, k_factor):
    means, thresholds = torch.tensor([mean], dtype=torch.float64), torch.tensor([threshold], dtype=torch.float64)
    rayleigh = float(rayleigh_outage(means, thresholds))
    assert rayleigh == pytest.approx(1 - math.exp(-threshold / mean), abs=1e-12)
    assert float(rician_outage(means, thresholds, k_factor=0.0)) == pytest.approx(rayleigh, abs=1e-12)
    wanted = rician_law(k_factor).cdf(threshold / mean)
    assert float(rician_outage(means, thresholds, k_factor=k_factor)) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("k_factor", [1e3, 1e5])
def test_outage_of_strong_direct_paths(k_factor):
    thresholds = torch.linspace(0.9, 1.1, 21, dtype=torch.float64)
    found = rician_outage(torch.ones(21, dtype=torch.float64), thresholds, k_factor=k_factor)
    assert found.numpy() == pytest.approx(rician_law(k_factor).cdf(thresholds.numpy()), abs=1e-7)


@pytest.mark.parametrize("k_factor", [0.0, 3.0])
def test_outage_is_what_draws_show(k_factor):
    mean_snr, threshold = torch.tensor([0.5, 2.0, 10.0]), torch.tensor(1.0)
    gains = Rician(k_factor=k_factor).gains((DRAWS, 3), generator=generator())
    seen = (gains * mean_snr < threshold).double().mean(dim=0).numpy()
    wanted = rician_outage(mean_snr, threshold.expand(3), k_factor=k_factor).numpy()
    assert (np.abs(seen - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / DRAWS)).all()


@pytest.mark.parametrize("k_factor", [-1.0, math.nan])
def test_k_out_of_range_is_refused(k_factor):
    with pytest.raises(ValueError, match=f"at least 0, got {k_factor}"):
        Rician(k_factor=k_factor)
    with pytest.raises(ValueError, match=f"at least 0, got {k_factor}"):
        rician_outage(torch.ones(1), torch.ones(1), k_factor=k_factor)


def test_outage_of_bad_ratios_is_refused():
    with pytest.raises(ValueError, match="mean SNRs must be above 0"):
        rayleigh_outage(torch.tensor([1.0, 0.0]), torch.ones(2))
    with pytest.raises(ValueError, match="thresholds must be at least 0"):
        rayleigh_outage(torch.ones(1), torch.tensor([math.nan]))
    with pytest.raises(ValueError, match="finite k_factor"):
        rician_outage(torch.ones(1), torch.ones(1), k_factor=math.inf)


def test_every_class_of_the_family_is_tested_here():
    ours = {kind.__name__ for kind in Fading.__subclasses__() if kind.__module__.startswith("nmoe.")}
    assert ours == {type(one).__name__ for one in FADINGS}
