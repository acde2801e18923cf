"""Settings of zenoh sessions, tried out: who gets in, who is seen, and by what way."""

import datetime as dt
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zenoh

from nmoe.node.keys import init_authority, issue
from nmoe.node.process import free_ports
from nmoe.node.transport.config import Mode, TlsFiles, ZenohSettings, check_endpoint
from nmoe.node.transport.refusals import Refused, handshake_refusal, link_refusal

MEMBERS = frozenset({"one", "two", "three", "router"})
SETTLED_S = 1.0  # nothing that is to come takes longer on loopback


@dataclass(eq=False)
class Member:
    """A session that answers with its name, has a token, and watches."""

    name: str
    session: zenoh.Session
    alive: set[str] = field(default_factory=set)
    links: list[tuple[str | None, Refused | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        key = f"nmoe/test/f/node/{self.name}"
        answer = zenoh.handlers.Callback(lambda query: query.reply(key, self.name.encode()), indirect=False)
        self.session.declare_queryable(key, answer, complete=True)
        self.token = self.session.liveliness().declare_token(f"nmoe/test/f/alive/{self.name}")
        watch = zenoh.handlers.Callback(self._changed, indirect=False)
        self.subscriber = self.session.liveliness().declare_subscriber("nmoe/test/*/alive/*", watch, history=True)
        linked = zenoh.handlers.Callback(self._linked, indirect=False)
        self.listener = self.session.info.declare_link_events_listener(linked, history=True)

    def _changed(self, sample: zenoh.Sample) -> None:
        name = str(sample.key_expr).rsplit("/", 1)[-1]
        (self.alive.add if sample.kind == zenoh.SampleKind.PUT else self.alive.discard)(name)

    def _linked(self, event: zenoh.LinkEvent) -> None:
        if event.kind == zenoh.SampleKind.PUT:
            name = event.link.auth_identifier
            self.links.append((name, link_refusal(name, MEMBERS)))

    def ask(self, name: str) -> list[str]:
        replies = self.session.get(f"nmoe/test/f/node/{name}", timeout=2, consolidation=zenoh.ConsolidationMode.NONE)
        return [reply.ok.payload.to_bytes().decode() for reply in replies if reply.ok is not None]


Open = Callable[..., Member]


@pytest.fixture
def member() -> Iterator[Open]:
    """Open sessions that are closed at the end, the last first."""
    with ExitStack() as stack:

        def start(name: str, **settings: Any) -> Member:
            config = zenoh.Config()
            for key, value in ZenohSettings(**{"mesh": "test"} | settings).entries().items():
                config.insert_json5(key, json.dumps(value))
            session = zenoh.open(config)
            stack.callback(session.close)
            return Member(name, session)

        yield start


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TlsFiles]:
    """Certificates: members, one that is not on the list, an expired one, and one of another authority."""
    folder, now = tmp_path_factory.mktemp("authority"), dt.datetime.now(dt.UTC)
    past = now - dt.timedelta(days=30)
    init_authority(folder / "ours", name="ours", days=90, now=past)
    init_authority(folder / "theirs", name="ours", days=90, now=past)
    files = {name: issue(folder / "ours", name, ["127.0.0.1"], days=7, now=now) for name in (*sorted(MEMBERS), "rogue")}
    files["expired"] = issue(folder / "ours", "expired", ["127.0.0.1"], days=7, now=past)
    foreign = issue(folder / "theirs", "one", ["127.0.0.1"], days=7, now=now)
    ours = folder / "ours" / "ca.pem"  # it trusts us, we do not trust it
    return files | {"foreign": TlsFiles(root_ca=ours, certificate=foreign.certificate, private_key=foreign.private_key)}


def endpoint(scheme: str = "tcp") -> str:
    return f"{scheme}/127.0.0.1:{free_ports(1)[0]}"


def test_three_members_find_each_other_by_gossip_over_mutual_tls(member: Open, tls: dict[str, TlsFiles], eventually: Any) -> None:
    seed = endpoint("tls")
    one = member("one", listen=[seed], seeds=[seed], tls=tls["one"], members=MEMBERS)
    two, three = (member(name, listen=[endpoint("tls")], seeds=[seed], tls=tls[name], members=MEMBERS) for name in ("two", "three"))
    eventually(lambda: all(one.alive == {"one", "two", "three"} for one in (one, two, three)))
    eventually(lambda: two.ask("three") == ["three"])
    assert (two.ask("one"), one.ask("three")) == (["one"], ["three"])
    assert {name for name, _ in one.links} == {"two", "three"}
    assert {reason for one in (one, two, three) for _, reason in one.links} == {None}


def test_a_certificate_that_is_not_on_the_list_sees_nothing_and_is_not_seen(
    member: Open, tls: dict[str, TlsFiles], eventually: Any
) -> None:
    seed = endpoint("tls")
    one = member("one", listen=[seed], tls=tls["one"], members=MEMBERS)
    two = member("two", listen=[endpoint("tls")], seeds=[seed], tls=tls["two"], members=MEMBERS)
    eventually(lambda: one.alive == {"one", "two"})
    rogue = member("rogue", listen=[endpoint("tls")], seeds=[seed], tls=tls["rogue"])
    everything: list[str] = []
    hears = zenoh.handlers.Callback(lambda sample: everything.append(str(sample.key_expr)), indirect=False)
    subscriber = rogue.session.declare_subscriber("**", hears)
    eventually(lambda: ("rogue", Refused.NOT_LISTED) in one.links)  # counted, with its name
    time.sleep(SETTLED_S)
    two.session.put("nmoe/test/f/secret", b"x")
    assert (rogue.alive, rogue.ask("one"), rogue.ask("two"), rogue.ask("*")) == ({"rogue"}, [], [], ["rogue"])
    assert (one.alive, two.alive, one.ask("rogue"), two.ask("one")) == ({"one", "two"}, {"one", "two"}, [], ["one"])
    assert everything == []
    subscriber.undeclare()


def test_a_member_is_heard_under_its_own_name_only(member: Open, tls: dict[str, TlsFiles], eventually: Any) -> None:
    seed = endpoint("tls")
    one = member("one", listen=[seed], tls=tls["one"], members=MEMBERS)
    liar = member("two", listen=[endpoint("tls")], seeds=[seed], tls=tls["two"], members=MEMBERS)
    key = "nmoe/test/f/node/three"
    answer = zenoh.handlers.Callback(lambda query: query.reply(key, b"a lie"), indirect=False)
    liar.session.declare_queryable(key, answer, complete=True)
    token = liar.session.liveliness().declare_token("nmoe/test/f/alive/three")
    eventually(lambda: one.alive == {"one", "two"} and one.ask("two") == ["two"])
    time.sleep(SETTLED_S)
    assert (one.alive, one.ask("three"), liar.ask("one")) == ({"one", "two"}, [], ["one"])
    token.undeclare()


@pytest.mark.parametrize("who", ["expired", "foreign"])
def test_a_certificate_that_is_not_valid_gets_no_link(member: Open, tls: dict[str, TlsFiles], who: str) -> None:
    seed = endpoint("tls")
    one = member("one", listen=[seed], tls=tls["one"], members=MEMBERS)
    stranger = member(who, listen=[endpoint("tls")], seeds=[seed], tls=tls[who])
    time.sleep(SETTLED_S)
    assert (stranger.session.info.links(), one.links, one.alive, stranger.alive) == ([], [], {"one"}, {who})


def test_a_link_ends_with_the_certificate(member: Open, tls: dict[str, TlsFiles], eventually: Any, tmp_path: Path) -> None:
    seed, expires = endpoint("tls"), dt.datetime.now(dt.UTC) + dt.timedelta(seconds=4)
    folder = tls["one"].certificate.parents[2]
    brief = issue(folder, "two-brief", ["127.0.0.1"], days=1, now=expires - dt.timedelta(days=1), out=tmp_path)
    members = MEMBERS | {"two-brief"}
    one = member("one", listen=[seed], tls=tls["one"], members=members)
    member("two-brief", listen=[endpoint("tls")], seeds=[seed], tls=brief, members=members)
    eventually(lambda: one.alive == {"one", "two-brief"}, within_s=2)
    eventually(lambda: one.alive == {"one"})
    assert expires - dt.timedelta(seconds=1) < dt.datetime.now(dt.UTC) < expires + dt.timedelta(seconds=3)


def test_no_certificate_gets_no_link(member: Open, tls: dict[str, TlsFiles]) -> None:
    seed = endpoint("tls")
    one = member("one", listen=[seed], tls=tls["one"], members=MEMBERS)
    config = zenoh.Config()
    for key, value in ZenohSettings(mesh="test", mode=Mode.CLIENT, seeds=[seed], tls=tls["one"]).entries().items():
        if key == "transport/link/tls":
            value = {"root_ca_certificate": str(tls["one"].root_ca)}
        config.insert_json5(key, json.dumps({"connect/timeout_ms": 800, "connect/exit_on_failure": True}.get(key, value)))
    with pytest.raises(zenoh.ZError, match="Unable to connect"):
        zenoh.open(config)
    assert one.links == []


def test_failed_handshakes_can_be_read_off_the_log(tls: dict[str, TlsFiles], tmp_path: Path) -> None:
    code = """if True:
        import json, os, socket, sys, time, zenoh
        from nmoe.node.transport.config import TlsFiles, ZenohSettings
        from nmoe.node.transport.refusals import LOG_FILTER, LogTap
        listen, counted = sys.argv[1], []
        tap = LogTap(counted.append)
        zenoh.init_log_from_env_or(LOG_FILTER)
        def start(listen, seeds, files):
            config = zenoh.Config()
            tls = TlsFiles(root_ca=files[0], certificate=files[1], private_key=files[2])
            for key, value in ZenohSettings(mesh="test", listen=[listen], seeds=seeds, tls=tls).entries().items():
                config.insert_json5(key, json.dumps(value))
            return zenoh.open(config)
        one = start(listen, [], sys.argv[2:5])
        print("ready", flush=True)
        quic = start(listen.replace("tls/", "quic/"), [], sys.argv[2:5])
        for files, place in ((sys.argv[5:8], listen.replace("tls/", "quic/")), (sys.argv[8:11], listen)):
            other = start("tls/127.0.0.1:0", [place], files)
            time.sleep(0.5)
            other.close()
        quic.close()
        with socket.create_connection(("127.0.0.1", int(listen.split(":")[-1]))) as plain:
            plain.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            plain.recv(1)
        time.sleep(0.2)
        one.close()
        os.write(1, b"no end of line")
        tap.close()
        print()
        print(*sorted(set(counted)), sep=",")
    """
    files = [str(path) for who in ("one", "expired", "foreign") for path in _paths(tls[who])]
    done = subprocess.run([sys.executable, "-c", code, endpoint("tls"), *files], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["ready", "no end of line", "certificate expired,not tls,unknown authority"]


def _paths(files: TlsFiles) -> tuple[Path, Path, Path]:
    return files.root_ca, files.certificate, files.private_key


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("invalid peer certificate: certificate expired: verification time 1795249459 (UNIX)", Refused.EXPIRED),
        ("invalid peer certificate: certificate not valid yet: verification time 1", Refused.NOT_YET_VALID),
        ("invalid peer certificate: UnknownIssuer", Refused.UNKNOWN_AUTHORITY),
        ("peer sent no certificates", Refused.NO_CERTIFICATE),
        ("received fatal alert: UnknownCA", Refused.REFUSED_US),
        ("received corrupt message of type InvalidContentType", Refused.NOT_TLS),
        ("something new", Refused.OTHER),
    ],
)
def test_reasons_are_read_from_plain_and_coloured_lines(line: str, reason: Refused) -> None:
    plain = f"2026-11-21T08:27:04Z  WARN acc-0 ThreadId(05) zenoh_link_tls::unicast: {line}. Hint: increase the system open file limit."
    coloured = f"\x1b[2m2026-11-21T08:27:04Z\x1b[0m \x1b[33m WARN\x1b[0m acc-0 \x1b[2mzenoh_link_tls::unicast\x1b[0m\x1b[2m:\x1b[0m {line}."
    assert handshake_refusal(plain) is handshake_refusal(coloured) is reason
    assert handshake_refusal(plain.replace("zenoh_link_tls", "zenoh_link_commons::quic")) is reason
    assert handshake_refusal(line) is None
    assert handshake_refusal("ready node-0 tls/127.0.0.1:7447") is None


