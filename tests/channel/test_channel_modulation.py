"""Modulation: constellations against the standard's and Sionna's, decisions and LLRs against brute force, error rates against integrals."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import erfc, logsumexp
from scipy.stats import norm

from nmoe.channel.modulation import Bpsk, Modulation, Qam16, Qpsk

ALL = [Bpsk(), Qpsk(), Qam16()]
each = pytest.mark.parametrize("modulation", ALL, ids=lambda modulation: type(modulation).__name__)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels(modulation: Modulation) -> torch.Tensor:
    """Every pattern of a symbol's bits, counting up, one row each."""
    return torch.tensor(list(itertools.product([False, True], repeat=modulation.bits_per_symbol)))


def points(modulation: Modulation) -> np.ndarray:
    return modulation.symbols(labels(modulation))[:, 0].numpy().astype(np.complex128)


def test_worked_example_of_the_standard():
    """TS 38.211, 5.1.3 and 5.1.4: QPSK 10 is (-1 + j) / sqrt 2; 16-QAM 1011 is (-3 + 3j) / sqrt 10, its amplitude bits both 1."""
    qpsk = Qpsk().symbols(torch.tensor([[True, False]]))
    assert complex(qpsk[0, 0]) == pytest.approx((-1 + 1j) / math.sqrt(2))
    qam = Qam16().symbols(torch.tensor([[True, False, True, True], [False, True, True, False]]))
    assert complex(qam[0, 0]) == pytest.approx((-3 + 3j) / math.sqrt(10))
    assert complex(qam[1, 0]) == pytest.approx((3 - 1j) / math.sqrt(10))


@pytest.mark.parametrize("modulation", [Qpsk(), Qam16()], ids=["Qpsk", "Qam16"])
def test_points_are_sionnas(modulation):
    pytest.importorskip("sionna", reason="the extra radio is not installed")
    from nmoe.channel.sionna import require_sionna

    require_sionna()
    from sionna.phy.mapping import Constellation

    theirs = Constellation("qam", modulation.bits_per_symbol, device="cpu")().numpy()
    np.testing.assert_allclose(points(modulation), theirs, atol=1e-6)


@each
def test_points_have_unit_power_and_gray_neighbours(modulation):
    found = points(modulation)
    assert np.mean(np.abs(found) ** 2) == pytest.approx(1)
    distances = np.abs(found[:, None] - found[None, :])
    nearest = distances[distances > 1e-9].min()
    patterns = labels(modulation)
    for one, other in itertools.combinations(range(len(found)), 2):
        if distances[one, other] < 1.01 * nearest:
            assert int((patterns[one] != patterns[other]).sum()) == 1


@given(st.sampled_from(ALL), st.integers(0, 3), st.integers(0, 5), st.integers(0, 2**20))
def test_symbols_are_decided_back_to_their_bits(modulation, rows, num_symbols, seed):
    bits = torch.rand(rows, num_symbols * modulation.bits_per_symbol, generator=generator(seed)) < 0.5
    symbols = modulation.symbols(bits)
    assert symbols.shape == (rows, num_symbols)
    assert torch.equal(modulation.decide(symbols), bits)


@each
def test_decisions_are_the_nearest_points(modulation):
    received = torch.randn(50, 20, generator=generator(), dtype=torch.complex64)
    nearest = np.abs(received.numpy()[:, :, None] - points(modulation)).argmin(axis=2)  # [row, symbol]
    assert torch.equal(modulation.decide(received), labels(modulation)[torch.from_numpy(nearest)].flatten(1))


@each
@pytest.mark.parametrize("snr", [0.05, 1.0, 30.0])
def test_llrs_are_bayes_rule_over_all_points(modulation, snr):
    received = torch.randn(20, 10, generator=generator(), dtype=torch.complex64)
    likelihoods = -snr * np.abs(received.numpy()[:, :, None].astype(np.complex128) - points(modulation)) ** 2  # CN(0, 1 / snr), log
    patterns = labels(modulation).numpy()
    wanted = [logsumexp(likelihoods[..., ~bit], axis=2) - logsumexp(likelihoods[..., bit], axis=2) for bit in patterns.T]
    found = modulation.llrs(received, torch.full((20,), snr)).numpy()
    np.testing.assert_allclose(found, np.stack(wanted, axis=2).reshape(20, -1), rtol=1e-4, atol=1e-5 * max(1, snr))


@each
def test_llrs_of_a_perfect_and_of_a_dead_link_are_numbers(modulation):
    bits = torch.rand(2, 40, generator=generator()) < 0.5
    llrs = modulation.llrs(modulation.symbols(bits), torch.tensor([math.inf, 0.0]))
    assert llrs.isfinite().all()
    assert torch.equal(llrs[0] < 0, bits[0])
    assert torch.equal(llrs[1], torch.zeros(40))


