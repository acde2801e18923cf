"""Timers: what is due is called, and a thread that did not run for a while says so."""

import threading
import time

import pytest

from nmoe.node.timers import Timers


@pytest.fixture
def gaps():
    """Return timers that collect their gaps."""
    found: list[float] = []
    timers = Timers("test-timers", on_gap=found.append, gap_s=0.2)
    timers.start()
    yield timers, found
    timers.close()


def test_calls_come_in_order_of_their_times(gaps):
    timers, _ = gaps
    said, done = [], threading.Event()
    now_s = time.monotonic()
    timers.at(now_s + 0.05, lambda: (said.append("later"), done.set()))
    timers.at(now_s, lambda: said.append("now"))
    timers.cancel(timers.at(now_s + 0.01, lambda: said.append("never")))
    assert done.wait(10)
    assert said == ["now", "later"]


def test_a_thread_that_stood_still_says_for_how_long_even_within_a_call(gaps):
    timers, found = gaps
    done = threading.Event()
    timers.at(time.monotonic(), lambda: time.sleep(0.5))
    timers.at(time.monotonic() + 0.6, done.set)
    assert done.wait(10)
    assert max(found) >= 0.5


def test_without_gaps_nothing_is_said():
    found: list[float] = []
    timers = Timers("test-timers", on_gap=found.append, gap_s=30.0)
    timers.start()
    done = threading.Event()
    timers.at(time.monotonic() + 0.1, done.set)
    assert done.wait(10)
    timers.close()
    assert found == []
