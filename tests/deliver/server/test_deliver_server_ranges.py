"""Ranges: RFC 9110's cases, and sent bytes against a plain set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe.deliver.server.ranges import MAX_PIECES, SentBytes, Stretch, Unsatisfiable, wanted_stretch


@pytest.mark.parametrize(
    ("header", "stretch"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-9", (0, 10)),
        ("bytes=5-", (5, 10)),
        ("bytes=9-99999", (9, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("BYTES=2-4", (2, 5)),
    ],
)
def test_a_range_is_understood(header, stretch):
    assert wanted_stretch(header, 10) == Stretch(*stretch)


@pytest.mark.parametrize(
    "header", [None, "", "bytes", "bytes=", "bytes=-", "bytes=5-2", "bytes=a-b", "bytes=0-1,3-4", "lines=0-1", "bytes=1--2"]
)
def test_what_is_no_single_range_is_ignored(header):
    assert wanted_stretch(header, 10) is None


@pytest.mark.parametrize("header", [f"bytes={'9' * 19}-", f"bytes=-{'9' * 5000}", "bytes=٣-٤"])
def test_numbers_beyond_any_file_are_ignored(header):
    assert wanted_stretch(header, 10) is None


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=11-12", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-1", 0)])
def test_a_range_without_a_byte_is_unsatisfiable(header, size):
    with pytest.raises(Unsatisfiable):
        wanted_stretch(header, size)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=30), st.integers(0, 70), st.integers(0, 20))
def test_missing_bytes_are_those_of_no_piece(pieces, start, length):
    sent, every = SentBytes(), set()
    for first, size in pieces:
        sent.add(first, first + size)
        every |= set(range(first, first + size))
    assert sent.missing(start, start + length) == len(set(range(start, start + length)) - every)


def test_the_number_of_pieces_is_bounded():
    sent = SentBytes()
    for position in range(MAX_PIECES + 10):
        sent.add(2 * position, 2 * position + 1)
    assert sent.missing(0, 20) == 20, "the first are forgotten, so they would be planned for again"
    assert sent.missing(20, 40) == 10
