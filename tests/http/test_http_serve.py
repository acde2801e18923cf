"""Serving until told: by a signal, by the end of a lifeline, or by a server that broke down."""

import os
import signal

import pytest

from nmoe.http import ServerError, serve_until_told


class Fake:
    """Counts how often it is looked at."""

    def __init__(self, look):
        self.look, self.stopped = look, 0

    def start(self):
        return "127.0.0.1:1"

    def check(self):
        self.look()

    def stop(self):
        self.stopped += 1


@pytest.fixture(autouse=True)
def _handlers():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    yield
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(number):
    lines, server = [], Fake(lambda: os.kill(os.getpid(), number))
    serve_until_told(server, tell=lines.append)
    assert lines == ["ready http://127.0.0.1:1"]
    assert server.stopped == 1


def test_the_end_of_its_lifeline_ends_it():
    reading, writing = os.pipe()
    closing = [writing]
    server = Fake(lambda: os.close(closing.pop()) if closing else None)
    serve_until_told(server, tell=lambda _: None, lifeline=reading)
    assert server.stopped == 1
    os.close(reading)


def test_a_server_that_broke_down_is_an_error():
    def look():
        raise ServerError("broke down")

    server = Fake(look)
    with pytest.raises(ServerError, match="broke down"):
        serve_until_told(server, tell=lambda _: None)
    assert server.stopped == 1
