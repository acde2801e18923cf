"""Direct links: frames of every size, hostile connections, stuck and dying ends, certificates."""

import datetime as dt
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nmoe.node.keys import init_authority, issue
from nmoe.node.transport.base import Respond, Service, Silence
from nmoe.node.transport.config import TlsFiles
from nmoe.node.transport.direct import GREETING
from nmoe.node.transport.direct_links import DirectLinks
from nmoe.node.transport.stream import HEADER, Loop, Stream

GREET = "mesh/print/b"


class Pair:
    """A node ``b`` that echoes, and a member ``a`` that asks it."""

    def __init__(self, *, tls: TlsFiles | None = None, client: TlsFiles | None = None, members: frozenset[str] | None = None) -> None:
        self.refused: list[tuple[str, str]] = []
        self.held: list[Respond] = []
        self.server = DirectLinks("b", tls=tls, members=members, on_refusal=lambda who, why: self.refused.append((who, why)))
        self.server.serve(Service.EXPERT, lambda data, respond: respond(data))
        self.server.serve(Service.INFER, lambda _, respond: self.held.append(respond))
        self.port = self.server.listen("127.0.0.1", GREET)
        self.client = DirectLinks("a", tls=client, members=None, on_refusal=lambda *_: None)
        self.client.found("b", f"127.0.0.1:{self.port}", GREET)

    def wait(self, within_s: float = 5.0) -> bool:
        until_s = time.monotonic() + within_s
        while not self.client.reaches("b") and time.monotonic() < until_s:
            time.sleep(0.005)
        return self.client.reaches("b")

    def ask(self, payload: bytes, service: Service = Service.EXPERT) -> bytes | Silence:
        replies: list[bytes | Silence] = []
        done = threading.Event()

        def settle(reply: bytes | Silence) -> None:
            replies.append(reply)
            done.set()

        assert self.client.ask("b", service, payload, settle) is not None
        assert done.wait(10)
        return replies[0]

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    assert made.wait()
    yield made
    made.close()


def ended(sock: socket.socket) -> bool:
    """Say whether the other end has closed the connection, or does within some seconds."""
    sock.settimeout(5)
    try:
        while sock.recv(1000):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def files(folder: Path, name: str, *, days: int = 10) -> TlsFiles:
    now = dt.datetime.now(dt.UTC)
    if not (folder / "authority").exists():
        init_authority(folder / "authority", name="test", days=100, now=now)
    return issue(folder / "authority", name, ["127.0.0.1"], days=days, now=now, out=folder / name)


@pytest.mark.parametrize("size", [0, 1, 13, 4096, (1 << 15) - 1, 1 << 15, (1 << 18) - 13, 1 << 18, 3_000_001])
def test_payloads_of_every_size_come_back(pair: Pair, size: int) -> None:
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert pair.ask(payload) == payload


def test_many_askers_get_their_own_answers(pair: Pair) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(50):
            payload = bytes([number]) * (1 + 997 * turn)
            if pair.ask(payload) != payload:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_dying_server_ends_what_is_under_way(pair: Pair) -> None:
    replies: list[bytes | Silence] = []
    for _ in range(5):
        assert pair.client.ask("b", Service.INFER, b"x", replies.append) is not None
    until_s = time.monotonic() + 5
    while len(pair.held) < 5 and time.monotonic() < until_s:
        time.sleep(0.005)
    pair.server.close()
    while len(replies) < 5 and time.monotonic() < until_s:
        time.sleep(0.005)
    assert replies == [Silence.GONE] * 5
    assert pair.client.ask("b", Service.INFER, b"x", replies.append) is None
    pair.held[0](b"too late")  # nobody is left, and nothing breaks


def test_a_forgotten_query_is_not_settled(pair: Pair) -> None:
    replies: list[bytes | Silence] = []
    number = pair.client.ask("b", Service.INFER, b"x", replies.append)
    assert number is not None
    assert pair.client.forget("b", number)
    assert not pair.client.forget("b", number)
    while not pair.held:
        time.sleep(0.005)
    pair.held[0](b"late")
    assert pair.ask(b"still works") == b"still works"
    assert replies == []


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n" * 4, "did not greet"),
        (GREETING + struct.pack("<H", 5) + b"other", "looks for another node or extractor"),
        (GREETING + struct.pack("<H", len(GREET)) + b"\xff" * len(GREET), "looks for another node or extractor"),
        (b"", "did not greet"),
    ],
)
def test_strangers_are_told_off_and_named(pair: Pair, said: bytes, reason: str, eventually: Callable[..., None]) -> None:
    with socket.create_connection(("127.0.0.1", pair.port)) as sock:
        sock.sendall(said)
        with suppress(OSError):  # it may have been told off already
            sock.shutdown(socket.SHUT_WR)
        assert ended(sock)
    eventually(lambda: ("127.0.0.1", reason) in pair.refused)
    assert pair.ask(b"the others go on") == b"the others go on"


def test_a_frame_of_absurd_length_ends_its_connection(pair: Pair) -> None:
    with socket.create_connection(("127.0.0.1", pair.port)) as sock:
        sock.sendall(GREETING + struct.pack("<H", len(GREET)) + GREET.encode() + HEADER.pack(0xFFFFFFFF, 1, 0))
        assert ended(sock)
    assert pair.ask(b"the others go on") == b"the others go on"


def test_an_unknown_service_ends_its_connection(pair: Pair) -> None:
    with socket.create_connection(("127.0.0.1", pair.port)) as sock:
        sock.sendall(GREETING + struct.pack("<H", len(GREET)) + GREET.encode() + HEADER.pack(1, 1, 200) + b"x")
        assert ended(sock)


