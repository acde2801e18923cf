"""Digital transmission: bit errors at the rates of the closed forms, through the whole path, coded and not; exactness and gradients."""

import math
from importlib.util import find_spec

import pytest
import torch
from scipy.special import erfc
from scipy.stats import binom

from nmoe.channel.analog import add_noise
from nmoe.channel.coding import Convolutional, Ldpc, Repetition, Uncoded
from nmoe.channel.digital import Digital
from nmoe.channel.fading import Rayleigh
from nmoe.channel.modulation import Bpsk, Qam16, Qpsk
from nmoe.channel.quantise import dequantise, quantise, to_bits

needs_sionna = pytest.mark.skipif(find_spec("sionna") is None, reason="the extra radio is not installed")
MODULATIONS = [Bpsk(), Qpsk(), Qam16()]
each_modulation = pytest.mark.parametrize("modulation", MODULATIONS, ids=lambda modulation: type(modulation).__name__)
CODES = [
    pytest.param(Uncoded, id="uncoded"),
    pytest.param(Repetition, id="repetition"),
    pytest.param(Convolutional, id="convolutional", marks=needs_sionna),
    pytest.param(Ldpc, id="ldpc", marks=needs_sionna),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_features(rows: int, dim: int, *, seed: int = 1) -> torch.Tensor:
    """Rows whose codes of 8 bits are uniform, so that bits are: whole numbers, one of them 127, which sets the scale."""
    features = torch.randint(-127, 128, (rows, dim), generator=generator(seed)).float()
    features[:, 0] = 127
    return features


def some_bits(rows: int, num_bits: int, *, seed: int = 2) -> torch.Tensor:
    return torch.rand(rows, num_bits, generator=generator(seed)) < 0.5


def flips(digital: Digital, features: torch.Tensor, snr: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
    """Return which bits of the sent codes arrive wrong, read off what the whole path gives."""
    codes, scales = quantise(features, bits=digital.bits)
    arrived = digital.send(features, snr, generator=generator(seed))
    landed = (arrived / scales.unsqueeze(1)).round().to(torch.int16)
    return to_bits(landed, bits=digital.bits) ^ to_bits(codes, bits=digital.bits)


def q(x: float) -> float:
    return float(erfc(x / math.sqrt(2)) / 2)


def assert_binomial(errors: torch.Tensor, rate: float) -> None:
    """Independent trials, within 4 standard deviations."""
    count, trials = int(errors.sum()), errors.numel()
    assert abs(count - trials * rate) < 4 * math.sqrt(trials * rate * (1 - rate)), (count / trials, rate)


@each_modulation
@pytest.mark.parametrize("snr_db", [-3.0, 3.0, 8.0])
def test_errors_over_a_steady_link_are_as_frequent_as_the_closed_form_says(modulation, snr_db):
    """Per bit position of a symbol; bits of the same position are independent."""
    snr = torch.full((250,), 10 ** (snr_db / 10))
    wrong = flips(Digital(modulation=modulation), some_features(250, 400), snr).reshape(-1, modulation.bits_per_symbol)
    for position, rate in enumerate(modulation.error_rates(snr[:1])[0].tolist()):
        assert_binomial(wrong[:, position], rate)


@each_modulation
@pytest.mark.parametrize("mean_db", [0.0, 10.0])
def test_errors_over_rayleigh_fading_are_as_frequent_as_the_closed_form_says(modulation, mean_db):
    """Bits of a row share its fading: the error of the mean is that of the rows' means."""
    snr = 10 ** (mean_db / 10) * Rayleigh().gains((20_000,), generator=generator(3))
    bits = some_bits(20_000, 8)
    wrong = (Digital(modulation=modulation).carry(bits, snr, generator=generator()) ^ bits).float().mean(dim=1)  # [row]
    rate = float(modulation.rayleigh_error_rates(torch.tensor(10 ** (mean_db / 10))).mean())
    assert abs(float(wrong.mean()) - rate) < 4 * float(wrong.std()) / math.sqrt(20_000)


def test_bpsk_over_rayleigh_is_the_formula_of_the_spec():
    mean_snr = 10.0
    snr = mean_snr * Rayleigh().gains((10_000,), generator=generator(3))
    wrong = flips(Digital(), some_features(10_000, 4), snr).float().mean(dim=1)
    rate = 0.5 * (1 - math.sqrt(mean_snr / (1 + mean_snr)))
    assert abs(float(wrong.mean()) - rate) < 4 * float(wrong.std()) / math.sqrt(10_000)


@pytest.mark.parametrize("modulation", [Bpsk(), Qpsk()], ids=["Bpsk", "Qpsk"])
def test_drawn_flips_have_the_law_of_symbols_in_noise(modulation):
    """Both ways: each position's rate, whatever bit was sent, and neighbours wrong together as often as independence says."""
    snr = torch.full((500,), 1.5)
    bits = some_bits(500, 1000)
    rate = float(modulation.error_rates(snr[:1]).mean())
    drawn = Digital(modulation=modulation).carry(bits, snr, generator=generator()) ^ bits
    through_noise = modulation.decide(add_noise(modulation.symbols(bits), snr, generator=generator(1))) ^ bits
    for wrong in (drawn, through_noise):
        for position in (0, 1):
            assert_binomial(wrong[:, position::2], rate)
        for sent in (False, True):
            assert_binomial(wrong[bits == sent], rate)
        assert_binomial(wrong[:, ::2] & wrong[:, 1::2], rate**2)


@pytest.mark.parametrize("bits", [4, 8])
def test_flips_cost_what_their_places_weigh(bits):
    """The mean squared error in steps: sum of 4^j p (1 - p) and the square of the mean shift, for the codes sent."""
    snr, places = 2.0, 2.0 ** torch.arange(bits - 1, -1, -1)
    places[0] *= -1  # two's complement
    features = torch.randn(4000, 64, generator=generator(1))
    codes, scales = quantise(features, bits=bits)
    arrived = Digital(bits=bits).send(features, torch.full((4000,), snr), generator=generator())
    error = ((arrived - dequantise(codes, scales)) / scales.unsqueeze(1)).double()
    rate = q(math.sqrt(2 * snr))
    directions = 1 - 2 * to_bits(codes, bits=bits).reshape(-1, bits).double()
    shift = rate * (directions * places).sum(dim=1)  # of each number
    wanted = float(places.square().sum() * rate * (1 - rate) + shift.square().mean())
    assert abs(float(error.square().mean()) - wanted) < 4 * float(error.square().std()) / math.sqrt(error.numel())
    assert wanted == pytest.approx(rate * (4**bits - 1) / 3, rel=0.1)


@each_modulation
@pytest.mark.parametrize("make", CODES)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("bits", [3, 8])
def test_a_perfect_link_only_rounds(modulation, make, soft, bits):
    features = torch.randn(3, 7, generator=generator())
    digital = Digital(bits=bits, code=make(), modulation=modulation, soft=soft)
    arrived = digital.send(features, torch.full((3,), math.inf), generator=generator())
    assert torch.equal(arrived, dequantise(*quantise(features, bits=bits)))


@pytest.mark.parametrize("make", CODES)
@pytest.mark.parametrize("soft", [False, True])
def test_a_dead_link_leaves_numbers_but_nothing_to_read(make, soft):
    bits = some_bits(20, 200)
    arrived = Digital(code=make(), soft=soft).carry(bits, torch.zeros(20), generator=generator())
    assert float((arrived ^ bits).float().mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("snr", [0.2, 1.0])
def test_repetition_errs_as_often_as_its_closed_forms_say(snr):
    """A vote of 3 over BPSK: 3 p^2 - 2 p^3. Soft: three symbols are one of three times the SNR."""
    links = torch.full((250,), snr)
    p = q(math.sqrt(2 * snr))
    hard = flips(Digital(code=Repetition()), some_features(250, 100), links)
    assert_binomial(hard, float(binom.sf(1, 3, p)))
    soft = flips(Digital(code=Repetition(), soft=True), some_features(250, 100), links)
    assert_binomial(soft, q(math.sqrt(2 * 3 * snr)))


def wrong_share(digital: Digital, snr: float, *, rows: int = 60) -> float:
    bits = some_bits(rows, 512)
    arrived = digital.carry(bits, torch.full((rows,), snr), generator=generator())
    return float((arrived ^ bits).float().mean())


@needs_sionna
def test_coded_beats_uncoded_at_the_same_energy_per_bit():
    """Eb / N0 of 4 dB over BPSK: a code of rate R gets R times the SNR per symbol."""
    per_bit = 10**0.4
    uncoded = wrong_share(Digital(), per_bit)
    assert uncoded == pytest.approx(q(math.sqrt(2 * per_bit)), rel=0.2)
    for code in (Convolutional(), Convolutional(constraint_length=5), Ldpc()):
        assert wrong_share(Digital(code=code, soft=True), code.rate * per_bit) < 0.1 * uncoded


@needs_sionna
@pytest.mark.parametrize("code", ["convolutional", "ldpc"])
def test_sureness_helps_the_code(code):
    made = Convolutional() if code == "convolutional" else Ldpc()
    hard, soft = (wrong_share(Digital(code=made, soft=soft, modulation=Qpsk()), 1.8) for soft in (False, True))
    assert soft < 0.3 * hard
    assert soft < 0.005


@needs_sionna
def test_the_standard_code_keeps_its_union_bound():
    """K = 7, soft: P_b <= sum of c_d Q(sqrt(2 d R Eb / N0)), the weights of (133, 171) (Proakis; Conan 1984). At 3 dB about 5e-4."""
    per_bit = 10**0.3
    weights = {10: 36, 12: 211, 14: 1404, 16: 11_633, 18: 77_433, 20: 502_690}
    bound = sum(weight * q(math.sqrt(distance * per_bit)) for distance, weight in weights.items())
    found = wrong_share(Digital(code=Convolutional(), soft=True), per_bit / 2, rows=400)
    assert 0.2 * bound < found < bound


@each_modulation
def test_gradients_are_those_of_the_identity(modulation):
    features = torch.randn(4, 6, generator=generator(), requires_grad=True)
    upstream = torch.randn(4, 6, generator=generator(1))
    arrived = Digital(modulation=modulation).send(features, torch.full((4,), 0.5), generator=generator())
    (gradient,) = torch.autograd.grad(arrived, features, upstream)
    assert torch.equal(gradient, upstream)


def test_rows_have_their_own_snr_and_a_row_of_zeros_stays_so():
    features = torch.stack([torch.linspace(-1, 1, 64), torch.zeros(64), torch.linspace(-1, 1, 64)])
    arrived = Digital(modulation=Qam16()).send(features, torch.tensor([math.inf, 0.1, 0.1]), generator=generator())
    assert torch.equal(arrived[0], dequantise(*quantise(features[:1], bits=8))[0])
    assert torch.equal(arrived[1].abs(), torch.zeros(64))
    assert not torch.equal(arrived[2], arrived[0])


@each_modulation
@pytest.mark.parametrize("make", CODES)
def test_the_same_seed_gives_the_same_numbers_and_no_rows_give_none(modulation, make):
    digital = Digital(code=make(), modulation=modulation)
    features, snr = torch.randn(5, 9, generator=generator(4)), torch.full((5,), 1.0)
    assert torch.equal(digital.send(features, snr, generator=generator(5)), digital.send(features, snr, generator=generator(5)))
    assert digital.send(features[:0], snr[:0], generator=generator()).shape == (0, 9)


@pytest.mark.parametrize("worst", [math.nan, -1.0])
def test_bad_snrs_are_named(worst):
    with pytest.raises(ValueError, match=f"SNRs of at least 0 wanted, got {worst:g} and 1 more$"):
        Digital().send(torch.ones(3, 3), torch.tensor([1.0, worst, worst]), generator=generator())


def test_bad_bits_are_named():
    with pytest.raises(ValueError, match="2 to 16 bits wanted, got 1"):
        Digital(bits=1)
