"""What deploy/ holds, as far as it can be checked without a running systemd and Docker.

The unit goes through systemd's own verifier. The compose file is read as YAML, because `docker compose config` needs a plugin that is
seldom there; its commands and the unit's go through the real command line's parser, and its health check really runs.
"""

import ipaddress
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from nmoe.cli import app

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
UNIT = (DEPLOY / "nmoe-node.service").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
NODES = sorted(COMPOSE["services"].items())
SETTINGS = {  # as in docs/how-to/deploy-a-fleet.md
    "NMOE_MESH": "fleet",
    "NMOE_LISTEN": "tls/192.0.2.3:7447",
    "NMOE_CONNECT": "--connect tls/192.0.2.4:7447 --connect tls/192.0.2.5:7447",
    "NMOE_HTTP": "127.0.0.1:8080",
    "NMOE_OPTIONS": "",
    "CREDENTIALS_DIRECTORY": "/run/credentials/nmoe-node.service",
}

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def parse(words: list[str]) -> dict[str, Any]:
    """Return what the real parser of `nmoe` reads from a command."""
    root = typer.main.get_command(app)
    assert isinstance(root, click.Group)
    command = root.commands[words[0]]
    read, left, _ = command.make_parser(click.Context(command)).parse_args(list(words[1:]))
    assert left == []
    return read


def setting(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT.replace("\\\n", " "), flags=re.MULTILINE)
    return str(value)


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists on this machine, as the verifier wants."""
    path = tmp_path / "nmoe-node.service"
    path.write_text(UNIT.replace("/usr/local/bin/nmoe", sys.executable))
    return path


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_the_verifier_would_have_found_something(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KillMode=maybe"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False)
    assert "kill mode" in done.stdout + done.stderr


@needs_systemd
def test_the_unit_is_well_confined(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)]  # 2.0 of 10, where 10 is everything
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("systemd-analyze is older than 250 and cannot do it offline")
    assert done.returncode == 0, done.stdout


def test_the_units_command_is_one_that_nmoe_reads() -> None:
    text = setting("ExecStart")
    for name, value in SETTINGS.items():
        text = text.replace(f"${{{name}}}", shlex.quote(value)).replace(f"${name}", value)  # $NAME is split at spaces, ${NAME} is not
    assert "$" not in text
    program, *words = shlex.split(text)
    assert program == "/usr/local/bin/nmoe"
    read = parse(words)
    assert list(read["bundles"]) == ["/srv/nmoe/bundle"]
    assert (read["listen"], read["connect"]) == (["tls/192.0.2.3:7447"], ["tls/192.0.2.4:7447", "tls/192.0.2.5:7447"])
    assert read["tls_key"] == "/run/credentials/nmoe-node.service/node.key"


def test_a_node_has_time_to_drain() -> None:
    assert setting("KillSignal") == DOCKERFILE.split("STOPSIGNAL ")[1].split()[0] == "SIGTERM"
    assert setting("TimeoutStopSec") == "45"
    for _, service in NODES:
        assert service["stop_signal"] == "SIGTERM"
        assert seconds(service["stop_grace_period"]) == int(setting("TimeoutStopSec"))


@pytest.mark.parametrize(("name", "service"), NODES)
def test_a_containers_command_is_one_that_nmoe_reads(name: str, service: dict[str, Any]) -> None:
    assert 'ENTRYPOINT ["nmoe"]' in DOCKERFILE
    read = parse(shlex.split(service["command"]))
    own = service["networks"]["mesh"]["ipv4_address"]
    others = [other["networks"]["mesh"]["ipv4_address"] for other_name, other in NODES if other_name != name]
    assert ipaddress.ip_address(own) in ipaddress.ip_network(COMPOSE["networks"]["mesh"]["ipam"]["config"][0]["subnet"])
    assert list(read["bundles"]) == ["/bundle"]
    assert (read["listen"], read["connect"]) == ([f"tls/{own}:7447"], [f"tls/{other}:7447" for other in others])
    mounted = {volume.rsplit(":", 2)[1] for volume in service["volumes"]}
    named = {read["tls_ca"], read["tls_cert"], read["tls_key"], read["members"]}
    assert named == {"/keys/ca.pem", "/keys/node.pem", "/keys/node.key", "/members.json"}
    assert mounted == {"/bundle", "/keys", "/members.json"}


@pytest.mark.parametrize(("name", "service"), NODES)
def test_a_container_may_do_little(name: str, service: dict[str, Any]) -> None:
    assert all(volume.endswith(":ro") for volume in service["volumes"])
    assert all(f"node-{name[-1]}" in volume for volume in service["volumes"][:2])
    assert not any("ca.key" in volume or volume.startswith("${NMOE_KEYS:-../keys}:") for volume in service["volumes"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert (service["cap_drop"], service["read_only"]) == (["ALL"], True)
    assert not service["user"].startswith(("0", "root"))


def test_three_nodes_share_all_but_their_places() -> None:
    places = {"command", "networks", "ports", "volumes"}
    common = [{key: value for key, value in service.items() if key not in places} for _, service in NODES]
    assert len(NODES) == 3
    assert common[0] == common[1] == common[2]
    assert len({service["ports"][0] for _, service in NODES}) == 3


def test_the_image_is_built_from_files_that_exist_and_reach_the_builder() -> None:
    let_through = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, flags=re.MULTILINE) for source in line.split()}
    assert copied == let_through
    assert all((DEPLOY.parent / source).exists() for source in copied)
    assert re.findall(r"^USER (\d+)", DOCKERFILE, flags=re.MULTILINE) == ["65534"]
    build = COMPOSE["x-node"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A server that answers every GET with ``status``; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/v2/health/ready" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_the_health_check_tells_ready_from_not(status: int | None, healthy: bool) -> None:
    kind, _, *words = COMPOSE["x-node"]["healthcheck"]["test"]
    assert kind == "CMD"
    assert words[1] in DOCKERFILE  # both say the same
    if status is None:
        done = _check(words, "127.0.0.1:1")
    else:
        with answering(status) as address:
            done = _check(words, address)
    assert (done.returncode == 0) is healthy


def _check(words: list[str], address: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, *(word.replace("127.0.0.1:8080", address) for word in words)]
    return subprocess.run(command, capture_output=True, timeout=60, check=False)
