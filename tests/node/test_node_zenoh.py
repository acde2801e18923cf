"""The same mesh over real sockets, in one process."""

import datetime as dt
import ipaddress
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from torch import Tensor

from nmoe.core.errors import MeshError
from nmoe.node import MeshClient, NodeRunner, TlsFiles, ZenohSettings, ZenohTransport, connect
from nmoe.node.messages import Refusal, RefusalCode, decode
from nmoe.node.process import free_ports
from nmoe.node.transport.base import Service, Silence

Transports = Callable[..., ZenohTransport]


@pytest.fixture
def transports() -> Iterator[Transports]:
    """Make transports that are closed at the end."""
    with ExitStack() as stack:

        def make(name: str | None, listen: str, seeds: list[str], **more: Any) -> ZenohTransport:
            settings = {"mesh": "test", "listen": (listen,), "seeds": tuple(seeds)} | more
            fingerprint = settings.pop("fingerprint", "f" * 64)
            return stack.enter_context(ZenohTransport(ZenohSettings(**settings), name=name, fingerprint=fingerprint))

        yield make


def endpoints(count: int) -> list[str]:
    return [f"tcp/127.0.0.1:{port}" for port in free_ports(count)]


def ask(transport: ZenohTransport, node: str, payload: bytes, *, timeout_s: float = 2.0) -> bytes | Silence:
    replies: SimpleQueue[bytes | Silence] = SimpleQueue()
    transport.ask(node, Service.EXPERT, payload, timeout_s=timeout_s, on_reply=replies.put)
    return replies.get(timeout=timeout_s + 2)


def watched(transport: ZenohTransport) -> set[str]:
    alive: set[str] = set()
    transport.watch(lambda name, up: alive.add(name) if up else alive.discard(name))
    return alive


def test_three_nodes_answer_as_the_mixture(mesh: Any, images: Tensor, eventually: Any, peers: Any) -> None:
    places = endpoints(3)
    bundles = mesh.bundles[:3]
    with ExitStack() as stack:
        runners = []
        for bundle, place in zip(bundles, places, strict=True):
            card = bundle.card
            settings = ZenohSettings(mesh="test", listen=(place,), seeds=places[:1])
            transport = ZenohTransport(settings, name=card.node, fingerprint=card.extractor_fingerprint)
            runners.append(stack.enter_context(NodeRunner(bundle, transport)))
        client = stack.enter_context(connect("test", places[:1]))
        client.wait_for(["node-0", "node-1", "node-2"], timeout_s=10)
        eventually(lambda: all(len(peers(runner.view())) == 2 for runner in runners))
        for node in range(3):
            reply = client.infer(f"node-{node}", images, deadline_s=5)
            reference = mesh.reference(node, images, k=2, up={0, 1, 2})
            assert torch.equal(reply.labels, reference.probabilities.argmax(dim=1))
            assert torch.allclose(reply.probabilities, reference.probabilities, atol=1e-5)
            assert torch.equal(reply.experts, reference.routing.experts)
        runners[2].stop()
        eventually(lambda: client.nodes() == ("node-0", "node-1") and peers(runners[0].view()) == ("node-1",))
        reply = client.infer("node-0", images, deadline_s=5)
        assert torch.allclose(reply.probabilities, mesh.reference(0, images, k=2, up={0, 1}).probabilities, atol=1e-5)


def test_seeds_may_come_later(transports: Transports, eventually: Any) -> None:
    early, late = endpoints(2)
    first = transports("early", early, [late])
    first.announce()
    alive = watched(first)
    time.sleep(0.5)
    transports("late", late, []).announce()
    eventually(lambda: alive == {"early", "late"})


def test_silence_and_refusal(transports: Transports, eventually: Any) -> None:
    one, two = endpoints(2)
    server, client = transports("server", one, []), transports(None, two, [one])
    held: list[Any] = []

    def on_query(data: bytes, respond: Any) -> None:
        if data == b"raise":
            raise RuntimeError("oops")
        held.append(respond)
        if data == b"answer":
            respond(b"yes")

    server.serve(Service.EXPERT, on_query)
    server.announce()
    alive = watched(client)
    eventually(lambda: alive == {"server"})
    assert ask(client, "server", b"answer") == b"yes"
    refused = ask(client, "server", b"raise")
    assert isinstance(refused, bytes)
    assert decode(refused) == Refusal(request=0, code=RefusalCode.FAILED, reason="RuntimeError: oops")
    assert ask(client, "server", b"silent", timeout_s=0.2) is Silence.TIMEOUT
    assert ask(client, "nobody", b"answer") is Silence.GONE
    replies: SimpleQueue[bytes | Silence] = SimpleQueue()
    client.ask("server", Service.EXPERT, b"silent", timeout_s=10, on_reply=replies.put)
    eventually(lambda: len(held) == 3)
    server.close()
    assert replies.get(timeout=2) is Silence.GONE  # not the 10 s
    client.close()
    assert ask(client, "server", b"answer") is Silence.GONE


def test_a_window_full_of_unanswered_queries_refuses_more(transports: Transports, eventually: Any) -> None:
    one, two = endpoints(2)
    server, client = transports("server", one, []), transports(None, two, [one])
    held: list[Any] = []  # a query let go of counts as gone
    server.serve(Service.EXPERT, lambda data, respond: respond(b"yes") if len(data) < 1000 else held.append(respond))
    server.announce()
    alive = watched(client)
    eventually(lambda: alive == {"server"})
    replies: SimpleQueue[bytes | Silence] = SimpleQueue()
    for _ in range(3):
        client.ask("server", Service.EXPERT, bytes(400 << 10), timeout_s=0.3, on_reply=replies.put)
    assert sorted(str(replies.get(timeout=2)) for _ in range(3)) == ["Silence.FULL", "Silence.FULL", "Silence.TIMEOUT"]
    assert ask(client, "server", bytes(400 << 10), timeout_s=0.3) is Silence.FULL
    assert ask(client, "server", b"small") == b"yes"  # heard from again
    assert ask(client, "server", bytes(400 << 10), timeout_s=0.3) is Silence.TIMEOUT


