"""Link states: reports and rates as SNRs, smoothed by the stated law, and never older than stated."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe.channel.estimate import (
    STALE_S,
    TIME_CONSTANT_S,
    UNMEASURED,
    LinkEstimate,
    LinkState,
    Source,
    WirelessReport,
    effective_snr_db,
    measured_state,
    parse_wireless,
    sample_snr_db,
)
from nmoe.channel.rate import shannon_rate
from nmoe.channel.trace import LinkSample
from nmoe.core.errors import BadFile
from nmoe.core.units import HIGHEST_GATE_SNR_DB, LOWEST_GATE_SNR_DB, from_db

HEADINGS = """Inter-| sta-|   Quality        |   Discarded packets               | Missed | WE
 face | tus | link level noise |  nwid  crypt   frag  retry   misc | beacon | 22
"""


def test_a_report_of_linux_is_read():
    text = HEADINGS + " wlan0: 0000   54.  -56.  -256        0      0      0      0      0        0\n"
    text += "  ath1: 0000   30   200   161  0 0 0 0 0 0\n"
    assert parse_wireless(text) == {
        "wlan0": WirelessReport(level_dbm=-56.0, noise_dbm=None),
        "ath1": WirelessReport(level_dbm=-56.0, noise_dbm=-95.0),  # eight bits: 200 - 256 and 161 - 256
    }


def test_a_card_that_is_down_or_not_associated_is_left_out():
    """Linux writes null statistics for it: 0 dBm, which would be the best link of all."""
    down = " wlan1: 0000    0     0     0        0      0      0      0      0        0\n"
    live = " wlan0: 0000   54.  -56.  -256        0      0      0      0      0        0\n"
    assert parse_wireless(HEADINGS + down + live) == {"wlan0": WirelessReport(level_dbm=-56.0, noise_dbm=None)}
    assert parse_wireless(HEADINGS + down) == {}
    weak = " wlan0: 0000    0.  -95.    0.       0      0      0      0      0        0\n"
    assert parse_wireless(HEADINGS + weak) == {"wlan0": WirelessReport(level_dbm=-95.0, noise_dbm=None)}


def test_a_machine_without_wireless_interfaces_has_an_empty_report():
    assert parse_wireless(HEADINGS) == {}
    assert parse_wireless("") == {}


@pytest.mark.parametrize(
    "line",
    [
        "wlan0 0000 54. -56. -95.",
        "wlan0: 0000 54.",
        "wlan0: 0000 54. x -95.",
        "wlan0: 0000 54. nan -95.",
        "wlan0: 0000 nan -56. -95.",
        "wlan0: up 54. -56. -95.",
    ],
)
def test_a_damaged_report_is_refused_by_its_line(line):
    with pytest.raises(BadFile, match="line 3 of the wireless report"):
        parse_wireless(HEADINGS + line + "\n")


def test_noise_that_is_not_measured_is_thermal():
    assert WirelessReport(level_dbm=-56.0, noise_dbm=-95.0).snr_db() == 39.0
    floor_dbm = 10 * math.log10(1.380649e-23 * 290 * 20e6 * 1e3) + 7  # k T W F in mW
    assert WirelessReport(level_dbm=-56.0, noise_dbm=None).snr_db(bandwidth_hz=20e6) == pytest.approx(-56 - floor_dbm, abs=0.05)
    with pytest.raises(ValueError, match="bandwidth above 0 Hz"):
        WirelessReport(level_dbm=-56.0, noise_dbm=None).snr_db(bandwidth_hz=0.0)


@given(st.floats(LOWEST_GATE_SNR_DB, HIGHEST_GATE_SNR_DB), st.floats(1e3, 1e9))
def test_a_rate_stands_for_the_snr_that_shannon_needs_for_it(snr_db, bandwidth_hz):
    rate_bps = shannon_rate(from_db(snr_db), bandwidth_hz=bandwidth_hz)
    assert effective_snr_db(rate_bps, bandwidth_hz=bandwidth_hz) == pytest.approx(snr_db, abs=1e-6)


def test_effective_snrs_by_hand_and_at_the_ends_of_the_range():
    assert effective_snr_db(20e6) == pytest.approx(0.0)  # C = W: an SNR of 1
    assert effective_snr_db(40e6) == pytest.approx(10 * math.log10(3))
    assert effective_snr_db(0.0) == LOWEST_GATE_SNR_DB
    assert effective_snr_db(1e12) == HIGHEST_GATE_SNR_DB
    for wrong in (-1.0, math.nan):
        with pytest.raises(ValueError, match="rate of at least 0"):
            effective_snr_db(wrong)
    with pytest.raises(ValueError, match="bandwidth above 0 Hz"):
        effective_snr_db(1.0, bandwidth_hz=-5.0)


def test_a_trace_says_its_snr_else_its_cqi_else_its_rate_else_nothing():
    assert sample_snr_db(LinkSample(snr_db=7.0, rate_bps=1e6, age_s=0.0, cqi=9)) == 7.0
    by_cqi = sample_snr_db(LinkSample(snr_db=None, rate_bps=1e6, age_s=0.0, cqi=7))
    assert by_cqi == pytest.approx(
        2 + 10 * math.log10(2 ** (4 * 378 / 1024) - 1), abs=1e-4
    )  # TS 38.214: 16-QAM, 378/1024, at a gap of 2 dB
    assert sample_snr_db(LinkSample(snr_db=None, rate_bps=20e6, age_s=0.0)) == pytest.approx(0.0)
    assert sample_snr_db(LinkSample(snr_db=None, rate_bps=0.0, age_s=0.0)) is None
    assert sample_snr_db(LinkSample(snr_db=None, rate_bps=None, age_s=0.0)) is None


def test_what_was_never_measured_or_too_long_ago_says_so():
    assert measured_state(None, 0.0) == UNMEASURED
    assert measured_state(1e6, STALE_S + 0.1) == UNMEASURED
    assert UNMEASURED.snr_db is None
    assert UNMEASURED.source is Source.NONE
    estimate = LinkEstimate(Source.TRACE)
    assert estimate.state(0.0) == UNMEASURED
    estimate.observe(5.0, snr_db=None)
    assert estimate.state(5.0) == UNMEASURED
    estimate.observe(10.0, snr_db=3.0)
    assert estimate.state(10.0 + STALE_S) == LinkState(snr_db=3.0, rate_bps=None, source=Source.TRACE, age_s=STALE_S)
    assert estimate.state(10.1 + STALE_S) == UNMEASURED


def test_after_a_stale_while_an_estimate_begins_anew():
    estimate = LinkEstimate(Source.WIRELESS)
    estimate.observe(0.0, snr_db=3.0)
    estimate.observe(STALE_S + 1, snr_db=-10.0)
    assert estimate.state(STALE_S + 1) == LinkState(snr_db=-10.0, rate_bps=None, source=Source.WIRELESS, age_s=0.0)


def test_reports_without_an_snr_keep_no_old_one_young():
    estimate = LinkEstimate(Source.TRACE)
    estimate.observe(0.0, snr_db=7.0)
    for now_s in map(float, range(1, 60)):
        estimate.observe(now_s, snr_db=sample_snr_db(LinkSample(snr_db=None, rate_bps=0.0, age_s=0.0)))
        known = LinkState(snr_db=7.0, rate_bps=None, source=Source.TRACE, age_s=now_s)
        assert estimate.state(now_s) == (known if now_s <= STALE_S else UNMEASURED)


@given(st.lists(st.tuples(st.floats(0.0, 10.0), st.floats(-15, 35)), min_size=1, max_size=20))
def test_smoothing_is_the_exponential_average_of_the_card(reports):
    """The oracle weighs all reports at the end: the first keeps e^(-t / tau), each later one 1 - e^(-dt / tau) of what follows."""
    estimate, now_s, times, snrs = LinkEstimate(Source.TRACE), 0.0, [], []
    for wait_s, snr_db in reports:
        now_s += wait_s
        estimate.observe(now_s, snr_db=snr_db)
        times.append(now_s)
        snrs.append(snr_db)
    weights = [1.0] + [1 - math.exp(-(after - before) / TIME_CONSTANT_S) for before, after in itertools.pairwise(times)]
    kept = [math.exp(-(times[-1] - time_s) / TIME_CONSTANT_S) for time_s in times]
    wanted = sum(weight * keep * snr_db for weight, keep, snr_db in zip(weights, kept, snrs, strict=True))
    state = estimate.state(now_s)
    assert state.snr_db == pytest.approx(wanted, abs=1e-6)
    assert min(snrs) - 1e-9 <= state.snr_db <= max(snrs) + 1e-9


def test_absurd_snrs_are_clamped_and_counted():
    estimate = LinkEstimate(Source.WIRELESS)
    for now_s, snr_db in enumerate((500.0, 41.0, 10.0, -300.0)):
        estimate.observe(1e3 * now_s, snr_db=snr_db)
    assert estimate.clamped == 3
    assert estimate.state(3e3).snr_db == LOWEST_GATE_SNR_DB


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_and_changes_nothing(wrong):
    estimate = LinkEstimate(Source.WIRELESS)
    estimate.observe(0.0, snr_db=1.0)
    for now_s, snr_db in ((0.0, wrong), (wrong, 2.0), (wrong, None)):
        with pytest.raises(ValueError, match=f"a finite time and a finite SNR in dB wanted, got {now_s} s and {snr_db} dB"):
            estimate.observe(now_s, snr_db=snr_db)
    assert estimate.state(0.0) == LinkState(snr_db=1.0, rate_bps=None, source=Source.WIRELESS, age_s=0.0)
    assert estimate.clamped == 0
