"""The server over real sockets: paced, outlived by nobody, not stopped by slow, dead or malicious clients."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from nmoe.deliver.server import DeliveryServer, DeliverySettings, ServerError
from nmoe.deliver.server import api as api_module
from nmoe.deliver.server import server as server_module

FILE = "/files/large.safetensors"
USER = {
    "spectral_efficiency": 4.0,
    "deadline_s": 60.0,
    "energy_j": 1e6,
    "batch": 1,
    "device_flops": 1e12,
    "power_w": 10.0,
    "layer_overhead_s": 0.0,
    "models": ["large"],
}
FETCHER = """
import sys, httpx
with httpx.stream("GET", sys.argv[1], headers={"x-nmoe-user": sys.argv[2]}) as answer:
    for number, _ in enumerate(answer.iter_raw()):
        if number == 0:
            print("began", flush=True)
"""


@pytest.fixture
def serve(models: Path, write: Callable[..., Path]) -> Iterator[Callable[..., httpx.Client]]:
    """Start servers; returns clients of them."""
    write(models, "large", layers=4, width=500)
    with ExitStack() as stack:

        def start(**settings: Any) -> httpx.Client:
            server = DeliveryServer(models, "127.0.0.1", 0, settings=DeliverySettings(**{"bandwidth_hz": 4e6, "margin": 0.0, **settings}))
            stack.callback(server.stop)
            return stack.enter_context(httpx.Client(base_url=f"http://{server.start()}", timeout=60))

        yield start


def until(look: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Look again and again until something is there."""
    until_s = time.monotonic() + seconds
    while not (seen := look()) and time.monotonic() < until_s:
        time.sleep(0.05)
    return seen


def user_of(client: httpx.Client, name: str) -> dict[str, Any] | None:
    return next((user for user in client.get("/plan").json()["users"] if user["id"] == name), None)


def test_a_real_transfer_takes_at_least_as_long_as_planned(serve):
    client = serve()
    given = client.put("/users/a", json={**USER, "deadline_s": 3.0}).json()
    began_s = time.monotonic()
    answer = client.get(FILE, headers={"x-nmoe-user": "a"})
    took_s = time.monotonic() - began_s
    assert answer.status_code == 200
    planned_s = 8 * len(answer.content) / given["rate_bps"]
    assert planned_s > 2
    assert took_s > 0.9 * planned_s, "the rate is a bound"
    assert until(lambda: user_of(client, "a")["bandwidth_share"] == 0)
    assert user_of(client, "a")["served"]


def test_a_killed_client_frees_its_share(serve):
    client = serve(bandwidth_hz=0.3e6, idle_s=1.0)
    first = client.put("/users/a", json={**USER, "deadline_s": 30.0}).json()
    assert first["served"]
    words = [sys.executable, "-c", FETCHER, f"{client.base_url}{FILE}", "a"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as fetcher:
        assert fetcher.stdout is not None
        assert fetcher.stdout.readline() == "began\n"
        waiting = client.put("/users/b", json={**USER, "deadline_s": 40.0}).json()
        assert not waiting["served"], "there is room for one"
        assert sum(user["bandwidth_share"] for user in client.get("/plan").json()["users"]) <= 1 + 1e-9
        fetcher.kill()
    assert until(lambda: client.get("/users/b").json()["served"]), "the share of the dead is free"
    assert user_of(client, "a") is None


def test_a_client_that_does_not_read_is_planned_for_as_slow(serve):
    client = serve(bandwidth_hz=4e6)
    given = client.put("/users/a", json={**USER, "deadline_s": 5.0}).json()
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect((client.base_url.host, client.base_url.port))
        lazy.sendall(f"GET {FILE} HTTP/1.1\r\nHost: x\r\nX-Nmoe-User: a\r\n\r\n".encode())
        slow = until(lambda: (user := user_of(client, "a")) and user["spectral_efficiency"] < 2.0 and user)
    assert slow
    assert slow["sent_bytes"] < 1_000_000
    assert not slow["served"] or slow["bandwidth_share"] > given["bandwidth_share"]


def test_stopping_does_not_wait_for_transfers(models, serve):
    serve()
    server = DeliveryServer(models, "127.0.0.1", 0, settings=DeliverySettings(bandwidth_hz=1e4))
    with httpx.Client(base_url=f"http://{server.start()}", timeout=60) as client, client.stream("GET", FILE) as answer:
        assert answer.status_code == 200
        began_s = time.monotonic()
        server.stop()
        assert time.monotonic() - began_s < 8
        assert not server.running
        with pytest.raises(httpx.HTTPError):
            answer.read()


def test_headers_are_bounded(serve):
    client = serve()
    with pytest.raises(httpx.HTTPError):
        client.get(FILE, headers={"x-long": "x" * (1 << 20)}).raise_for_status()
    assert client.get("/plan").status_code == 200


def test_a_header_that_never_ends_is_cut(serve, monkeypatch):
    monkeypatch.setattr(server_module, "HEADER_S", 0.4)
    client = serve()
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=20) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\n")
        assert slow.recv(100) == b"", "closed"


def test_a_header_that_comes_drop_by_drop_is_cut(serve, monkeypatch):
    monkeypatch.setattr(server_module, "HEADER_S", 0.4)
    client = serve()
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=20) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\n")

        def cut() -> bool:
            try:
                slow.sendall(b"X: y\r\n")
            except OSError:
                return True
            return False

        assert until(cut, 10)
    assert client.get("/plan").status_code == 200


def test_a_body_that_does_not_come_is_cut(serve, monkeypatch):
    monkeypatch.setattr(api_module, "BODY_S", 0.2)
    client = serve()
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=20) as slow:
        slow.sendall(b"PUT /users/a HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once(models, write, number):
    write(models, "large", layers=4, width=500)
    words = [sys.executable, "-m", "nmoe", "deliver", "serve", str(models), "--http", "127.0.0.1:0", "--bandwidth-hz", "1e4"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        host, port = process.stdout.readline().strip().rpartition("//")[2].split(":")
        with socket.create_connection((host, int(port))) as slow, socket.create_connection((host, int(port))) as reading:
            slow.sendall(b"GET / HTTP/1.1\r\n")
            reading.sendall(f"GET {FILE} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert reading.recv(12) == b"HTTP/1.1 200"
            process.send_signal(number)
            assert process.wait(10) in {0, 130}
        assert "Traceback" not in process.stderr.read()


def test_an_address_in_use_is_one_line(models, serve):
    client = serve()
    with pytest.raises(ServerError, match=f"127.0.0.1:{client.base_url.port}"):
        DeliveryServer(models, "127.0.0.1", client.base_url.port, settings=DeliverySettings(bandwidth_hz=1e6)).start()


def test_schemathesis_finds_nothing_undocumented(serve):
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

    url = str(serve().base_url)
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in schemathesis.GenerationMode:

            @settings(
                max_examples=15,
                derandomize=True,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(operation.as_strategy(generation_mode=mode))
            def conforms(case) -> None:
                nonlocal tried
                tried += 1
                case.call_and_validate(base_url=url, checks=checks)

            try:
                conforms()
            except Exception as error:
                if type(error).__name__ not in {"Unsatisfiable", "SkipTest"}:
                    raise
    assert tried >= 60
