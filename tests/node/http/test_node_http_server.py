"""The server: taken addresses, limits, slow clients, a thousand connections at once, and an end that lets requests finish."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from nmoe.http import ServerError
from nmoe.http.thread import allow_files
from nmoe.node.http import HttpServer

INFER = "/v2/models/nmoe/infer"
PIXELS = [0] * 16


def dial(server: HttpServer) -> socket.socket:
    host, _, port = server.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def test_importing_the_node_does_not_import_the_server():
    script = "import sys, nmoe.node; print(sorted({'fastapi', 'uvicorn', 'starlette', 'prometheus_client'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_taken_address_is_an_error(serve, service):
    port = int(serve(service).address.rpartition(":")[2])
    second = HttpServer(service, "127.0.0.1", port, max_body_bytes=1000)
    with pytest.raises(ServerError, match=f"127.0.0.1:{port}"):
        second.start()
    second.stop()
    with pytest.raises(ServerError):
        HttpServer(service, "192.0.2.1", 0, max_body_bytes=1000).start()


def test_address_only_after_start(service):
    with pytest.raises(ServerError):
        _ = HttpServer(service, "127.0.0.1", 0, max_body_bytes=1000).address


def test_stopping_twice_and_before_the_start(serve, service):
    HttpServer(service, "127.0.0.1", 0, max_body_bytes=1000).stop()
    server = serve(service)
    server.stop()
    server.stop()


def test_connections_are_kept_alive(ask):
    sockets = set()
    for _ in range(5):
        assert ask("GET", "/v2").status == 200
        sockets.add(id(ask.connection.sock))
    assert len(sockets) == 1
    assert ask.connection.sock is not None


def test_too_large_a_body_by_its_announcement_and_as_it_comes(serve, service, connect, infer_request):
    server = serve(service, max_body_bytes=2000)
    client = connect(server)
    assert client("POST", INFER, bytes(2001), {"content-type": "application/json"}).status == 413
    assert client("POST", INFER, iter([bytes(900)] * 3), {"content-type": "application/json"}).status == 413
    assert client("POST", "/v2/models/nmoe/feedback", bytes(2001), {"content-type": "application/json"}).status == 413
    assert connect(server)("POST", INFER, infer_request(PIXELS)).status == 200


def test_bodies_that_together_are_too_many_bytes_are_told_busy(serve, service, connect, infer_request):
    server = serve(service, max_held_bytes=3000)
    with dial(server) as slow:  # 2,000 bytes have come and are held until the rest does
        header = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2500\r\n\r\n"
        slow.sendall(header.encode() + b" " * 2000)
        client = connect(server)
        padded = json.dumps(infer_request(PIXELS)).encode().ljust(1500)
        told = client("POST", INFER, padded, {"content-type": "application/json"})
        assert (told.status, told.headers["retry-after"]) == (503, "1")
        assert told.json["error"].startswith("busy: the bodies of other requests")
        assert client("POST", INFER, infer_request(PIXELS)).status == 200, "a small one still has room"
    for _ in range(100):  # the slow one went away, and its bytes are free
        if client("POST", INFER, padded, {"content-type": "application/json"}).status == 200:
            break
        time.sleep(0.01)
    else:
        pytest.fail("bytes of a client that went away are still counted")


def test_a_body_that_does_not_come_is_given_up(serve, service):
    server = serve(service, body_timeout_s=0.3)
    with dial(server) as slow:
        slow.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert b" 408 " in slow.recv(1000).split(b"\r\n")[0]


def test_slow_clients_are_ended_and_hold_up_nobody(serve, service, connect, infer_request):
    server = serve(service, header_timeout_s=1.0)
    slow = [dial(server) for _ in range(50)]
    for one in slow:
        one.sendall(b"GET /v2 HTTP/1.1\r\nX-Slow: ")
    began_s = time.monotonic()
    client = connect(server)
    for _ in range(20):
        assert client("POST", INFER, infer_request(PIXELS)).status == 200
    assert time.monotonic() - began_s < 1.0
    slow[0].sendall(b"a")  # a byte now and then does not help
    for one in slow:
        assert one.recv(100) == b""
        one.close()


def test_a_header_that_grows_without_end_is_cut(serve, service, connect):
    server = serve(service)
    with dial(server) as greedy:
        greedy.sendall(b"GET /v2 HTTP/1.1\r\nX: ")
        with suppress(OSError):
            for _ in range(200):
                greedy.sendall(b"y" * 65536)
            assert greedy.recv(100) == b""
    assert connect(server)("GET", "/v2").status == 200


def test_what_is_not_http_is_refused(serve, service, connect):
    server = serve(service)
    with dial(server) as stranger:
        stranger.sendall(b"\x16\x03\x01 not http\r\n\r\n")
        assert b" 400 " in stranger.recv(1000)
    assert connect(server)("GET", "/v2").status == 200


def test_stop_lets_a_request_in_progress_finish(serve, service, connect, infer_request):
    service.wait_s = 0.5
    server = serve(service)
    client, answers = connect(server), []
    thread = threading.Thread(target=lambda: answers.append(client("POST", INFER, infer_request(PIXELS))))
    thread.start()
    while not service.at_once:
        time.sleep(0.01)
    server.stop()
    thread.join()
    assert answers[0].status == 200
    with pytest.raises(OSError, match="refused"):
        dial(server)


def test_stop_ends_though_a_request_does_not(service, connect, infer_request):
    service.wait_s = 60
    server = HttpServer(service, "127.0.0.1", 0, max_body_bytes=10_000, drain_s=0.5)
    server.start()
    client = connect(server)
    client.connection.request("POST", INFER, json.dumps(infer_request(PIXELS, parameters={"deadline_ms": 50_000})))
    while not service.at_once:
        time.sleep(0.01)
    began_s = time.monotonic()
    server.stop()
    assert time.monotonic() - began_s < 4


def test_a_thousand_connections_at_once_are_each_answered_or_told_busy(serve, service, infer_request):
    allow_files()
    service.wait_s, service.most_at_once = 0.05, 100
    server = serve(service)
    host, _, port = server.address.rpartition(":")
    body = json.dumps(infer_request(PIXELS)).encode()
    request = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    async def one(everybody: asyncio.Barrier) -> int:
        reader, writer = await asyncio.open_connection(host, int(port))
        await everybody.wait()  # all thousand are open now
        writer.write(request)
        status = int((await reader.readuntil(b"\r\n")).split()[1])
        writer.close()
        await writer.wait_closed()
        return status

    async def all_of_them() -> list[int]:
        everybody = asyncio.Barrier(1000)
        async with asyncio.timeout(60):
            return await asyncio.gather(*(one(everybody) for _ in range(1000)))

    statuses = asyncio.run(all_of_them())
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 100
    assert service.at_once == 0
