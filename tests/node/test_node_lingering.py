"""Zenoh's sockets do not linger: found by their addresses, whatever else is open."""

import socket
import struct
import sys
from typing import Any

import pytest

from nmoe.node import ZenohSettings, ZenohTransport, free_ports
from nmoe.node.transport.zenoh.lingering import address_of, loosen

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def lingers(sock: socket.socket) -> bool:
    return bool(struct.unpack("ii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))[0])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_connection_is_found_by_its_addresses(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening, socket.socket(family) as dialling, socket.socket(socket.AF_UNIX), socket.socket():
        listening.bind((host, 0))
        listening.listen()
        dialling.connect(listening.getsockname())
        accepted, _ = listening.accept()
        with accepted:
            for one in (dialling, accepted):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 10))
            here, there = dialling.getsockname()[:2], dialling.getpeername()[:2]
            assert loosen(here, there, give_up_s=1.5)
            assert not lingers(dialling)
            assert dialling.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1500
            assert lingers(accepted), "the other end is another connection's"
            dialling.sendall(b"still whole")
            assert accepted.recv(100) == b"still whole"
            assert not loosen(here, ("192.0.2.1", 1), give_up_s=1.5)


def test_addresses_are_read_from_locators() -> None:
    assert address_of("tcp/127.0.0.1:7447") == ("127.0.0.1", 7447)
    assert address_of("tls/[::1]:7447") == ("::1", 7447)
    assert address_of("quic/127.0.0.1:7447") is None
    assert address_of("unixsock-stream//tmp/a") is None


def test_links_of_a_session_are_treated_so(eventually: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []

    def seen(*addresses: Any, **more: Any) -> None:
        found.append(loosen(*addresses, **more))

    monkeypatch.setattr("nmoe.node.transport.zenoh.lingering.loosen", seen)
    one, two = (f"tcp/127.0.0.1:{port}" for port in free_ports(2))
    with (
        ZenohTransport(ZenohSettings(mesh="m", listen=(one,)), name="one", fingerprint="f" * 64),
        ZenohTransport(ZenohSettings(mesh="m", listen=(two,), seeds=(one,)), name="two", fingerprint="f" * 64),
    ):
        eventually(lambda: len(found) >= 2)
    assert all(found)
