"""Membership by certificates, in real node processes: who is not let in is counted and shown, and the members go on."""

import datetime as dt
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from torch import Tensor

from nmoe.node import MeshClient, TlsFiles, ZenohSettings, ZenohTransport, connect, free_ports
from nmoe.node.keys import init_authority, issue, revoke


class Authority(NamedTuple):
    """The files of members and of those who are none, and the list of members."""

    files: dict[str, TlsFiles]
    members: Path


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder, now = tmp_path_factory.mktemp("authority"), dt.datetime.now(dt.UTC)
    past = now - dt.timedelta(days=30)
    init_authority(folder / "ours", name="ours", days=90, now=past)
    init_authority(folder / "theirs", name="theirs", days=90, now=past)
    files = {name: issue(folder / "ours", name, ["127.0.0.1"], days=7, now=now) for name in ("node-0", "node-1", "client", "node-2")}
    files["expired"] = issue(folder / "ours", "node-3", ["127.0.0.1"], days=7, now=past)
    revoke(folder / "ours", "node-2", now=now)
    files["revoked"] = files.pop("node-2")
    foreign = issue(folder / "theirs", "node-1", ["127.0.0.1"], days=7, now=now)
    ours = files["node-0"].root_ca  # it trusts us, we do not trust it
    files["foreign"] = TlsFiles(root_ca=ours, certificate=foreign.certificate, private_key=foreign.private_key)
    return Authority(files, folder / "ours" / "members.json")


@contextmanager
def nodes(mesh: Any, authority: Authority) -> Iterator[tuple[MeshClient, list[str]]]:
    """Two members, each a process of its own, and a client that is one."""
    places = [f"tls/127.0.0.1:{port}" for port in free_ports(2)]
    with ExitStack() as stack:
        for number, place in enumerate(places):
            files = authority.files[f"node-{number}"]
            words = [
                sys.executable,
                "-m",
                "nmoe",
                "node",
                mesh.folders[number],
                "--mesh",
                "members",
                "--listen",
                place,
                "--exit-with-parent",
            ]
            words += ["--tls-ca", files.root_ca, "--tls-cert", files.certificate, "--tls-key", files.private_key]
            words += ["--members", authority.members, "--connect", places[0]]
            process = stack.enter_context(
                subprocess.Popen([str(word) for word in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.terminate)
            assert process.stdout is not None
            assert process.stdout.readline().startswith(f"ready node-{number} tls/")
        client = stack.enter_context(
            connect("members", places, tls=authority.files["client"], members=authority.members, listen=f"tls/127.0.0.1:{free_ports(1)[0]}")
        )
        client.wait_for(["node-0", "node-1"], timeout_s=10)
        yield client, places


def refusals(client: MeshClient, node: str) -> dict[tuple[str, str], int]:
    return {(one.who, one.reason): one.count for one in client.status(node).view.refusals}


def test_who_is_no_member_is_refused_counted_and_shown(
    mesh: Any, images: Tensor, eventually: Any, peers: Any, pose: Any, authority: Authority
) -> None:
    with nodes(mesh, authority) as (client, places), ExitStack() as stack:
        eventually(lambda: peers(client.status("node-0").view) == ("node-1",))
        first = client.infer("node-0", images, deadline_s=5)
        assert refusals(client, "node-0") == {}
        for who, number in (("expired", 3), ("foreign", 1), ("revoked", 2)):
            settings = ZenohSettings(
                mesh="members", listen=(f"tls/127.0.0.1:{free_ports(1)[0]}",), seeds=(places[0],), tls=authority.files[who]
            )
            bundle = mesh.bundles[number]
            transport = stack.enter_context(ZenohTransport(settings, name=bundle.card.node, fingerprint=bundle.card.extractor_fingerprint))
            pose(transport, bundle)
        eventually(lambda: len(refusals(client, "node-0")) >= 3, within_s=15)
        found = refusals(client, "node-0")
        print(found)
        assert found["unknown", "certificate expired"] >= 1
        assert found["unknown", "unknown authority"] >= 1
        assert found["node-2", "not on the list"] >= 1
        time.sleep(0.5)
        view = client.status("node-0").view
        assert peers(view) == ("node-1",)
        assert client.nodes() == ("node-0", "node-1")
        again = client.infer("node-0", images, deadline_s=5)
        assert again.experts.tolist() == first.experts.tolist()
        assert not again.degraded
