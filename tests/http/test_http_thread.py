"""The thread over real sockets: its start and end, what runs beside it, and clients that write or read too slowly or too much."""

import asyncio
import socket
import time
from contextlib import asynccontextmanager, contextmanager, suppress

import httpx
import pytest

from nmoe.core.errors import BadFile
from nmoe.http import HttpThread, ServerError, beside, listen

LARGE = 16 << 20  # more than a kernel keeps for a connection


async def answer(scope, receive, send):
    """Answer at once; the rest of a body may come or not."""
    body = bytes(LARGE) if scope["path"] == "/large" else b"hello"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


async def read_all(scope, receive, send):
    """Answer when the body is there."""
    while (await receive()).get("more_body"):
        pass
    await answer(scope, receive, send)


@contextmanager
def serving(app=answer, **options):
    thread = HttpThread(app, **{"name": "test", "drain_s": 0.5, "header_s": 10.0, **options})
    try:
        yield thread, thread.start(listen("127.0.0.1", 0))
    finally:
        thread.stop()


def dial(address, receive_bytes=None):
    host, _, port = address.rpartition(":")
    made = socket.socket()
    made.settimeout(20)
    if receive_bytes is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    made.connect((host, int(port)))
    return made


def test_it_answers_until_it_is_stopped():
    with serving() as (thread, address):
        thread.check()
        assert httpx.get(f"http://{address}").text == "hello"
        with pytest.raises(ServerError, match=address):
            listen("127.0.0.1", int(address.rpartition(":")[2]))
        thread.stop()
        assert not thread.running
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://{address}")
    HttpThread(answer, name="test", drain_s=0.1, header_s=1.0).stop()


@pytest.mark.parametrize("protocol", ["h11", None])
def test_a_header_that_does_not_come_is_cut(protocol):
    with serving(header_s=0.4, **({} if protocol is None else {"http": protocol})) as (_, address), dial(address) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nX: ")
        assert slow.recv(100) == b""


@pytest.mark.parametrize("begun", [b"GET / HTTP/1.1\r\nX: ", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: "])
def test_a_header_or_trailer_that_grows_without_end_is_cut(begun):
    with serving(read_all) as (_, address), dial(address) as greedy:
        greedy.sendall(begun)
        with suppress(OSError):
            for _ in range(200):
                greedy.sendall(b"y" * 65536)
            assert greedy.recv(100) == b""
        assert httpx.get(f"http://{address}").text == "hello"


def test_a_body_may_be_longer_than_a_header_even_after_the_answer():
    with serving() as (_, address), dial(address) as client:
        client.sendall(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {LARGE}\r\n\r\n".encode())
        assert client.recv(1000).endswith(b"hello")
        client.sendall(bytes(LARGE))
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1000).endswith(b"hello"), "the connection goes on"


@pytest.mark.parametrize("abandon", [False, True])
def test_who_does_not_take_the_rest_of_an_answer_may_be_given_up(abandon):
    with serving(header_s=0.4, abandon=abandon) as (_, address), dial(address, 4096) as slow:
        slow.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        time.sleep(1.5)
        came = 0
        with suppress(ConnectionResetError):
            while piece := slow.recv(1 << 20):
                came += len(piece)
        assert (came < LARGE) == abandon


def test_what_runs_beside_it_begins_before_and_ends_after():
    seen = []

    async def tick():
        seen.append("tick")
        await asyncio.sleep(3600)

    @asynccontextmanager
    async def lifespan():
        seen.append("begin")
        async with beside(tick()):
            yield
        seen.append("end")

    with serving(lifespan=lifespan) as (_, address):
        assert httpx.get(f"http://{address}").text == "hello"
        assert seen == ["begin", "tick"]
    assert seen == ["begin", "tick", "end"]


@pytest.mark.parametrize("error", [BadFile("damaged"), ValueError("out of range")])
def test_what_cannot_begin_is_raised_by_the_start(error):
    @asynccontextmanager
    async def lifespan():
        raise error
        yield

    with pytest.raises(type(error), match=str(error)), serving(lifespan=lifespan):
        pass


def test_a_failure_beside_it_is_told():
    async def fail():
        await asyncio.sleep(0.05)
        thread.leave()
        raise BadFile("gone")

    with serving(lifespan=lambda: beside(fail())) as (thread, _):
        thread.wait(20)
        with pytest.raises(BadFile, match="gone"):
            thread.check()
