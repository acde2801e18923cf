"""Queries under way: each settled once, at its time, whatever its window does."""

import time
from collections.abc import Iterator

import pytest

from nmoe.node.timers import Timers
from nmoe.node.transport.asks import Ask, Asks
from nmoe.node.transport.base import Service, Silence


@pytest.fixture
def timers() -> Iterator[Timers]:
    made = Timers("test-timers")
    made.start()
    yield made
    made.close()


class Wire:
    """Takes queries and answers them when told."""

    def __init__(self, timers: Timers, *, fails: Silence | None = None) -> None:
        self.sent: list[Ask] = []
        self.fails = fails
        self.asks = Asks(self.send, timers)

    def send(self, ask: Ask) -> Silence | None:
        self.sent.append(ask)
        return self.fails

    def ask(self, size: int, timeout_s: float, replies: list[bytes | Silence]) -> Ask:
        ask = Ask(
            node="b", service=Service.EXPERT, key="k", payload=bytes(size), until_s=time.monotonic() + timeout_s, on_reply=replies.append
        )
        self.asks.submit(ask)
        return ask


def test_queries_behind_a_large_one_are_told_at_their_time_and_nothing_nests(timers: Timers, eventually) -> None:
    wire = Wire(timers)
    first: list[bytes | Silence] = []
    behind: list[bytes | Silence] = []
    large = wire.ask(700_000, 30.0, first)
    for _ in range(4000):
        wire.ask(900, 0.1, behind)
    eventually(lambda: len(behind) == 4000, within_s=5)
    assert set(behind) == {Silence.TIMEOUT}
    assert len(wire.sent) == 1
    wire.asks.settle(large, b"done")
    assert first == [b"done"]


def test_thousands_that_cannot_be_sent_end_without_nesting(timers: Timers) -> None:
    wire = Wire(timers)
    replies: list[bytes | Silence] = []
    large = wire.ask(700_000, 30.0, [])
    for _ in range(3000):
        wire.ask(900, 30.0, replies)
    wire.fails = Silence.GONE
    wire.asks.settle(large, b"done")
    assert replies == [Silence.GONE] * 3000


def test_settled_queries_hold_nothing(timers: Timers) -> None:
    wire = Wire(timers)
    replies: list[bytes | Silence] = []
    kept = [wire.ask(2_000, 60.0, replies) for _ in range(600)]
    while len(replies) < 600:
        wire.asks.settle(wire.sent[len(replies)], b"r")
    assert all(ask.payload == b"" and ask.on_reply is None for ask in kept)
    assert len(timers._heap) < 600
    wire.asks.settle(kept[0], b"again")
    assert replies == [b"r"] * 600


def test_a_node_that_is_gone_ends_what_waits_for_it(timers: Timers) -> None:
    wire = Wire(timers)
    first: list[bytes | Silence] = []
    behind: list[bytes | Silence] = []
    large = wire.ask(700_000, 30.0, first)
    wire.ask(900, 30.0, behind)
    wire.asks.lost("b")
    assert behind == [Silence.GONE]
    wire.asks.settle(large, Silence.GONE)
    assert first == [Silence.GONE]


def test_closing_ends_what_waits(timers: Timers) -> None:
    wire = Wire(timers)
    behind: list[bytes | Silence] = []
    wire.ask(700_000, 30.0, [])
    wire.ask(900, 30.0, behind)
    wire.asks.close()
    assert behind == [Silence.GONE]
    wire.ask(900, 30.0, behind)
    assert behind == [Silence.GONE, Silence.GONE]