def position_error_rates(modulation: Modulation, snr: float) -> list[float]:
    """Return each position's error rate by summing, over points sent, the probability of every decision region on both axes.

    Regions of our maps are products of intervals between neighbouring levels of an axis.
    """
    found = points(modulation)
    spread = math.sqrt(1 / (2 * snr))

    def region(value: float, levels: np.ndarray) -> tuple[float, float]:
        edges = [-math.inf, *((levels[1:] + levels[:-1]) / 2), math.inf]
        place = int(np.abs(levels - value).argmin())
        return edges[place], edges[place + 1]

    reals, imaginaries = (np.unique(axis.round(6)) for axis in (found.real, found.imag))
    chances = np.zeros((len(found), len(found)))
    for sent, decided in itertools.product(range(len(found)), repeat=2):
        chance = 1.0
        for value, centre, levels in (
            (found[decided].real, found[sent].real, reals),
            (found[decided].imag, found[sent].imag, imaginaries),
        ):
            low, high = region(value, levels)
            chance *= norm.cdf(high, centre, spread) - norm.cdf(low, centre, spread)
        chances[sent, decided] = chance
    patterns = labels(modulation).numpy()
    return [float((chances * (bit[:, None] != bit[None, :])).sum() / len(found)) for bit in patterns.T]


@each
@pytest.mark.parametrize("snr", [0.1, 1.0, 4.0, 20.0])
def test_error_rates_are_the_probabilities_of_wrong_regions(modulation, snr):
    found = modulation.error_rates(torch.tensor([snr], dtype=torch.float64))
    assert found.shape == (1, modulation.bits_per_symbol)
    assert found[0].tolist() == pytest.approx(position_error_rates(modulation, snr), rel=1e-6)


@each
@pytest.mark.parametrize("mean_snr", [0.1, 1.0, 10.0, 100.0])
def test_rayleigh_error_rates_are_the_average_over_an_exponential_snr(modulation, mean_snr):
    found = modulation.rayleigh_error_rates(torch.tensor([mean_snr], dtype=torch.float64))[0].tolist()
    for position, rate in enumerate(found):

        def weighted(gain: float, position: int = position) -> float:
            snr = torch.tensor(gain * mean_snr, dtype=torch.float64)
            return float(modulation.error_rates(snr)[position]) * math.exp(-gain)

        average = quad(weighted, 0, 1, epsabs=1e-12)[0] + quad(weighted, 1, math.inf, epsabs=1e-12)[0]
        assert rate == pytest.approx(average, rel=1e-6)


def test_error_rates_are_the_published_formulas():
    """Spec 3.2 for BPSK; Proakis for QPSK; the exact mean of Gray 16-QAM."""
    snr = torch.logspace(-1, 2, 20, dtype=torch.float64)
    gamma = snr.numpy()

    def q(x):
        return erfc(x / math.sqrt(2)) / 2

    np.testing.assert_allclose(Bpsk().error_rates(snr)[:, 0], q(np.sqrt(2 * gamma)), rtol=1e-9)
    np.testing.assert_allclose(Bpsk().rayleigh_error_rates(snr)[:, 0], 0.5 * (1 - np.sqrt(gamma / (1 + gamma))), rtol=1e-9)
    np.testing.assert_allclose(Qpsk().error_rates(snr).mean(dim=1), q(np.sqrt(gamma)), rtol=1e-9)
    root = np.sqrt(gamma / 5)
    np.testing.assert_allclose(Qam16().error_rates(snr).mean(dim=1), (3 * q(root) + 2 * q(3 * root) - q(5 * root)) / 4, rtol=1e-9)


@each
def test_error_rates_of_the_extremes(modulation):
    for law in (modulation.error_rates, modulation.rayleigh_error_rates):
        rates = law(torch.tensor([0.0, math.inf]))
        torch.testing.assert_close(rates[0], torch.full_like(rates[0], 0.5))
        assert torch.equal(rates[1], torch.zeros_like(rates[1]))


def test_only_one_bit_per_dimension_is_separate():
    assert [modulation.separate for modulation in ALL] == [True, True, False]


@pytest.mark.parametrize("modulation", [Qpsk(), Qam16()], ids=["Qpsk", "Qam16"])
def test_bits_that_do_not_fill_symbols_are_refused(modulation):
    with pytest.raises(ValueError, match=f"a multiple of {modulation.bits_per_symbol} bits per row wanted, got 7"):
        modulation.symbols(torch.zeros(2, 7, dtype=torch.bool))
