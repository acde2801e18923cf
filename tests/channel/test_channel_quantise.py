"""Quantisation: the wire's numbers, bits there and back, and the SNR that rounding leaves."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nmoe.channel.quantise import (
    dequantise,
    distortion_snr,
    from_bits,
    largest_code,
    quantise,
    straight_through,
    to_bits,
    uniform_distortion_snr,
)
from nmoe.node.messages import formats


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


rows_of_floats = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=8),
    elements=st.one_of(st.floats(-100, 100, width=32), st.floats(-(2.0**126), 2.0**126, width=32)),
)


@given(rows_of_floats)
def test_8_bits_are_the_wires_int8(rows):
    codes, scales = formats.quantise(rows, strict=True)
    ours = quantise(torch.from_numpy(rows), bits=8)
    assert np.array_equal(ours.codes.numpy(), codes)
    assert np.array_equal(ours.scales.numpy(), scales)
    assert np.array_equal(dequantise(*ours).numpy(), formats.dequantise(codes, scales))


@given(rows_of_floats, st.integers(2, 16))
def test_rounding_is_the_textbooks(rows, bits):
    """numpy in float32: scale max|x| / L, half to even; error at most half a step, up to float32's rounding of the product."""
    largest = 2 ** (bits - 1) - 1
    scales = np.maximum(np.abs(rows).max(axis=1) / np.float32(largest), np.finfo(np.float32).tiny)
    codes, ours = quantise(torch.from_numpy(rows), bits=bits)
    assert np.array_equal(codes.numpy(), np.rint(rows / scales[:, None]).astype(np.int16))
    assert int(codes.abs().max()) <= largest
    assert np.array_equal(ours.numpy(), np.where(np.abs(rows).max(axis=1) == 0, 0, scales))
    error = np.abs(dequantise(codes, ours).numpy().astype(np.float64) - rows)
    assert (error <= scales[:, None] * (0.5 + largest * 2.0**-22)).all()


@given(rows_of_floats, st.integers(2, 12))
def test_quantising_again_changes_nothing(rows, bits):
    once = dequantise(*quantise(torch.from_numpy(rows), bits=bits))
    torch.testing.assert_close(dequantise(*quantise(once, bits=bits)), once, rtol=1e-6, atol=0)


@given(st.integers(2, 16).flatmap(lambda bits: st.tuples(st.just(bits), code_rows(bits))))
def test_bits_are_the_twos_complement_and_come_back(case):
    bits, codes = case
    places = to_bits(codes, bits=bits)
    assert places.shape == (codes.shape[0], codes.shape[1] * bits)
    written = ["".join(np.binary_repr(code, width=bits) for code in row) for row in codes.tolist()]
    assert ["".join("1" if bit else "0" for bit in row) for row in places.tolist()] == written
    assert torch.equal(from_bits(places, bits=bits), codes)


def code_rows(bits: int):
    """Every code that can arrive, the one never sent included."""
    span = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    shape = st.tuples(st.integers(1, 4), st.integers(1, 6))
    return shape.flatmap(lambda s: hnp.arrays(np.int16, s, elements=span)).map(torch.from_numpy)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_a_flipped_place_moves_a_code_by_its_weight(bits):
    codes = torch.tensor([[0, 1, -1]], dtype=torch.int16)
    for place in range(bits):
        places = to_bits(codes, bits=bits).reshape(1, 3, bits)
        places[..., place] ^= True
        moved = from_bits(places.flatten(1), bits=bits).int() - codes.int()
        assert (moved.abs() == 2 ** (bits - 1 - place)).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8, 12])
def test_uniform_numbers_keep_the_snr_of_the_closed_form(bits):
    """Rows of 20000 all but reach full scale: their largest is about 1 - 5e-5 of it. The error is one of 400000 samples."""
    features = 2 * torch.rand(20, 20_000, generator=generator()) - 1
    assert distortion_snr(features, bits=bits) == pytest.approx(uniform_distortion_snr(bits), rel=0.01)


def test_a_bit_is_worth_about_6_db():
    assert uniform_distortion_snr(8) == 4 * 127**2
    for bits in range(6, 16):
        step_db = 10 * math.log10(uniform_distortion_snr(bits + 1) / uniform_distortion_snr(bits))
        assert step_db == pytest.approx(20 * math.log10(2), abs=0.3)


def test_peaked_numbers_get_less_than_uniform_ones():
    features = torch.randn(50, 256, generator=generator())
    for bits in (4, 8):
        assert distortion_snr(features, bits=bits) < 0.5 * uniform_distortion_snr(bits)


def test_what_lies_on_the_grid_loses_nothing():
    assert distortion_snr(torch.tensor([[127.0, -3.0, 8.0]]), bits=8) == math.inf


def test_codes_and_scales_are_the_wires_types_and_carry_no_gradient():
    codes, scales = quantise(torch.tensor([[1.0, -0.3]], dtype=torch.float64, requires_grad=True), bits=8)
    assert (codes.dtype, scales.dtype, scales.requires_grad) == (torch.int16, torch.float32, False)


def test_straight_through_is_exact_forward_and_the_identity_backward():
    features = torch.randn(4, 6, generator=generator(), requires_grad=True)
    arrived = torch.randn(4, 6, generator=generator(1))
    out = straight_through(arrived, features)
    assert torch.equal(out, arrived)
    upstream = torch.randn(4, 6, generator=generator(2))
    (gradient,) = torch.autograd.grad(out, features, upstream)
    assert torch.equal(gradient, upstream)


@pytest.mark.parametrize("bits", [-1, 0, 1, 17])
def test_bits_out_of_range_are_named(bits):
    for call in (largest_code, uniform_distortion_snr, lambda b: quantise(torch.ones(1, 1), bits=b)):
        with pytest.raises(ValueError, match=f"2 to 16 bits wanted, got {bits}$"):
            call(bits)


@pytest.mark.parametrize("worst", [math.nan, math.inf, -math.inf, 3.4e38])
def test_numbers_that_no_scale_fits_are_refused(worst):
    with pytest.raises(ValueError, match="must be finite and within"):
        quantise(torch.tensor([[1.0, 2.0], [worst, 0.0]]), bits=8)


def test_other_bad_input_is_named():
    with pytest.raises(ValueError, match="at least one number"):
        quantise(torch.ones(2, 0), bits=8)
    with pytest.raises(ValueError, match="must not all be 0"):
        distortion_snr(torch.zeros(2, 3), bits=8)
    with pytest.raises(ValueError, match="a multiple of 8 bits per row wanted, got 12"):
        from_bits(torch.zeros(1, 12, dtype=torch.bool), bits=8)