def test_links_of_members_are_welcome() -> None:
    assert link_refusal("one", MEMBERS) is link_refusal("rogue", None) is link_refusal(None, None) is None
    assert link_refusal("rogue", MEMBERS) is Refused.NOT_LISTED
    assert link_refusal(None, MEMBERS) is Refused.NO_CERTIFICATE


def test_multicast_on_one_interface(member: Open, eventually: Any) -> None:
    one = member("one", listen=[endpoint()], multicast="lo", gossip=False)
    two = member("two", listen=[endpoint()], multicast="lo", gossip=False)
    eventually(lambda: one.alive == two.alive == {"one", "two"})
    assert one.ask("two") == ["two"]


def test_no_multicast_and_no_seed_find_nobody(member: Open) -> None:
    one, two = member("one", listen=[endpoint()]), member("two", listen=[endpoint()])
    time.sleep(SETTLED_S)
    assert (one.alive, two.alive) == ({"one"}, {"two"})


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
@pytest.mark.parametrize("way", ["clients", "sites"])
def test_nodes_that_know_only_a_router(member: Open, tls: dict[str, TlsFiles], eventually: Any, scheme: str, way: str) -> None:
    def secured(name: str) -> dict[str, Any]:
        return {"tls": tls[name], "members": MEMBERS, "routers": frozenset({"router"})} if scheme == "tls" else {}

    def place(name: str) -> dict[str, Any]:
        return {"mode": Mode.CLIENT} if way == "clients" else {"listen": [endpoint(scheme)], "site": name}

    routers = [endpoint(scheme)]
    sites = ["one", "two"] if way == "sites" else []
    member("router", mode=Mode.ROUTER, listen=routers, sites=sites, **secured("router"))
    one, two = (member(name, seeds=routers, **secured(name), **place(name)) for name in ("one", "two"))
    eventually(lambda: one.alive == two.alive == {"router", "one", "two"})
    assert (one.ask("two"), two.ask("one")) == (["two"], ["one"])
    assert len(one.session.info.links()) == 1
    two.session.close()
    eventually(lambda: one.alive == {"router", "one"}, within_s=1)