def test_an_end_that_takes_nothing_is_closed_and_stalls_nobody(pair: Pair) -> None:
    with socket.create_connection(("127.0.0.1", pair.port)) as sock:
        sock.sendall(GREETING + struct.pack("<H", len(GREET)) + GREET.encode())
        large = bytes(1 << 20)
        sock.setblocking(False)
        sent = 0
        until_s = time.monotonic() + 10
        while time.monotonic() < until_s:  # ask for echoes and never read them
            try:
                sent += sock.send(HEADER.pack(len(large), sent, 0) + large if not sent else large)
            except BlockingIOError:
                assert pair.ask(b"healthy") == b"healthy"
            except OSError:
                break
            if sent > 40 << 20:
                break
        assert pair.ask(b"healthy") == b"healthy"


def test_slow_greetings_do_not_keep_others_out(pair: Pair) -> None:
    slow = [socket.create_connection(("127.0.0.1", pair.port)) for _ in range(12)]
    for sock in slow:
        sock.sendall(GREETING[:3])
    other = DirectLinks("late", tls=None, members=None, on_refusal=lambda *_: None)
    other.found("b", f"127.0.0.1:{pair.port}", GREET)
    until_s = time.monotonic() + 1.5
    while not other.reaches("b") and time.monotonic() < until_s:
        time.sleep(0.005)
    assert other.reaches("b")
    other.close()
    for sock in slow:
        assert ended(sock)  # within the time that a greeting may take
        sock.close()


def test_a_way_that_ends_is_found_again(pair: Pair, eventually: Callable[..., None]) -> None:
    way = pair.client._ways["b"]
    assert way.stream is not None
    way.stream.close()
    eventually(lambda: not pair.client.reaches("b"))
    eventually(lambda: pair.client.reaches("b"))
    assert pair.ask(b"again") == b"again"


def test_replies_that_nobody_reads_do_not_pile_up(pair: Pair) -> None:
    with socket.create_connection(("127.0.0.1", pair.port)) as sock:
        sock.sendall(GREETING + struct.pack("<H", len(GREET)) + GREET.encode())
        block = b"".join(HEADER.pack(60_000, number, 0) + bytes(60_000) for number in range(10))
        sock.settimeout(5)

        def flood() -> None:
            for _ in range(400):  # 240 MB of echoes, of which the sockets and the stream hold a part
                sock.sendall(block)

        with pytest.raises(OSError, match=r"reset|Broken pipe|timed out"):
            flood()
    assert pair.ask(b"healthy") == b"healthy"


def test_closing_streams_from_other_threads_harms_nobody() -> None:
    for _ in range(10):
        pair = Pair()
        assert pair.wait()
        for _ in range(20):
            pair.client.ask("b", Service.EXPERT, bytes(3 << 20), lambda _: None)
        pair.client.lost("b")
        pair.client.found("b", f"127.0.0.1:{pair.port}", GREET)
        assert pair.wait()
        assert pair.ask(b"alive") == b"alive"
        pair.close()


def test_tls_between_members(tmp_path: Path) -> None:
    pair = Pair(tls=files(tmp_path, "b"), client=files(tmp_path, "a"), members=frozenset({"a", "b"}))
    try:
        assert pair.wait()
        for size in (1, 1 << 15, 1 << 20):
            assert pair.ask(bytes(size)) == bytes(size)
    finally:
        pair.close()


def test_tls_refuses_who_is_not_on_the_list(tmp_path: Path, eventually: Callable[..., None]) -> None:
    pair = Pair(tls=files(tmp_path, "b"), client=files(tmp_path, "stranger"), members=frozenset({"a", "b"}))
    try:
        eventually(lambda: ("stranger", "not on the list") in pair.refused)
        replies: list[bytes | Silence] = []
        for _ in range(100):  # for a moment after its own handshake a client cannot know yet
            pair.client.ask("b", Service.EXPERT, b"x", replies.append)
            time.sleep(0.005)
        assert [reply for reply in replies if reply is not Silence.GONE] == []
    finally:
        pair.close()


def test_tls_refuses_another_authority_and_plain_connections(tmp_path: Path, eventually: Callable[..., None]) -> None:
    pair = Pair(tls=files(tmp_path / "one", "b"), client=files(tmp_path / "two", "a"))
    try:
        eventually(lambda: bool(pair.refused))
        with socket.create_connection(("127.0.0.1", pair.port)) as sock:
            sock.sendall(GREETING + struct.pack("<H", len(GREET)) + GREET.encode())
            ended(sock)
        eventually(lambda: ("127.0.0.1", "failed handshake") in pair.refused)
        assert not pair.client.reaches("b")
    finally:
        pair.close()


def test_tls_refuses_a_server_that_is_not_the_node_it_should_be(tmp_path: Path) -> None:
    pair = Pair(tls=files(tmp_path, "c"), client=files(tmp_path, "a"))
    try:
        assert not pair.wait(within_s=2.5)
    finally:
        pair.close()


def test_a_stream_that_comes_when_all_is_over_is_closed():
    loop, (ours, theirs), ended = Loop("over"), socket.socketpair(), []
    loop.close()
    stream = Stream(ours, loop, lambda *_: None, ended.append)
    loop.add(stream)
    assert ended == [stream]
    assert ours.fileno() == -1
    assert not stream.open
    assert theirs.recv(1) == b""
    theirs.close()
