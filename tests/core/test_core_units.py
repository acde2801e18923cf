"""Decibels and ratios."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmoe.channel.estimate import effective_snr_db
from nmoe.core.units import HIGHEST_GATE_SNR_DB, LOWEST_GATE_SNR_DB, from_db, to_db
from nmoe.moe.channel_gate import link_levels


def test_known_values():
    assert from_db(0.0) == 1
    assert from_db(10.0) == pytest.approx(10)
    assert from_db(3.0) == pytest.approx(1.9953, abs=1e-4)
    assert from_db(math.inf) == math.inf
    assert from_db(-math.inf) == 0
    assert to_db(0.0) == -math.inf
    assert to_db(math.inf) == math.inf
    assert torch.allclose(from_db(torch.tensor([0.0, -10.0, math.inf])), torch.tensor([1.0, 0.1, math.inf]))


@given(st.floats(-200, 200))
def test_there_and_back(value_db):
    assert to_db(from_db(value_db)) == pytest.approx(value_db, abs=1e-9)
    assert to_db(from_db(torch.tensor(value_db, dtype=torch.float64))).item() == pytest.approx(value_db, abs=1e-9)


def test_gates_and_estimates_share_one_range_of_snrs():
    assert (LOWEST_GATE_SNR_DB, HIGHEST_GATE_SNR_DB) == (-20.0, 40.0)
    assert effective_snr_db(0.0) == LOWEST_GATE_SNR_DB
    told_db = torch.tensor([[LOWEST_GATE_SNR_DB - 1, HIGHEST_GATE_SNR_DB + 1]])
    assert link_levels(told_db).levels.tolist() == [[LOWEST_GATE_SNR_DB / 10, HIGHEST_GATE_SNR_DB / 10]]


def test_negative_ratios():
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        to_db(-1.0)
    assert torch.isnan(to_db(torch.tensor(-1.0)))
