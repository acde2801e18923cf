"""The server as a real process and over real sockets: killed, told to stop, orphaned, beside another, on a broken database."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx
import pytest

from nmoe.http import ServerError
from nmoe.market.service import LedgerError, MarketClient, MarketRefusal, MarketServer, MarketSettings
from nmoe.market.service import server as server_module

TOKEN = "secret"


def words(database, *more):
    return [sys.executable, "-m", "nmoe", "market", "serve", "--database", str(database), "--http", "127.0.0.1:0", *more]


@contextmanager
def process(database, *more):
    """Run the command; yields the process and its address."""
    environment = {**os.environ, "NMOE_OPERATOR_TOKEN": TOKEN}
    arguments = words(database, "--epoch-s", "0", *more)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(arguments, **pipes, text=True, env=environment) as running:
        try:
            ready = running.stdout.readline().split()
            assert ready, running.stderr.read()
            yield running, ready[1]
        finally:
            running.kill()


def refused(*arguments):
    """Run a command that has to fail; return what it said."""
    done = subprocess.run(list(arguments), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_every_acknowledged_bid_survives_a_kill_in_the_middle(tmp_path):
    acknowledged, tried = {}, set()
    enough = threading.Event()

    def bid_on(worker):
        with MarketClient(address, attempts=1) as client, suppress(MarketRefusal):
            for number in range(10_000):
                user = f"w{worker}-{number}"
                tried.add(user)
                acknowledged[user] = client.bid(user, 1.0 + number, epoch=1, key="k", demand=1)
                if len(acknowledged) > 150:
                    enough.set()

    with process(tmp_path / "m") as (running, address), ThreadPoolExecutor(8) as pool:
        workers = [pool.submit(bid_on, worker) for worker in range(8)]
        assert enough.wait(60)
        running.send_signal(signal.SIGKILL)
        for worker in workers:
            worker.result()
    with process(tmp_path / "m") as (_, address), MarketClient(address) as client:
        for user, receipt in list(acknowledged.items())[:5]:
            again = client.bid(user, client.own_bid(receipt)["sent"]["bid"], epoch=1, key="k", demand=1)
            assert again == receipt, "a retry after the crash gets the first answer"
        client.close_epoch(1, TOKEN)
        kept = [bid["id"] for bid in client.epoch(1)["bids"]]
    assert len(kept) == len(set(kept)), "nothing counts twice"
    assert acknowledged.keys() <= set(kept) <= tried


def test_a_signal_ends_it_and_its_answer_can_be_verified(tmp_path):
    with process(tmp_path / "m", "--mechanism", "aeria-ef") as (running, address), MarketClient(address) as client:
        commitment = client.current()["commitment"]
        for user, bid in (("a", 3.0), ("b", 2.0)):
            receipt = client.bid(user, bid, demand=1)
        (tmp_path / "receipt.json").write_bytes(receipt.written())
        client.close_epoch(1, TOKEN)
        (tmp_path / "EPOCH.json").write_bytes(httpx.get(f"{address}/epochs/1").content)
        (tmp_path / "workloads.json").write_bytes(httpx.get(f"{address}/workloads").content)
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0
        assert running.stderr.read() == ""
    check = [sys.executable, "-m", "nmoe", "market", "verify", str(tmp_path / "EPOCH.json")]
    more = ["--commitment", commitment, "--receipt", str(tmp_path / "receipt.json"), "--workloads", str(tmp_path / "workloads.json")]
    done = subprocess.run([*check, *more], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("epoch 1: right. 2 bids")
    record = json.loads((tmp_path / "EPOCH.json").read_text())
    record["outcome"]["users"][0]["payment"] += 1e-3
    (tmp_path / "EPOCH.json").write_text(json.dumps(record, separators=(",", ":")))
    assert refused(*check).endswith("is not what the rules make of its bids: 2 differences")


def test_a_full_disk_ends_it_and_loses_nothing(tmp_path):
    """A limit on the size of files stands in for the disk."""
    acknowledged = []
    with process(tmp_path / "m") as (running, address), MarketClient(address, attempts=1) as client:
        resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (150_000, 150_000))
        with suppress(MarketRefusal):
            while (number := len(acknowledged)) < 2000:
                acknowledged.append(client.bid(f"u{number}", 1.0, epoch=1, demand=1).id)
        assert running.wait(20) == 2
        (line,) = running.stderr.read().splitlines()
        assert line.startswith(f"error: cannot use the database {tmp_path / 'm'}: ")
    assert 0 < len(acknowledged) < 2000
    with process(tmp_path / "m") as (_, address), MarketClient(address) as client:
        client.close_epoch(1, TOKEN)
        assert set(acknowledged) <= {bid["id"] for bid in client.epoch(1)["bids"]}


def test_it_ends_with_its_parent(tmp_path):
    with process(tmp_path / "m", "--exit-with-parent") as (running, _):
        running.stdin.close()
        assert running.wait(20) == 0


@contextmanager
def serving(path, **settings):
    server = MarketServer(path, "127.0.0.1", 0, settings=MarketSettings(**{"epoch_s": 0, "operator_token": TOKEN, **settings}))
    try:
        with httpx.Client(base_url=f"http://{server.start()}", timeout=60) as client:
            yield client, server
    finally:
        server.stop()


def test_an_address_in_use_is_one_line_and_lets_go_of_the_database(tmp_path):
    with serving(tmp_path / "m") as (client, _):
        with pytest.raises(ServerError, match=f"127.0.0.1:{client.base_url.port}"):
            MarketServer(tmp_path / "other", "127.0.0.1", client.base_url.port, settings=MarketSettings()).start()
        with pytest.raises(LedgerError):
            MarketServer(tmp_path / "m", "127.0.0.1", 0, settings=MarketSettings())
        MarketServer(tmp_path / "other", "127.0.0.1", 0, settings=MarketSettings()).stop()


def test_a_header_that_never_ends_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "HEADER_S", 0.4)
    with serving(tmp_path / "m") as (client, _), socket.create_connection(("127.0.0.1", client.base_url.port), timeout=20) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\n")
        assert slow.recv(100) == b"", "closed"


def test_a_header_that_grows_without_end_is_cut(tmp_path):
    with serving(tmp_path / "m") as (client, _), socket.create_connection(("127.0.0.1", client.base_url.port), timeout=20) as greedy:
        greedy.sendall(b"GET / HTTP/1.1\r\nX: ")
        with suppress(OSError):
            for _ in range(200):
                greedy.sendall(b"y" * 65536)
            assert greedy.recv(100) == b""
        assert client.get("/health/ready").status_code == 200


def test_epochs_end_by_themselves(tmp_path):
    with serving(tmp_path / "m", epoch_s=0.2) as (client, _):
        for _ in range(500):
            if client.get("/epochs/current").json()["epoch"] >= 3:
                break
        assert client.get("/epochs/1").json()["state"] == "closed"


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"epoch_s": -1.0}, "an epoch of 0.1"),
        ({"epoch_s": float("nan")}, "an epoch of 0.1"),
        ({"epoch_s": 0.0}, "operator's token"),
        ({"mechanism": "no"}, "mechanism must be one of"),
        ({"mechanism": "fixed-price"}, "price"),
        ({"capacity": -1.0}, "capacity"),
        ({"capacity": float("nan")}, "capacity"),
        ({"unit_cost": float("inf")}, "unit cost"),
        ({"base": 1.0}, "base"),
        ({"max_bids": 0}, "at least 1 bid"),
        ({"operator_token": "a\nb"}, "printable"),
    ],
)
def test_settings_are_checked(settings, part):
    with pytest.raises(ValueError, match=part):
        MarketSettings(**settings)


def test_schemathesis_finds_nothing_undocumented(tmp_path):
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    tried = 0
    with serving(tmp_path / "m") as (client, _):
        url = str(client.base_url)
        for user in "abc":
            client.post("/bids", json={"id": user, "bid": 2, "demand": 1})
        client.post("/epochs/1/close", headers={"authorization": f"Bearer {TOKEN}"})
        for result in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
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
        assert client.get("/health/ready").status_code == 200
    assert tried >= 60
