"""Numbers in words, at the edges between units."""

import pytest

from nmoe.report import words


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"), (1684.5, "1.7 kB"), (2.5e12, "2.5 TB")],
)
def test_size(count, text):
    assert words.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.00 s"), (9.99, "9.99 s"), (9.999, "10.0 s"), (119.9, "119.9 s"), (120.0, "2 min 00 s"), (3661, "1 h 01 min")],
)
def test_duration(seconds, text):
    assert words.duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (4.184, "4.18 ms"), (9.999, "10.0 ms"), (99.99, "100 ms"), (1234.5, "1,234 ms")])
def test_milliseconds(value, text):
    assert words.milliseconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "none"), (True, "yes"), ([1, 2], "1, 2"), ({"a": 1}, "a=1"), (0.05, "0.05")])
def test_option(value, text):
    assert words.option(value) == text
