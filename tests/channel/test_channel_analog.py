"""Analog transmission: noise of the power and law that the SNR says, over both paths, and gradients through it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp, kstest

from nmoe.channel.analog import Analog, add_noise


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_rows(rows: int, dim: int, *, seed: int = 1) -> torch.Tensor:
    """Rows of unlike power."""
    return torch.randn(rows, dim, generator=generator(seed)) * torch.logspace(-2, 2, rows).unsqueeze(1)


def noise_to_signal(features, arrived):
    return (arrived - features).square().sum(dim=1) / features.square().sum(dim=1)


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 7.0, 20.0])
@pytest.mark.parametrize("dim", [64, 65])
def test_noise_has_the_power_that_the_snr_says(snr_db, dim):
    features = some_rows(4000, dim)
    snr = torch.full((4000,), 10 ** (snr_db / 10))
    measured = noise_to_signal(features, Analog().send(features, snr, generator=generator())).mean()
    assert float(measured) == pytest.approx(10 ** (-snr_db / 10), rel=0.02)


@pytest.mark.parametrize("dim", [64, 65])
def test_noise_over_explicit_gains_has_the_power_that_the_instant_snr_says(dim):
    features = some_rows(4000, dim)
    gains = torch.randn(4000, generator=generator(2), dtype=torch.complex64)
    mean_snr = torch.full((4000,), 3.0)
    arrived = Analog().send_over(features, gains, mean_snr, generator=generator())
    ratio = noise_to_signal(features, arrived) * gains.abs().square() * mean_snr  # 1 on average, whatever the gain
    assert float(ratio.mean()) == pytest.approx(1, rel=0.02)


def test_both_paths_have_one_law():
    features = some_rows(400, 50)
    gains = torch.randn(400, generator=generator(2), dtype=torch.complex64)
    mean_snr = torch.logspace(-1, 3, 400)
    instant = mean_snr * gains.abs().square()
    scale = (features.square().mean(dim=1) / instant).sqrt().unsqueeze(1)
    direct = ((Analog().send(features, instant, generator=generator(3)) - features) / scale).flatten().numpy()
    explicit = ((Analog().send_over(features, gains, mean_snr, generator=generator(4)) - features) / scale).flatten().numpy()
    assert kstest(direct, "norm").pvalue > 1e-3
    assert kstest(explicit, "norm").pvalue > 1e-3
    assert ks_2samp(direct, explicit).pvalue > 1e-3


def test_noise_of_explicit_gains_is_white():
    """The two numbers of a symbol, and neighbours, get independent noise, however the gain turns them."""
    features = torch.ones(1, 200_000)
    gains = torch.tensor([0.6 + 0.8j])
    noise = (Analog().send_over(features, gains, torch.ones(1), generator=generator()) - features)[0]
    for lag in (1, 2):
        assert abs(float((noise[:-lag] * noise[lag:]).mean())) < 4 / math.sqrt(200_000)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**20))
def test_infinite_snr_is_exact(rows, dim, seed):
    features = some_rows(rows, dim, seed=seed)
    snr = torch.full((rows,), math.inf)
    assert torch.equal(Analog().send(features, snr, generator=generator(seed)), features)
    arrived = Analog().send_over(features, torch.full((rows,), 0.3 - 0.4j), snr, generator=generator(seed))
    torch.testing.assert_close(arrived, features)


def test_gradients_are_those_of_the_formula():
    features = torch.randn(3, 5, generator=generator(), dtype=torch.float64, requires_grad=True)
    snr = torch.tensor([0.5, 2.0, math.inf], dtype=torch.float64)
    gains = torch.randn(3, generator=generator(1), dtype=torch.complex128)
    assert torch.autograd.gradcheck(lambda z: Analog().send(z, snr, generator=generator(2)), features)
    assert torch.autograd.gradcheck(lambda z: Analog().send_over(z, gains, snr, generator=generator(2)), features)


def test_a_row_of_zeros_has_no_power_no_noise_and_a_finite_gradient():
    features = torch.zeros(2, 4, requires_grad=True)
    snr = torch.tensor([0.1, 10.0])
    for arrived in (
        Analog().send(features, snr, generator=generator()),
        Analog().send_over(features, torch.ones(2, dtype=torch.complex64), snr, generator=generator()),
    ):
        assert torch.equal(arrived, torch.zeros(2, 4))
        (gradient,) = torch.autograd.grad(arrived.sum(), features)
        assert gradient.isfinite().all()


def test_a_dead_link_leaves_numbers():
    arrived = Analog().send(some_rows(3, 4), torch.zeros(3), generator=generator())
    assert arrived.isfinite().all()


def test_rows_have_their_own_snr():
    arrived = Analog().send(torch.ones(2, 3), torch.tensor([math.inf, 0.01]), generator=generator())
    assert torch.equal(arrived[0], torch.ones(3))
    assert (arrived[1] != 1).all()


def test_the_same_seed_gives_the_same_noise():
    features, snr = some_rows(3, 4), torch.ones(3)
    assert torch.equal(Analog().send(features, snr, generator=generator(5)), Analog().send(features, snr, generator=generator(5)))
    assert not torch.equal(Analog().send(features, snr, generator=generator(5)), Analog().send(features, snr, generator=generator(6)))


def test_the_type_is_that_of_the_features():
    snr = torch.ones(2, dtype=torch.float64)
    assert Analog().send(torch.ones(2, 3), snr, generator=generator()).dtype == torch.float32
    gains = torch.ones(2, dtype=torch.complex64)
    assert Analog().send_over(torch.ones(2, 3), gains, snr, generator=generator()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_added_noise_has_one_over_snr_of_power_per_sample(dtype):
    noise = add_noise(torch.zeros(1, 200_000, dtype=dtype), torch.tensor([4.0]), generator=generator())
    assert float(noise.abs().square().mean()) == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize("worst", [math.nan, -1.0, -math.inf])
def test_bad_snrs_are_named(worst):
    snr = torch.tensor([1.0, worst])
    with pytest.raises(ValueError, match=f"SNRs of at least 0 wanted, got {worst:g}$"):
        Analog().send(torch.ones(2, 3), snr, generator=generator())
    with pytest.raises(ValueError, match=f"SNRs of at least 0 wanted, got {worst:g}$"):
        Analog().send_over(torch.ones(2, 3), torch.ones(2, dtype=torch.complex64), snr, generator=generator())


@pytest.mark.parametrize("worst", [0j, complex(math.nan, 0)])
def test_bad_gains_are_named(worst):
    with pytest.raises(ValueError, match="one complex gain per row wanted, none of them 0 or NaN"):
        Analog().send_over(torch.ones(2, 3), torch.tensor([1j, worst]), torch.ones(2), generator=generator())
