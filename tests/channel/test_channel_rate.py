"""Rates: Shannon and back, the CQI table against its own efficiencies, Sionna's block errors and a real 5G network, and laws."""

import json
import math
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from nmoe.channel.rate import CQI_TABLE, TABLE_GAP, cqi_of_snr, rate_of_snr, shannon_rate, shannon_snr, snr_of_cqi
from nmoe.core.table import read_table
from nmoe.core.units import from_db, to_db

NETWORK = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "network"
needs_network = pytest.mark.skipif(not NETWORK.is_dir(), reason=f"the project's data does not lie in {NETWORK}")
EFFICIENCIES = [0.1523, 0.2344, 0.3770, 0.6016, 0.8770, 1.1758, 1.4766, 1.9141, 2.4063, 2.7305, 3.3223, 3.9023, 4.5234, 5.1152, 5.5547]
SNRS = st.floats(0, 1e6)
BANDWIDTHS = st.floats(1e3, 1e9)


def test_shannon_by_hand():
    assert shannon_rate(1.0, bandwidth_hz=20e6) == pytest.approx(20e6)
    assert shannon_rate(30.0, bandwidth_hz=1e6, gap=2.0) == pytest.approx(4e6)
    assert shannon_rate(math.inf, bandwidth_hz=1e6) == math.inf
    assert shannon_snr(40e6, bandwidth_hz=20e6) == pytest.approx(3)
    assert shannon_snr(math.inf, bandwidth_hz=20e6) == math.inf
    assert shannon_snr(1e15, bandwidth_hz=20e6) == math.inf


@given(SNRS, BANDWIDTHS, st.floats(1, 10))
def test_the_inverse_inverts(snr, bandwidth_hz, gap):
    rate_bps = shannon_rate(snr, bandwidth_hz=bandwidth_hz, gap=gap)
    assert shannon_snr(rate_bps, bandwidth_hz=bandwidth_hz, gap=gap) == pytest.approx(snr, rel=1e-9, abs=1e-12)


@given(st.lists(SNRS, max_size=5), BANDWIDTHS, st.floats(1, 10))
def test_tensors_and_numbers_agree(snrs, bandwidth_hz, gap):
    rates = shannon_rate(torch.tensor(snrs, dtype=torch.float64), bandwidth_hz=bandwidth_hz, gap=gap)
    assert rates.tolist() == pytest.approx([shannon_rate(snr, bandwidth_hz=bandwidth_hz, gap=gap) for snr in snrs])
    back = shannon_snr(rates, bandwidth_hz=bandwidth_hz, gap=gap)
    assert back.tolist() == pytest.approx(snrs, rel=1e-9, abs=1e-12)


def test_the_table_has_the_standards_efficiencies():
    assert [entry.efficiency for entry in CQI_TABLE] == pytest.approx(EFFICIENCIES, abs=5.1e-5)
    assert [entry.bits_per_symbol for entry in CQI_TABLE] == [2] * 6 + [4] * 3 + [6] * 6


@given(SNRS, SNRS, BANDWIDTHS)
def test_more_snr_is_never_slower_nor_reported_lower(one, other, bandwidth_hz):
    snr = torch.tensor(sorted((one, other)), dtype=torch.float64)
    cqi, rate_bps = cqi_of_snr(snr), rate_of_snr(snr, bandwidth_hz=bandwidth_hz)
    assert cqi[0] <= cqi[1]
    assert rate_bps[0] <= rate_bps[1]
    shannon = shannon_rate(snr, bandwidth_hz=bandwidth_hz)
    assert (shannon_rate(snr, bandwidth_hz=bandwidth_hz, gap=TABLE_GAP) <= shannon).all()
    assert (rate_bps <= shannon * (1 + 1e-9)).all()


def test_an_indicator_stands_for_the_snr_where_its_rate_begins():
    cqi = torch.arange(1, 16)
    snr = snr_of_cqi(cqi)
    assert torch.equal(cqi_of_snr(snr * 1.0001), cqi)
    assert torch.equal(cqi_of_snr(snr * 0.9999), cqi - 1)
    assert rate_of_snr(snr * 1.0001, bandwidth_hz=1e6).tolist() == pytest.approx([1e6 * value for value in EFFICIENCIES], rel=1e-3)


@given(SNRS, st.floats(1, 10))
def test_what_is_reported_is_at_most_the_snr_and_reported_again(snr, gap):
    cqi = cqi_of_snr(torch.tensor([snr], dtype=torch.float64), gap=gap)
    believed = snr_of_cqi(cqi, gap=gap)
    assert int(cqi) == 0 or float(believed) <= snr * (1 + 1e-6)
    assert int(cqi_of_snr(believed.double() * (1 + 1e-6), gap=gap)) == int(cqi)


def test_views_are_read_as_they_lie():
    snr = from_db(torch.arange(-20.0, 40.0)).reshape(6, 10).T
    assert torch.equal(cqi_of_snr(snr), cqi_of_snr(snr.clone()))


