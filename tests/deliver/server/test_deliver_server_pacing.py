"""Pacing: by accounting, in virtual time."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe.deliver.server.pacing import BURST_S, LEAST_CHUNK, RateWindow, Taken, TokenBucket


@given(st.lists(st.tuples(st.floats(1e3, 1e7), st.floats(0, 3)), min_size=1, max_size=20))
def test_no_more_leaves_than_the_rates_allow(steps):
    bucket, now_s, allowed, left = TokenBucket(0.0), 0.0, 0.0, 0
    most = 0.0
    for rate, seconds in steps:
        bucket.set_rate(rate, now_s)
        until_s, most = now_s + seconds, max(most, rate)
        while (wait_s := bucket.wait_s(bucket.chunk, now_s)) <= until_s - now_s:
            now_s += wait_s
            bucket.take(bucket.chunk, now_s)
            left += bucket.chunk
            if wait_s == 0 and bucket.chunk / rate == 0:
                break
        now_s, allowed = until_s, allowed + rate * seconds
    assert left <= allowed * (1 + 1e-9) + 1
    assert left >= allowed - 2 * max(most * BURST_S, 64 << 10), "somebody who always sends gets all but the last chunk"


def test_a_pause_saves_up_no_more_than_a_burst():
    bucket = TokenBucket(0.0)
    bucket.set_rate(1e6, 0.0)
    assert bucket.wait_s(int(1e6 * BURST_S), 100.0) == 0
    assert bucket.wait_s(int(1e6 * BURST_S) + 1000, 100.0) == pytest.approx(1e-3)


def test_without_a_rate_nothing_leaves_until_it_has_one():
    bucket = TokenBucket(0.0)
    assert bucket.wait_s(1, 50.0) == math.inf
    bucket.set_rate(LEAST_CHUNK, 50.0)
    assert bucket.wait_s(LEAST_CHUNK, 50.0) == pytest.approx(1.0)


def test_a_window_counts_only_time_in_which_something_was_sent():
    window = RateWindow(0.0, 1.0)
    assert window.run(5.0, rate=100.0, active=False) is None
    window.took(30)
    assert window.run(5.6, rate=100.0, active=True) is None
    assert window.run(9.0, rate=100.0, active=False) is None
    window.took(20)
    assert window.run(9.5, rate=200.0, active=True) == Taken(pytest.approx(160.0), 50)
    assert window.run(9.6, rate=200.0, active=True) is None, "a new window"
