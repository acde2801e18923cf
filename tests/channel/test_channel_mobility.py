"""Mobility: autocorrelation against J_0, the law at any one time, and limits of speed."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from nmoe.channel.mobility import Moving, doppler_hz, jakes_correlation

LINKS = 20_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moving(step: float = 0.05, speed_m_s: float = 30.0) -> Moving:
    """Return a link whose f_D times block is ``step``: 30 m/s at 3 GHz is 300 Hz."""
    return Moving(speed_m_s=speed_m_s, carrier_hz=3e9, block_s=step / 300)


def test_doppler_by_hand():
    assert doppler_hz(30.0, carrier_hz=3e9) == pytest.approx(300)


def test_correlation_is_bessels_function():
    lags_s = torch.linspace(-0.02, 0.02, 101, dtype=torch.float64)
    wanted = special.j0(2 * np.pi * 300 * lags_s.numpy())
    assert jakes_correlation(lags_s, doppler_hz=300.0).numpy() == pytest.approx(wanted, abs=1e-6)
    assert float(jakes_correlation(torch.tensor(2.404825557695773 / (2 * math.pi * 300)), doppler_hz=300.0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("step", [0.01, 0.05, 0.3, 1.7])
def test_complex_gains_have_the_autocorrelation(step):
    blocks = 24
    drawn = moving(step).coefficients(blocks, LINKS, generator=generator()).to(torch.complex128)
    seen = (drawn[0].conj() * drawn).mean(dim=1)
    wanted = special.j0(2 * np.pi * step * np.arange(blocks))
    assert seen.real.numpy() == pytest.approx(wanted, abs=5 / math.sqrt(LINKS))
    assert seen.imag.numpy() == pytest.approx(0, abs=5 / math.sqrt(LINKS))


def test_it_is_stationary():
    drawn = moving().coefficients(12, LINKS, generator=generator(3)).to(torch.complex128)
    for start in (0, 5, 9):
        seen = (drawn[start].conj() * drawn[start + 2]).mean()
        assert float(seen.real) == pytest.approx(special.j0(2 * math.pi * 0.1), abs=5 / math.sqrt(LINKS))


@pytest.mark.parametrize("step", [0.0005, 0.02, 1.2])
def test_the_covariance_is_exact(step):
    """Not in the mean over draws: gains are a linear map of independent amplitudes, whose rows' products are the covariance."""
    blocks = 300
    waves = moving(step)._num_waves(blocks)
    rows = torch.cat(list(moving(step)._responses(blocks, waves, torch.device("cpu")))).to(torch.complex128)
    lags = np.abs(np.subtract.outer(np.arange(blocks), np.arange(blocks)))
    covariance = (rows @ rows.conj().T).numpy() / waves
    assert covariance.real == pytest.approx(special.j0(2 * np.pi * step * lags), abs=1e-7)  # the rows are float32
    assert covariance.imag == pytest.approx(0, abs=1e-7)


def test_power_gains_are_exponential_at_any_time_and_correlated_by_the_square():
    gains = moving().gains(8, 5 * LINKS, generator=generator())
    assert gains.dtype == torch.float32
    assert gains.shape == (8, 5 * LINKS)
    for block in (0, 7):
        assert stats.kstest(gains[block].numpy(), "expon").pvalue > 0.01
    seen = np.corrcoef(gains.numpy())[0]
    assert seen == pytest.approx(special.j0(2 * np.pi * 0.05 * np.arange(8)) ** 2, abs=6 / math.sqrt(LINKS))


def test_power_gains_are_those_of_the_coefficients():
    drawn = moving().coefficients(5, 7, generator=generator(2))
    torch.testing.assert_close(moving().gains(5, 7, generator=generator(2)), drawn.abs().square())


def test_links_are_independent():
    drawn = moving(1.7).gains(2000, 2, generator=generator())
    assert abs(float(torch.corrcoef(drawn.T)[0, 1])) < 0.15


def test_who_stands_still_keeps_their_gain():
    gains = moving(speed_m_s=0.0).gains(50, 100, generator=generator())
    assert float((gains / gains[0] - 1).abs().max()) < 0.05
    assert float((gains[0].log()).std()) > 0.5


def test_long_series_are_drawn_in_parts_and_longer_ones_refused():
    series = moving(1.2).gains(4000, 2, generator=generator())  # 15,000 plane waves
    assert torch.isfinite(series).all()
    assert float(series.mean()) == pytest.approx(1, abs=0.1)
    with pytest.raises(ValueError, match=r"at most 50000 plane waves wanted, 40000 blocks .* take 15"):
        moving(1.2).gains(40_000, 2, generator=generator())


@pytest.mark.parametrize(("blocks", "links"), [(0, 1), (1, -1)])
def test_bad_lengths_are_refused(blocks, links):
    with pytest.raises(ValueError, match=f"got {blocks} and {links}"):
        moving().gains(blocks, links, generator=generator())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Moving(speed_m_s=-1.0, carrier_hz=1e9, block_s=1.0), "got -1.0 m/s"),
        (lambda: Moving(speed_m_s=math.nan, carrier_hz=1e9, block_s=1.0), "got nan m/s"),
        (lambda: Moving(speed_m_s=1.0, carrier_hz=0.0, block_s=1.0), "got 0.0 Hz"),
        (lambda: Moving(speed_m_s=1.0, carrier_hz=1e9, block_s=0.0), "got 0.0 s"),
        (lambda: jakes_correlation(torch.tensor(1.0), doppler_hz=-1.0), "got -1.0 Hz"),
    ],
)
def test_bad_fields_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
