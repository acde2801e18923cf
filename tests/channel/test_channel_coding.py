"""Coding: closed forms, codewords built by hand, brute-force maximum likelihood, and the door to Sionna."""

import itertools
import math
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from nmoe.channel import sionna
from nmoe.channel.coding import Code, Convolutional, Ldpc, Repetition, Uncoded
from nmoe.core.errors import EngineError

needs_sionna = pytest.mark.skipif(find_spec("sionna") is None, reason="the extra radio is not installed")
# Called where they are used: without Sionna they cannot be made.
ALL = [
    pytest.param(Uncoded, id="uncoded"),
    pytest.param(Repetition, id="repetition"),
    pytest.param(lambda: Repetition(times=5), id="repetition5"),
    pytest.param(Convolutional, id="convolutional", marks=needs_sionna),
    pytest.param(lambda: Convolutional(constraint_length=5), id="convolutional5", marks=needs_sionna),
    pytest.param(Ldpc, id="ldpc", marks=needs_sionna),
    pytest.param(lambda: Ldpc(rate=0.75), id="ldpc75", marks=needs_sionna),
]
each = pytest.mark.parametrize("make", ALL)
GENERATORS = {5: (0o23, 0o33), 7: (0o133, 0o171)}  # octal


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_bits(rows: int, num_bits: int, *, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, num_bits, generator=generator(seed)) < 0.5


def sure(coded: torch.Tensor) -> torch.Tensor:
    """LLRs of a link without errors."""
    return 4.0 * (1 - 2 * coded.float())


def convolve(bits: list[int], constraint_length: int) -> list[int]:
    """Encode one row by polynomial products over GF(2), with its tail."""
    streams = []
    for octal in GENERATORS[constraint_length]:
        taps = [int(digit) for digit in np.binary_repr(octal, width=constraint_length)]
        streams.append(np.convolve(bits, taps) % 2)
    return [int(bit) for pair in zip(*streams, strict=True) for bit in pair]


@each
@pytest.mark.parametrize(("rows", "num_bits"), [(1, 1), (3, 8), (2, 11), (2, 100), (0, 16)])
def test_what_is_encoded_is_decoded(make, rows, num_bits):
    code = make()
    bits = some_bits(rows, num_bits)
    coded = code.encode(bits)
    assert coded.dtype == torch.bool
    assert coded.shape == (rows, code.coded_length(num_bits))
    assert torch.equal(code.decode(sure(coded), num_bits=num_bits), bits)


@each
def test_a_row_without_a_wrong_decision_decodes_to_what_was_sent(make):
    """On this rests that such rows need no decoder. BPSK at 3 dB, where one coded row of 120 bits in 16 comes through whole."""
    code = make()
    bits = some_bits(2000, 24)
    coded = code.encode(bits)
    llrs = 8 * (1 - 2 * coded.float() + 0.5 * torch.randn(coded.shape, generator=generator(1)))
    whole = ((llrs < 0) == coded).all(dim=1)
    assert 10 < int(whole.sum()) < 1900
    assert torch.equal(code.decode(llrs[whole], num_bits=24), bits[whole])


@each
def test_the_rate_is_bits_in_over_bits_out(make):
    code = make()
    assert 0 < code.rate <= 1
    assert 4000 / code.coded_length(4000) == pytest.approx(code.rate, rel=0.01)


@each
def test_codes_are_linear(make):
    """Sums of codewords are codewords: true of every code here."""
    code = make()
    one, other = some_bits(4, 60), some_bits(4, 60, seed=1)
    assert torch.equal(code.encode(one) ^ code.encode(other), code.encode(one ^ other))


@each
def test_rows_are_decoded_each_by_itself(make):
    code = make()
    bits = some_bits(4, 40)
    llrs = sure(code.encode(bits)) + 3 * torch.randn(4, code.coded_length(40), generator=generator())
    together = code.decode(llrs, num_bits=40)
    assert torch.equal(together, torch.cat([code.decode(row.unsqueeze(0), num_bits=40) for row in llrs]))


@each
def test_rows_of_another_length_are_refused(make):
    code = make()
    with pytest.raises(ValueError, match=rf"rows of {code.coded_length(20)} coded bits wanted, got \[2, 7\]"):
        code.decode(torch.zeros(2, 7), num_bits=20)


