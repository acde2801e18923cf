"""Addresses are shown without what may be secret."""

import pytest

from nmoe.deliver.address import shown


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("https://h/a/b", "https://h/a/b"),
        ("https://user:word@h:80/a@b?sign=1#x", "https://h:80/a@b"),
        ("http://[::1/f?token=1", "http://[::1/f"),
        ("user:word@h/f", "h/f"),
        ("https://us@er:word@h", "https://h"),
        ("", ""),
    ],
)
def test_no_secrets(url, wanted):
    assert shown(url) == wanted
