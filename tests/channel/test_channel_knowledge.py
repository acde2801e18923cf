"""Knowledge: no error tells the truth, all error tells nothing, laws and correlations between."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from scipy import special, stats

from nmoe.channel.fading import Rayleigh
from nmoe.channel.knowledge import Blurred, Estimated, Exact, Knowledge, Reported
from nmoe.channel.mobility import Moving
from nmoe.channel.rate import cqi_of_snr
from nmoe.core.units import from_db, to_db

DRAWS = 100_000
ALL = [Exact(), Estimated(error=0.0), Estimated(error=0.3), Estimated(error=1.0), Blurred(sigma_db=2.0), Reported()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def faded(mean_db: float = 10.0) -> tuple[torch.Tensor, torch.Tensor]:
    means = torch.full((DRAWS, 1), from_db(mean_db))
    return means * Rayleigh().gains(means.shape, generator=generator(1)), means


@pytest.mark.parametrize(
    "knowledge", [Exact(), Estimated(error=0.0), Blurred(sigma_db=0.0), Estimated.outdated(delay_s=0.0, doppler_hz=50.0)]
)
def test_no_error_tells_the_truth(knowledge):
    snr, means = faded()
    assert torch.equal(knowledge.tell(snr, means, generator=generator()), snr)


@pytest.mark.parametrize("knowledge", ALL, ids=repr)
def test_perfect_links_are_told_as_such_and_seeds_repeat(knowledge):
    snr = torch.tensor([[1.0, math.inf, 0.0], [math.inf, 5.0, 1e-8]])
    means = torch.tensor([[2.0, math.inf, 1.0], [3.0, 4.0, 1e4]])
    told = knowledge.tell(snr, means, generator=generator())
    assert told.shape == snr.shape
    assert torch.equal(torch.isinf(told), torch.isinf(snr))
    assert (told >= 0).all()
    assert torch.equal(told, knowledge.tell(snr, means, generator=generator()))


@pytest.mark.parametrize("error", [0.1, 0.5, 1.0])
def test_estimates_have_the_true_law_and_the_right_correlation(error):
    """Power gains of complex Gaussians whose correlation squared is 1 - e are correlated by 1 - e."""
    snr, means = faded()
    told = Estimated(error=error).tell(snr, means, generator=generator())
    assert stats.kstest((told / means).flatten().numpy(), "expon").pvalue > 0.01
    seen = float(torch.corrcoef(torch.cat([snr, told], dim=1).T.double())[0, 1])
    assert seen == pytest.approx(1 - error, abs=5 / math.sqrt(DRAWS))


def test_an_estimate_is_that_of_the_complex_gain():
    """By hand: h_hat = sqrt(1 - e) h + sqrt(e) n with h of any phase, so its mean power given h is (1 - e) gamma + e gamma_bar."""
    snr, means = torch.full((DRAWS, 1), 6.0), torch.full((DRAWS, 1), 2.0)
    told = Estimated(error=0.25).tell(snr, means, generator=generator()).double()
    assert float(told.mean()) == pytest.approx(0.75 * 6 + 0.25 * 2, rel=0.01)
    assert stats.kstest((told / 2).flatten().numpy(), stats.ncx2(df=2, nc=2 * 0.75 * 3 / 0.25, scale=0.25 / 2).cdf).pvalue > 0.01


def test_outdated_knowledge_is_like_a_moving_link_some_blocks_ago():
    delay_s, shift_hz = 0.01, 20.0
    knowledge = Estimated.outdated(delay_s=delay_s, doppler_hz=shift_hz)
    rho = special.j0(2 * math.pi * shift_hz * delay_s)
    assert knowledge.error == pytest.approx(1 - rho**2, abs=1e-6)
    series = Moving(speed_m_s=2.0, carrier_hz=3e9, block_s=delay_s).gains(2, DRAWS, generator=generator())
    told = knowledge.tell(series[1:], torch.ones(1, DRAWS), generator=generator(2))
    moved = float(torch.corrcoef(series.double())[0, 1])
    assert float(torch.corrcoef(torch.cat([series[1:], told]).double())[0, 1]) == pytest.approx(moved, abs=7 / math.sqrt(DRAWS))


def test_a_blur_is_normal_in_decibels():
    snr, means = faded()
    told = Blurred(sigma_db=3.0).tell(snr, means, generator=generator())
    assert stats.kstest(((to_db(told) - to_db(snr)) / 3).flatten().numpy(), "norm").pvalue > 0.01


@given(st.lists(st.floats(-60, 60), min_size=1, max_size=8))
def test_a_report_is_the_indicators_lowest_snr(snrs_db):
    snr = from_db(torch.tensor([snrs_db], dtype=torch.float32))
    told = Reported().tell(snr, torch.ones_like(snr), generator=generator())
    cqi = cqi_of_snr(snr)
    assert torch.equal(cqi_of_snr(told * 1.00001).clamp(min=0), cqi)
    assert (told[cqi > 0] <= snr[cqi > 0] * 1.00001).all()
    assert len(torch.unique(told)) == len(torch.unique(cqi))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Estimated(error=-0.1), "0 to 1 wanted, got -0.1"),
        (lambda: Estimated(error=math.nan), "got nan"),
        (lambda: Estimated.outdated(delay_s=-1.0, doppler_hz=1.0), "got -1.0 s"),
        (lambda: Estimated.outdated(delay_s=1.0, doppler_hz=-1.0), "got -1.0 Hz"),
        (lambda: Blurred(sigma_db=-1.0), "got -1.0 dB"),
        (lambda: Reported(gap=0.5), "got 0.5"),
        (lambda: Exact().tell(torch.tensor([[math.nan]]), torch.ones(1, 1), generator=generator()), "SNRs of at least 0 wanted, got nan$"),
        (lambda: Exact().tell(torch.ones(1, 1), torch.zeros(1, 1), generator=generator()), "mean SNRs above 0 wanted, got 0$"),
        (lambda: Exact().tell(torch.tensor([[1.0, -2.0, -3.0]]), torch.ones(1, 3), generator=generator()), "got -2 and 1 more$"),
    ],
)
def test_bad_input_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_shapes_that_differ_are_refused():
    with pytest.raises((ValueError, TypeCheckError), match=r"got \[2, 3\] and \[2, 2\]|Type-check"):
        Exact().tell(torch.ones(2, 3), torch.ones(2, 2), generator=generator())


def test_every_class_of_the_family_is_tested_here():
    ours = {kind.__name__ for kind in Knowledge.__subclasses__() if kind.__module__.startswith("nmoe.")}
    assert ours == {type(one).__name__ for one in ALL}
