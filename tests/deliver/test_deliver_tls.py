"""Streaming over https: certificates are checked, and an interrupted transfer goes on."""

import datetime as dt
import ipaddress
import ssl

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors.torch import save
from torch import nn

from nmoe.deliver import delivery_of, http, stream_model
from nmoe.deliver.http import DeliveryError


@pytest.fixture(name="certificate")
def certificate_file(tmp_path):
    """Return a file with a key and its own certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - dt.timedelta(1), now + dt.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture(name="server")
def secure_server(faulty_server, certificate):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    return faulty_server(tls)


@pytest.fixture(autouse=True)
def fresh_trust():
    """Whom httpx trusts is read once per process."""
    http._trusted.cache_clear()
    yield
    http._trusted.cache_clear()


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 8)).eval()


def test_a_model_streams_over_https_and_goes_on_after_a_break(server, certificate, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    reference, x = build(), torch.rand(3, 64)
    server.files["m.safetensors"] = save(reference.state_dict())
    server.breaks = [90_000]
    model = stream_model(build, f"{server.url}/m.safetensors", cache_dir=tmp_path / "cache", card=False)
    try:
        assert torch.equal(model(x), reference(x))
        delivery_of(model).wait()
    finally:
        delivery_of(model).close()
    assert server.breaks == []


def test_a_certificate_that_nobody_trusts_is_refused_at_once(server, tmp_path):
    server.files["m.safetensors"] = save(build().state_dict())
    with pytest.raises(DeliveryError, match="certificate"):
        stream_model(build, f"{server.url}/m.safetensors", cache_dir=tmp_path / "cache", deadline_s=30.0)
    assert not list((tmp_path / "cache").rglob("part"))
