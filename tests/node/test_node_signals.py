"""Signals: what they ask for is noted, by nothing that a handler could wait for."""

import signal
from collections.abc import Iterator

import pytest

from nmoe.node.process import Signals


@pytest.fixture
def signals() -> Iterator[Signals]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield Signals()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_set_plain_flags(signals: Signals) -> None:
    assert vars(signals) == {"stop": False, "at_once": False, "reload": False}
    signal.raise_signal(signal.SIGHUP)
    assert vars(signals) == {"stop": False, "at_once": False, "reload": True}
    signal.raise_signal(signal.SIGTERM)
    assert (signals.stop, signals.at_once) == (True, False)
    signal.raise_signal(signal.SIGTERM)
    assert (signals.stop, signals.at_once) == (True, True)


def test_an_interrupt_ends_at_once(signals: Signals) -> None:
    signal.raise_signal(signal.SIGINT)
    assert (signals.stop, signals.at_once) == (True, True)