def test_out_of_range_is_a_step_below_the_first():
    steps_db = to_db(snr_of_cqi(torch.tensor([0, 1, 2])))
    assert float(steps_db[1] - steps_db[0]) == pytest.approx(float(steps_db[2] - steps_db[1]), abs=1e-4)
    assert int(cqi_of_snr(torch.tensor(0.0))) == 0
    assert float(rate_of_snr(torch.tensor(0.0), bandwidth_hz=1e6)) == 0
    assert int(cqi_of_snr(torch.tensor(math.inf))) == 15


@pytest.mark.skipif(find_spec("sionna") is None, reason="sionna-no-rt is not installed")
def test_simulated_5g_blocks_fail_below_the_thresholds_and_pass_above():
    """Sionna's tables: how often simulated 5G code blocks of 1000 bits fail over AWGN, in steps of 1.8 dB; a CQI promises 0.1 at most."""
    table = json.loads((files("sionna.sys") / "bler_tables" / "PDSCH_table1.json").read_text("utf-8"))
    schemes = table["category"]["1"]["index"]["1"]["MCS"]
    cqi_of_scheme = {4: 4, 6: 5, 8: 6, 11: 7, 13: 8, 15: 9, 18: 10, 20: 11, 22: 12, 24: 13, 26: 14, 28: 15}  # same modulation and code
    off_db = []
    for scheme, cqi in cqi_of_scheme.items():
        snrs_db, errors = np.array(schemes[str(scheme)]["SNR_db"]), np.array(schemes[str(scheme)]["CBS"]["1000"]["BLER"])
        passing = int(np.argmax(errors <= 0.1))
        threshold_db = float(to_db(snr_of_cqi(torch.tensor(cqi))))
        off_db.append(max(snrs_db[passing - 1] - threshold_db, threshold_db - snrs_db[passing], 0.0))
    assert sum(off == 0 for off in off_db) == 11
    assert max(off_db) < 0.6  # QPSK at rate 0.3 needs less SNR than is asked of it


@needs_network
@pytest.mark.parametrize(("mode", "least"), [("LTE", 0.5), ("5G", 0.2)])
def test_indicators_rise_with_snr_in_a_real_network(mode, least):
    table = read_table(NETWORK / "ucc5g.csv.gz")
    chosen = np.array(table.columns["mode"]) == mode
    snr_db = table.numbers("snr_db", low=-200.0, high=200.0, missing=True)[chosen]
    cqi = table.numbers("cqi", low=0.0, high=15.0, missing=True)[chosen]
    known = np.isfinite(snr_db) & np.isfinite(cqi)
    assert known.sum() > 10_000
    assert spearmanr(snr_db[known], cqi[known]).statistic > least


@needs_network
def test_rates_of_a_real_network_keep_to_shannon():
    """At most 100 MHz and 4 antennas at each end, that is 400 MHz of single links; SNRs are whole decibels and lag behind rates."""
    table = read_table(NETWORK / "ucc5g.csv.gz")
    snr_db = table.numbers("snr_db", low=-200.0, high=200.0, missing=True)
    rate_bps = 1e3 * table.numbers("dl_kbps", low=0.0, high=1e9, missing=True)
    known = np.isfinite(snr_db)
    bound_bps = shannon_rate(from_db(torch.from_numpy(snr_db[known])), bandwidth_hz=400e6).numpy()
    assert (rate_bps[known] <= bound_bps).mean() > 0.99
    effective = shannon_snr(torch.from_numpy(rate_bps[known]), bandwidth_hz=400e6)
    assert (effective.numpy() <= from_db(35.0)).all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: shannon_rate(1.0, bandwidth_hz=-5.0), "above 0 Hz wanted, got -5.0"),
        (lambda: shannon_rate(1.0, bandwidth_hz=math.nan), "above 0 Hz wanted, got nan"),
        (lambda: shannon_rate(math.nan, bandwidth_hz=1.0), "got nan"),
        (lambda: shannon_rate(torch.tensor([1.0, math.nan]), bandwidth_hz=1.0), "SNRs of at least 0 wanted, got nan"),
        (lambda: shannon_rate(-1.0, bandwidth_hz=1.0), "got -1.0"),
        (lambda: shannon_rate(1.0, bandwidth_hz=1.0, gap=0.5), "at least 1"),
        (lambda: shannon_snr(-1.0, bandwidth_hz=1.0), "got -1.0"),
        (lambda: shannon_snr(torch.tensor(-2.0), bandwidth_hz=1.0), "rates of at least 0 bit/s wanted, got -2 bit/s"),
        (lambda: cqi_of_snr(torch.tensor(math.nan)), "got nan"),
        (lambda: rate_of_snr(torch.tensor(1.0), bandwidth_hz=0.0), "got 0.0 Hz"),
        (lambda: snr_of_cqi(torch.tensor([3, 16])), "0 to 15 wanted, got 3 to 16"),
        (lambda: snr_of_cqi(torch.tensor([-1])), "got -1 to -1"),
    ],
)
def test_bad_input_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