def test_a_router_per_site(member: Open, eventually: Any) -> None:
    here, there = endpoint(), endpoint()
    member("router-here", mode=Mode.ROUTER, listen=[here], gossip=False)
    member("router-there", mode=Mode.ROUTER, listen=[there], seeds=[here], gossip=False)
    one = member("one", listen=[endpoint()], seeds=[here], gossip=False)
    two = member("two", listen=[endpoint()], seeds=[there], gossip=False)
    eventually(lambda: {"one", "two"} <= one.alive & two.alive)
    assert (one.ask("two"), two.ask("one")) == (["two"], ["one"])


def test_a_router_does_not_pass_on_between_peers_of_one_site(member: Open) -> None:
    """Should zenoh do so again, sites need not be named any more."""
    routers = [endpoint()]
    member("router", mode=Mode.ROUTER, listen=routers, gossip=False)
    one, two = (member(name, listen=[endpoint()], seeds=routers, gossip=False) for name in ("one", "two"))
    time.sleep(SETTLED_S)
    assert ("two" in one.alive, one.ask("two"), two.ask("one")) == (False, [], [])


def test_settings_are_plain_values(tls: dict[str, TlsFiles]) -> None:
    settings = ZenohSettings(
        mesh="test", listen=["tls/0.0.0.0:7447"], seeds=["tls/0.0.0.0:7447", "quic/h:1"], tls=tls["one"], members=MEMBERS
    )
    entries = settings.entries()
    assert json.loads(json.dumps(entries)) == entries
    assert entries["connect/endpoints"] == ["quic/h:1"]
    assert entries["transport/link/protocols"] == ["tls", "quic"]
    assert "access_control" not in ZenohSettings(mesh="test", tls=tls["one"]).entries()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mesh": "a/b"}, "mesh name must be"),
        ({"listen": ["tls/127.0.0.1:1"]}, "needs the three files of TLS"),
        ({"listen": ["tcp/127.0.0.1:1"], "members": MEMBERS}, "endpoints must be tls/ or quic/"),
        ({"members": MEMBERS, "insecure": True}, "endpoints must be tls/ or quic/"),
        ({"mesh": None, "members": MEMBERS}, "needs the name of their mesh"),
        ({"multicast": "no such"}, "an interface looks like eth0"),
        ({"multicast": ""}, "an interface looks like eth0"),
        ({"sites": ["one"]}, "only a router stands between sites, this is a peer"),
        ({"site": "a b"}, "site must be"),
        ({"mode": Mode.CLIENT, "listen": ["tcp/127.0.0.1:1"]}, "a client dials and does not listen"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ZenohSettings(**{"mesh": "test"} | settings)


def test_members_are_names_and_somebody(tls: dict[str, TlsFiles]) -> None:
    with pytest.raises(ValueError, match="routers must be members, four is not"):
        ZenohSettings(mesh="test", tls=tls["one"], members=MEMBERS, routers=frozenset({"four"}))
    with pytest.raises(ValueError, match="nobody could be heard"):
        ZenohSettings(mesh="test", tls=tls["one"], members=frozenset())
    with pytest.raises(ValueError, match="member's name must be"):
        ZenohSettings(mesh="test", tls=tls["one"], members=frozenset({"*"}))


@pytest.mark.parametrize("place", ["tcp/0.0.0.0:1", "tcp/[::]:1", "tcp/192.168.1.7:1", "tcp/example.org:1"])
def test_plain_tcp_stays_on_this_machine(place: str) -> None:
    with pytest.raises(ValueError, match="unencrypted beyond this machine"):
        check_endpoint(place, insecure=False)
    check_endpoint(place, insecure=True)


@pytest.mark.parametrize("place", ["tcp/127.0.0.1:0", "tcp/localhost:1", "tcp/[::1]:1", "tls/example.org:1", "quic/192.0.2.1:65535"])
def test_endpoints(place: str) -> None:
    check_endpoint(place, insecure=False)
