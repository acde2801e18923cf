"""Traces: what was last reported at a time, against brute force; users' own columns; real files; bad files in one line."""

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from nmoe.channel.trace import LinkSample, LinkTrace, read_trace
from nmoe.core.errors import BadFile

NETWORK = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "network"
needs_network = pytest.mark.skipif(not NETWORK.is_dir(), reason=f"the project's data does not lie in {NETWORK}")


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def trace_of(times_s: list[float]) -> LinkTrace:
    """Return a trace whose SNRs number the reports."""
    unknown = np.full(len(times_s), np.nan)
    return LinkTrace(times_s=np.array(times_s), snr_db=np.arange(len(times_s), dtype=float), rate_bps=unknown, cqi=unknown)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=10), st.floats(-5, 25))
def test_the_latest_report_counts(times, time_s):
    times_s = sorted(float(time) for time in times)
    sample = trace_of(times_s).at(time_s)
    before = [index for index, time in enumerate(times_s) if time <= time_s]
    if before:
        assert sample == LinkSample(snr_db=float(before[-1]), rate_bps=None, age_s=time_s - times_s[before[-1]])
    else:
        assert sample == LinkSample(snr_db=None, rate_bps=None, age_s=math.inf)


def test_a_users_own_file(tmp_path):
    text = "TIME_S, link, snr_db, rate_bps, CQI, weather\n0, b, 3.5, 1000, , rain\n1, a, , 2e6, 7, sun\n2.5, b, -4, , 15, sun\n"
    links = read_trace(written(tmp_path / "own.csv", text))
    assert list(links) == ["b", "a"]
    assert links["b"].at(1.0) == LinkSample(snr_db=3.5, rate_bps=1000.0, age_s=1.0, cqi=None)
    assert links["b"].at(2.5) == LinkSample(snr_db=-4.0, rate_bps=None, age_s=0.0, cqi=15)
    assert links["a"].at(11.0) == LinkSample(snr_db=None, rate_bps=2e6, age_s=10.0, cqi=7)
    assert (len(links["b"]), links["b"].duration_s, links["a"].duration_s) == (2, 2.5, 0.0)


def test_a_file_of_one_link_is_named_as_the_file(tmp_path):
    path = tmp_path / "office.csv.gz"
    path.write_bytes(gzip.compress(b"time_s,mbps\n0,1.5\n"))
    assert read_trace(path)["office"].at(0.0).rate_bps == 1.5e6


def test_reports_out_of_order_are_put_in_order(tmp_path):
    links = read_trace(written(tmp_path / "a.csv", "time_s,snr_db\n5,1\n2,2\n5,3\n"))
    assert links["a"].times_s.tolist() == [2, 5, 5]
    assert links["a"].at(5.0).snr_db == 3


@needs_network
def test_ucc5g():
    links = read_trace(NETWORK / "ucc5g.csv.gz")
    assert list(links) == [str(run) for run in range(83)]
    assert sum(len(trace) for trace in links.values()) == 186_848
    first = links["0"].at(0.5)
    assert first == LinkSample(snr_db=2.0, rate_bps=29_000.0, age_s=0.5, cqi=8)
    snrs_db = np.concatenate([trace.snr_db for trace in links.values()])
    assert (np.nanmin(snrs_db), np.nanmax(snrs_db)) == (-30, 35)
    assert np.isnan(snrs_db).sum() == 16_887, "older radio modes report neither SNR nor CQI"


@needs_network
def test_throughput():
    links = read_trace(NETWORK / "throughput.csv.gz")
    assert len(links) == 497
    sample = links["trace_10322"].at(7.0)
    assert sample.rate_bps == pytest.approx(888_120)
    assert (sample.snr_db, sample.age_s) == (None, 2.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("time_s,x\n1,2\n", "should have a column of times (time_s, t_s) and one of snr_db, rate_bps"),
        ("snr_db\n2\n", "its columns are: snr_db"),
        ("time_s,snr_db\n1,x\n", "line 2: snr_db should be a number, it is 'x'"),
        ("time_s,snr_db\n1,nan\n", "line 2: snr_db should be a number"),
        ("time_s,snr_db\n1,1e9\n", "line 2: snr_db should be a number in -200..200, it is '1e9'"),
        ("time_s,snr_db\n,1\n", "line 2: time_s should be a number"),
        ("time_s,rate_bps\n1,-5\n", "line 2: rate_bps should be a number in 0..1e+15, it is '-5'"),
        ("time_s,cqi\n1,16\n", "line 2: cqi should be a number in 0..15"),
        ("time_s,cqi\n1,3\n1,2.5\n", "line 3: cqi should be a whole number, it is 2.5"),
        ("", "at least one row"),
    ],
)
def test_bad_files_are_one_line(text, said, tmp_path):
    with pytest.raises(BadFile) as caught:
        read_trace(written(tmp_path / "bad.csv", text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadFile, match=r"cannot read .*nowhere\.csv: No such file"):
        read_trace(tmp_path / "nowhere.csv")


def test_bad_records_and_times_are_refused():
    with pytest.raises(ValueError, match="got nan"):
        trace_of([0.0]).at(math.nan)
    with pytest.raises(ValueError, match="must not fall"):
        trace_of([1.0, 0.0])
    with pytest.raises(ValueError, match=r"got lengths \[0\]"):
        trace_of([])
    with pytest.raises((ValueError, TypeCheckError), match=r"got lengths \[1, 2\]|Type-check"):
        LinkTrace(times_s=np.zeros(1), snr_db=np.zeros(2), rate_bps=np.zeros(1), cqi=np.zeros(1))
