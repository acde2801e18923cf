"""Random problems for the planner's tests: tight and slack ones, layers without bytes or work, static power, links of both kinds.

And a file server with faults, for the tests of streaming.
"""

import re
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from nmoe.deliver.scenario import ModelProfile, Receiver, Scenario

FLOPS = 1e12  # of every device

DrawProblem = Callable[..., Scenario]


def draw_problem(rng: np.random.Generator, *, users: int = 4, models: int = 3, layers: int = 8, plain: bool = False) -> Scenario:
    """Return a scenario with up to so many users, models and layers; plain ones have nothing but the paper's terms."""
    profiles = {}
    for place in range(int(rng.integers(1, models + 1))):
        depth = int(rng.integers(1, layers + 1))
        sizes, work = (rng.exponential(1, depth) * (rng.random(depth) < (1 if plain else 0.85)) for _ in range(2))
        sizes[rng.integers(depth)] += 0.5
        work[rng.integers(depth)] += 0.5
        sizes, work = sizes / sizes.sum() * rng.uniform(0.2, 2) * 1e6, work / work.sum() * rng.uniform(0.1, 1) * FLOPS
        profiles[f"m{place}"] = ModelProfile(name=f"m{place}", layer_bytes=tuple(sizes.tolist()), layer_flops=tuple(work.tolist()))
    return Scenario(
        bandwidth_hz=8e6,
        models=profiles,
        users=tuple(draw_user(rng, f"u{place}", profiles, plain) for place in range(int(rng.integers(1, users + 1)))),
    )


def draw_user(rng: np.random.Generator, name: str, models: dict[str, ModelProfile], plain: bool) -> Receiver:
    """Return a user; about half of them are short of energy rather than of time, just above the least for one of the models."""
    power, deadline_s, batch = rng.uniform(5, 30), rng.uniform(0.5, 3), int(rng.integers(1, 3))
    work_s = batch * sum(rng.choice(list(models.values())).layer_flops) / FLOPS
    least_j = power * work_s**3 / deadline_s**2
    extra = (
        {}
        if plain
        else {
            "static_power_w": power * rng.choice([0, 0.1, 1.0]),
            "receive_power_w": power * rng.choice([0, 0.05]),
            "min_clock": float(rng.choice([0, 0.3, 0.9])),
            "fixed_power": bool(rng.random() < 0.3),
        }
    )
    return Receiver(
        id=name,
        spectral_efficiency=rng.uniform(0.5, 8),
        deadline_s=deadline_s,
        energy_j=least_j * rng.uniform(1.05, 2) if rng.random() < 0.5 else power * rng.uniform(0.05, 1.2),
        batch=batch,
        device_flops=FLOPS,
        power_w=power,
        layer_overhead_s=float(rng.choice([0, 0.01])),
        models=tuple(rng.permutation(list(models))[: rng.integers(1, len(models) + 1)].tolist()),
        weight=rng.uniform(0.5, 3),
        **extra,
    )


@pytest.fixture(scope="session", name="draw_problem")
def drawing() -> DrawProblem:
    """Give ``draw_problem`` to tests, which cannot import it."""
    return draw_problem


class _FaultyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        pass

    def handle(self):
        with suppress(ConnectionError, ssl.SSLError):  # a client that was killed, or has enough, or does not trust us
            super().handle()

    def do_GET(self):
        server = self.server.owner
        name = self.path.strip("/")
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        server.requests.append((name, (int(asked[1]), int(asked[2]) + 1) if asked else None))
        if server.silent and asked and int(asked[1]):
            server.silent_asked.set()
            server.closing.wait(30)
            return
        status = server.refusals.pop(0) if server.refusals and (server.refuses_beginnings or not asked or int(asked[1])) else None
        if name not in server.files or status:
            self.send_response(status or 404)
            for header in server.refusal_headers.items():
                self.send_header(*header)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, partial = server.files[name], asked is not None and server.ranges
        start, end = (int(asked[1]), min(int(asked[2]) + 1, len(data))) if partial else (0, len(data))
        if partial and start >= len(data):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        if server.etag:
            self.send_header("ETag", f'"{server.etag}"')
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        self._send(server, name, start, end)

    def _send(self, server, name, at, end):
        while at < end:
            stop = min([end, at + 16384, *(mark for mark in (*server.breaks, *server.stalls, *server.holds) if mark > at)])
            if at in server.holds and not server.released.wait(30):
                return
            if at in server.stalls:
                server.stalls.remove(at)
                server.closing.wait(30)
            if at in server.breaks:
                server.breaks.remove(at)
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            portion = bytearray(server.files[name][at:stop])
            for wrong in {wrong for wrong in server.wrong_bytes if at <= wrong < stop}:
                server.wrong_bytes.remove(wrong)
                portion[wrong - at] ^= 1
            try:
                self.wfile.write(portion)
            except OSError:
                return
            server.sent_bytes += len(portion)
            at = stop


class FaultyServer:
    """A file server on loopback whose faults a test can choose; offsets are bytes of the file, and each fault happens once per entry.

    ``holds``: bytes from there on are withheld until ``released`` is set. ``breaks``: connections end there. ``stalls``: nothing more is
    sent on that connection. ``wrong_bytes``: sent with a bit flipped. ``refusals``: statuses of the next requests that are not for the
    beginning of a file, or for one too where ``refuses_beginnings``, sent with ``refusal_headers``. ``silent``: requests that are not for
    the beginning get no answer, not even headers. ``tls``: the context of its certificate, for https.
    """

    def __init__(self, tls=None):
        self.files, self.etag, self.ranges = {}, "one", True
        self.requests, self.sent_bytes = [], 0
        self.silent, self.refuses_beginnings, self.refusal_headers = False, False, {}
        self.holds, self.breaks, self.stalls, self.wrong_bytes, self.refusals = [], [], [], [], []
        self.released, self.closing, self.silent_asked = threading.Event(), threading.Event(), threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _FaultyHandler)
        self._http.daemon_threads, self._http.owner = True, self
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self):
        self.closing.set()
        self.released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture(name="faulty_server")
def serving():
    """Give a function that starts a ``FaultyServer``; all are closed at the end."""
    with ExitStack() as stack:

        def start(tls=None):
            server = FaultyServer(tls)
            stack.callback(server.close)
            return server

        yield start