@pytest.mark.parametrize("times", [1, 3, 5])
@pytest.mark.parametrize("flip", [0.05, 0.3])
def test_a_vote_errs_as_often_as_the_closed_form_says(times, flip):
    code = Repetition(times=times)
    coded = code.encode(some_bits(1000, 200))
    decided = coded ^ (torch.rand(coded.shape, generator=generator(1)) < flip)
    errors = int((code.decode(1 - 2 * decided.float(), num_bits=200) != some_bits(1000, 200)).sum())
    rate = float(binom.sf(times // 2, times, flip))
    if times == 3:
        assert rate == pytest.approx(3 * flip**2 - 2 * flip**3)
    assert abs(errors - 200_000 * rate) < 4 * math.sqrt(200_000 * rate * (1 - rate))


def test_reliabilities_outvote_numbers():
    llrs = torch.tensor([[-1.0, 0.5, -1.0, 0.5, 3.0, 0.5]])  # two bits, three times each
    assert Repetition().decode(llrs, num_bits=2).tolist() == [[False, False]]
    assert Repetition().decode(llrs.sign(), num_bits=2).tolist() == [[True, False]]


@needs_sionna
@given(st.lists(st.integers(0, 1), min_size=1, max_size=40), st.sampled_from([5, 7]))
@settings(max_examples=20)
def test_convolutional_words_are_polynomial_products(bits, constraint_length):
    coded = Convolutional(constraint_length=constraint_length).encode(torch.tensor([bits]) > 0)
    assert coded[0].int().tolist() == convolve(bits, constraint_length)


@needs_sionna
@pytest.mark.parametrize("constraint_length", [5, 7])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_viterbi_is_brute_force_maximum_likelihood(constraint_length, scale):
    """Over all 256 messages of 8 bits, the one whose word correlates best with the LLRs; LLRs are pure noise, so that errors abound."""
    messages = list(itertools.product([0, 1], repeat=8))
    words = torch.tensor([convolve(list(message), constraint_length) for message in messages])
    llrs = scale * torch.randn(200, words.shape[1], generator=generator())
    best = ((1 - 2 * words.float()) @ llrs.T).argmax(dim=0)  # log likelihood, up to what all messages share
    wanted = torch.tensor(messages)[best] > 0
    assert torch.equal(Convolutional(constraint_length=constraint_length).decode(llrs, num_bits=8), wanted)


@needs_sionna
def test_pieces_change_nothing(monkeypatch):
    code = Convolutional(constraint_length=5)
    llrs = torch.randn(7, code.coded_length(20), generator=generator())
    whole = code.decode(llrs, num_bits=20)
    monkeypatch.setattr(sionna, "BITS_PER_CALL", 100)
    assert torch.equal(code.decode(llrs, num_bits=20), whole)


@needs_sionna
@given(st.integers(1, 700), st.sampled_from([1 / 3, 0.5, 0.8]))
@settings(max_examples=10)
def test_ldpc_takes_any_length(num_bits, rate):
    code = Ldpc(rate=rate, iterations=4)
    bits = some_bits(2, num_bits, seed=num_bits)
    coded = code.encode(bits)
    assert coded.shape == (2, code.coded_length(num_bits))
    assert torch.equal(code.decode(sure(coded), num_bits=num_bits), bits)


@needs_sionna
def test_ldpc_cuts_long_rows_into_blocks():
    code = Ldpc(rate=0.8, iterations=2)
    bits = some_bits(1, 8449)
    coded = code.encode(bits)
    assert coded.shape == (1, 2 * math.floor(4225 / 0.8))
    assert torch.equal(code.decode(sure(coded), num_bits=8449), bits)


@needs_sionna
@pytest.mark.parametrize("make", [Convolutional, Ldpc])
def test_scattered_errors_are_corrected(make):
    """4 % of hard decisions wrong, far fewer than either code takes."""
    code: Code = make()
    bits = some_bits(20, 256)
    coded = code.encode(bits)
    decided = coded ^ (torch.rand(coded.shape, generator=generator(2)) < 0.04)
    wrong = (code.decode(math.log(0.96 / 0.04) * (1 - 2 * decided.float()), num_bits=256) != bits).float().mean()
    assert float(wrong) < 0.002


@pytest.mark.parametrize("times", [-1, 0, 2])
def test_repetition_needs_an_odd_number(times):
    with pytest.raises(ValueError, match=f"odd number of times wanted, got {times}"):
        Repetition(times=times)


def test_other_fields_out_of_range_are_named():
    for length in (2, 9):
        with pytest.raises(ValueError, match=f"constraint length of 3 to 8 wanted, got {length}"):
            Convolutional(constraint_length=length)
    for rate, iterations in ((0.3, 20), (0.9, 20), (math.nan, 20), (0.5, 0)):
        with pytest.raises(ValueError, match=r"a rate of 1/3 to 0.8 and an iteration or more wanted"):
            Ldpc(rate=rate, iterations=iterations)


@pytest.mark.parametrize("make", [Convolutional, Ldpc])
def test_without_sionna_one_line_says_what_to_install(make, monkeypatch):
    monkeypatch.setattr(sionna, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"^channel codes need the extra radio: pip install nmoe\[radio\]$"):
        make()


SCRIPT = """
import sys, torch
from nmoe.channel.coding import Convolutional
code = Convolutional()
assert "sionna" not in sys.modules, "imported before it was needed"
torch.manual_seed(3)
before = torch.get_rng_state()
code.encode(torch.zeros(1, 4, dtype=torch.bool))
assert "sionna" in sys.modules
assert torch.equal(torch.get_rng_state(), before), "importing Sionna moved PyTorch's generator"
"""


@needs_sionna
def test_sionna_is_imported_late_and_leaves_the_generator_alone():
    subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], check=True, timeout=120)
