"""Privacy: noise as said, sensitivity as derived, epsilon as an independent formula has it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import kstest, norm

from nmoe.learn import GaussianMechanism, PrivacyBudget, clip, correlation, correlation_sensitivity, spent_epsilon


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def analytic_epsilon(multiplier: float, delta: float) -> float:
    """Return the exact epsilon of one Gaussian release: Balle and Wang, ICML 2018, theorem 8, solved for epsilon."""

    def excess(epsilon: float) -> float:
        upper = norm.cdf(1 / (2 * multiplier) - epsilon * multiplier)
        lower = math.exp(epsilon + norm.logcdf(-1 / (2 * multiplier) - epsilon * multiplier))
        return float(upper - lower) - delta

    return 0.0 if excess(0) <= 0 else float(brentq(excess, 0, 1000, xtol=1e-12))


@pytest.mark.parametrize("multiplier", [0.5, 0.92, 1.84, 5.39, 20.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5])
def test_one_release_costs_what_the_analytic_gaussian_mechanism_costs(multiplier, delta):
    """The accountant discretises upwards: never less than the truth, and little more."""
    truth = analytic_epsilon(multiplier, delta)
    found = spent_epsilon(multiplier, releases=1, delta=delta)
    assert truth - 1e-6 <= found <= truth + 1e-3


@pytest.mark.parametrize("releases", [1, 4, 24, 100])
@pytest.mark.parametrize("multiplier", [4.0, 10.0])
def test_many_releases_cost_one_with_less_noise(releases, multiplier):
    found = spent_epsilon(multiplier, releases=releases, delta=1e-5)
    assert found == pytest.approx(analytic_epsilon(multiplier / math.sqrt(releases), 1e-5), rel=5e-3)


def test_fedscs_published_noise_costs_what_the_spec_derived():
    """Spec 1.3, CIFAR-10, J=10, mu=2: sigma over sensitivity 1.84; the zCDP bound there, 2.8, must not be undercut by much."""
    multiplier = 0.00104 / correlation_sensitivity(5000, mu=2.0)
    assert multiplier == pytest.approx(1.84, abs=0.005)
    found = spent_epsilon(multiplier, releases=1, delta=1e-5)
    rho = 1 / (2 * multiplier**2)
    assert 0.7 * 2.8 < found < rho + 2 * math.sqrt(rho * math.log(1e5))


@pytest.mark.parametrize(("epsilon", "delta", "releases"), [(1.0, 1e-5, 1), (0.5, 1e-3, 3)])
def test_calibrated_noise_spends_the_budget_and_not_more(epsilon, delta, releases):
    multiplier = PrivacyBudget(epsilon=epsilon, delta=delta).noise_multiplier(releases)
    assert 0.99 * epsilon <= spent_epsilon(multiplier, releases=releases, delta=delta) <= epsilon + 1e-9
    assert analytic_epsilon(multiplier / math.sqrt(releases), delta) == pytest.approx(epsilon, rel=0.01)


def test_more_releases_or_less_noise_cost_more():
    costs = [spent_epsilon(2.0, releases=releases, delta=1e-5) for releases in (0, 1, 2, 5)]
    assert costs[0] == 0
    assert costs == sorted(set(costs))
    costs = [spent_epsilon(multiplier, releases=1, delta=1e-5) for multiplier in (4.0, 2.0, 1.0)]
    assert costs == sorted(set(costs))


@pytest.mark.parametrize("sigma", [0.01, 1.0])
def test_noise_is_gaussian_with_the_given_deviation(sigma):
    matrix = torch.randn(300, 300, generator=generator(), dtype=torch.float64)
    noise = (GaussianMechanism(sigma=sigma).release(matrix, generator=generator(1)) - matrix).reshape(-1)
    assert float(noise.std()) == pytest.approx(sigma, rel=0.01)  # 90,000 draws: standard error 0.24 %
    assert abs(float(noise.mean())) < 5 * sigma / 300
    assert kstest(noise.numpy() / sigma, "norm").pvalue > 1e-4


def test_noise_of_all_entries_is_independent_not_symmetrised():
    noise = GaussianMechanism(sigma=1.0).release(torch.zeros(200, 200), generator=generator())
    upper = torch.triu_indices(200, 200, offset=1)
    pairs = torch.stack((noise[upper[0], upper[1]], noise.T[upper[0], upper[1]]))
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.04


def test_noise_repeats_with_its_generator_and_leaves_the_matrix_alone():
    mechanism, matrix = GaussianMechanism(sigma=1.0), torch.eye(3)
    one, again, other = (mechanism.release(matrix, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(matrix, torch.eye(3))


row = st.lists(st.floats(-100, 100), min_size=3, max_size=3)


@given(st.lists(st.tuples(row, row), min_size=1, max_size=6), st.tuples(row, row), st.data(), st.floats(0.1, 10))
def test_replacing_one_image_moves_the_matrix_by_at_most_the_sensitivity(images, newcomer, data, mu):
    """An image is its two views; the matrix is the mean over all views, as FedSC releases it."""
    replaced = data.draw(st.integers(0, len(images) - 1))
    neighbour = [newcomer if place == replaced else image for place, image in enumerate(images)]

    def matrix(of: list) -> torch.Tensor:
        return correlation(clip(torch.tensor(of, dtype=torch.float64).reshape(-1, 3), mu=mu))

    moved = float((matrix(images) - matrix(neighbour)).norm())
    assert moved <= correlation_sensitivity(len(images), mu=mu) * (1 + 1e-9)


@pytest.mark.parametrize(("num_images", "mu"), [(1, 1.0), (5, 2.0), (40, 4.0)])
def test_orthogonal_extremes_reach_the_sensitivity(num_images, mu):
    rest = torch.randn(num_images - 1, 3, generator=generator(), dtype=torch.float64)
    matrices = [
        correlation(clip(torch.cat((rest, torch.tensor([extreme], dtype=torch.float64))), mu=mu))
        for extreme in ([100.0, 0.0, 0.0], [0.0, 100.0, 0.0])
    ]
    assert float((matrices[0] - matrices[1]).norm()) == pytest.approx(correlation_sensitivity(num_images, mu=mu))
    assert correlation_sensitivity(num_images, mu=mu) == pytest.approx(math.sqrt(2) * mu / num_images)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_bad_sigma_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma of the Gaussian mechanism must be above 0 and finite"):
        GaussianMechanism(sigma=sigma)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_bad_epsilon_is_refused(epsilon):
    with pytest.raises(ValueError, match="dp epsilon must be above 0 and finite"):
        PrivacyBudget(epsilon=epsilon, delta=1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, math.nan])
def test_bad_delta_is_refused(delta):
    with pytest.raises(ValueError, match="delta must be between 0 and 1"):
        PrivacyBudget(epsilon=1.0, delta=delta)
    with pytest.raises(ValueError, match="delta must be between 0 and 1"):
        spent_epsilon(1.0, releases=1, delta=delta)


@pytest.mark.parametrize("multiplier", [0.0, -1.0, math.nan])
def test_bad_noise_multiplier_is_refused(multiplier):
    with pytest.raises(ValueError, match="noise_multiplier must be above 0"):
        spent_epsilon(multiplier, releases=1, delta=1e-5)


def test_bad_number_of_releases_is_refused():
    with pytest.raises(ValueError, match="releases must be at least 0, got -1"):
        spent_epsilon(1.0, releases=-1, delta=1e-5)
    with pytest.raises(ValueError, match="releases must be at least 1, got 0"):
        PrivacyBudget(epsilon=1.0, delta=1e-5).noise_multiplier(0)


@pytest.mark.parametrize(("num_images", "mu"), [(0, 1.0), (-1, 1.0), (5, 0.0), (5, -1.0), (5, math.nan)])
def test_bad_sensitivity_arguments_are_refused(num_images, mu):
    with pytest.raises(ValueError, match="num_images must be at least 1 and mu above 0"):
        correlation_sensitivity(num_images, mu=mu)