def test_other_extractors_are_other_meshes(transports: Transports, eventually: Any) -> None:
    one, two, three = endpoints(3)
    first = transports("one", one, [], fingerprint="a" * 64)
    second = transports("two", two, [one], fingerprint="b" * 64)
    first.announce()
    second.announce()
    client = MeshClient(transports(None, three, [one], fingerprint=None))
    client.wait_for(["one", "two"], timeout_s=10)
    alive = watched(second)
    eventually(lambda: alive == {"two"})


def test_a_port_in_use_is_named(transports: Transports) -> None:
    (place,) = endpoints(1)
    transports("one", place, [])
    with pytest.raises(MeshError, match=rf"^cannot join mesh test on {place}: the address is already in use$"):
        transports("two", place, [])


@pytest.mark.parametrize("place", ["tcp/0.0.0.0:7447", "tcp/[::]:7447", "tcp/192.168.1.7:7447", "tcp/example.org:7447"])
def test_plain_tcp_stays_on_this_machine(transports: Transports, place: str) -> None:
    with pytest.raises(ValueError, match="unencrypted beyond this machine"):
        transports("one", place, [])
    with pytest.raises(ValueError, match="unencrypted beyond this machine"):
        transports("one", "tcp/127.0.0.1:0", [place])


def test_insecure_allows_it(transports: Transports) -> None:
    (port,) = free_ports(1)
    transports("one", f"tcp/0.0.0.0:{port}", [], insecure=True)


@pytest.mark.parametrize(
    "place", ["127.0.0.1:7447", "tcp/127.0.0.1", "tcp/127.0.0.1:99999", "smoke/127.0.0.1:1", "tcp/127.0.0.1:1#iface=lo"]
)
def test_malformed_endpoints_are_named(transports: Transports, place: str) -> None:
    with pytest.raises(ValueError, match="an endpoint looks like"):
        transports("one", place, [])


@pytest.mark.parametrize("name", ["", "a/b", "a*", "ä", "x" * 65])
def test_names_are_one_word(transports: Transports, name: str) -> None:
    with pytest.raises(ValueError, match="node name must be"):
        transports(name, "tcp/127.0.0.1:0", [])
    with pytest.raises(ValueError, match="mesh name must be"):
        transports("one", "tcp/127.0.0.1:0", [], mesh=name)


def certificates(folder: Path) -> dict[str, TlsFiles]:
    """Three members signed by one authority, and a stranger signed by itself."""
    now = dt.datetime.now(dt.UTC)

    def sign(name: str, issuer: str, signer: ec.EllipticCurvePrivateKey | None, *, is_ca: bool) -> ec.EllipticCurvePrivateKey:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        )
        certificate = builder.sign(signer or key, hashes.SHA256())
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        kind, bare = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (folder / f"{name}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, bare))
        return key

    authority = sign("authority", "authority", None, is_ca=True)
    sign("one", "authority", authority, is_ca=False)
    sign("two", "authority", authority, is_ca=False)
    sign("node-0", "authority", authority, is_ca=False)
    sign("stranger", "stranger", None, is_ca=True)
    return {
        name: TlsFiles(root_ca=folder / "authority.pem", certificate=folder / f"{name}.pem", private_key=folder / f"{name}.key")
        for name in ("one", "two", "node-0", "stranger")
    }


def test_mutual_tls_lets_members_in_and_nobody_else(transports: Transports, eventually: Any, tmp_path: Path) -> None:
    files = certificates(tmp_path)
    places = [f"tls/127.0.0.1:{port}" for port in free_ports(3)]
    one = transports("one", places[0], [], tls=files["one"])
    two = transports("two", places[1], places[:1], tls=files["two"])
    stranger = transports("stranger", places[2], places[:1], tls=files["stranger"])
    for transport in (one, two, stranger):
        transport.announce()
    alive, strangers = watched(one), watched(stranger)
    eventually(lambda: alive == {"one", "two"})
    time.sleep(0.5)
    assert alive == {"one", "two"}
    assert strangers == {"stranger"}


def test_the_command_line_serves_and_asks_over_mutual_tls(mesh: Any, tmp_path: Path) -> None:
    files = certificates(tmp_path)

    def words(tls: TlsFiles) -> list[str]:
        return ["--tls-ca", str(tls.root_ca), "--tls-cert", str(tls.certificate), "--tls-key", str(tls.private_key)]

    endpoint = f"tls/127.0.0.1:{free_ports(1)[0]}"
    np.savez(tmp_path / "new.npz", images=np.zeros((2, *mesh.bundles[0].card.image_shape), np.uint8))
    nmoe = [sys.executable, "-m", "nmoe"]
    serve = [*nmoe, "node", str(mesh.folders[0]), "--listen", endpoint, *words(files["node-0"]), "--exit-with-parent"]
    with subprocess.Popen(serve, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        assert node.stdout.readline().startswith("ready node-0 tls/")
        ask_it = [*nmoe, "infer", str(tmp_path / "new.npz"), "--connect", endpoint]
        done = subprocess.run([*ask_it, *words(files["one"])], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["image 0 to node-0", "image 1 to node-0"]
        node.terminate()
