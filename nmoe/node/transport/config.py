"""Configuration of a zenoh session: who listens and dials where, who is trusted, how much waits. Plain values; zenoh.py opens it.

Zenoh's key expressions and option names are those of zenoh 1.10; what each value is for stands beside it.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from nmoe.node.messages import check_name

_ENDPOINT = re.compile(r"(tcp|tls|quic)/(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})")
_INTERFACE = re.compile(r"[A-Za-z0-9._-]{1,15}")
# What anybody in the mesh may ask, and what a node may say of itself only: the part of a key after the next is the name of whose it is. A
# message that is in neither is denied to everybody once members are named.
_ASKING = ("query", "liveliness_query", "declare_subscriber", "declare_liveliness_subscriber")
_SPEAKING = ("reply", "declare_queryable", "liveliness_token", "put", "delete")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The files of mutual TLS: who is trusted, and who this is. Certificates need an IP as alternative name where IPs are dialled."""

    root_ca: Path
    certificate: Path
    private_key: Path


class Mode(StrEnum):
    """What a session is to the others.

    Peers dial each other. A client talks to one router, or one node, and through it to all. A router passes on between clients, between
    other routers, and between sites, but since zenoh 1.9 not between two peers of one site that cannot reach each other.
    """

    PEER = "peer"
    CLIENT = "client"
    ROUTER = "router"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZenohSettings:
    """How one session of a mesh is set up.

    Attributes:
        mesh: name of the mesh, one word; None only for a router without members, which passes on whatever it gets.
        mode: what this session is to the others.
        listen: own endpoints, such as ``tls/192.0.2.3:7447``; port 0 for any. A client has none.
        seeds: endpoints of nodes or routers to begin with. Own ones are left out.
        insecure: allow plain tcp beyond this machine.
        tls: needed for ``tls/`` and ``quic/`` endpoints.
        members: common names of the certificates that are let in; None for every certificate of the authority.
        routers: those of the members that may bring what others say; the rest are heard under their own name only.
        gossip: tell each other of other nodes, and dial them.
        site: nodes of one site dial each other; nodes of different sites meet at a router. Without routers leave it out.
        sites: for a router, the sites between which it passes on by itself. With a router per site it needs none.
        multicast: interface on which nodes look for each other, such as ``eth0``, or ``auto``; None for not at all.
        lease_s: how long a frozen node counts as alive.
        direct_port: where a node listens for direct links; 0 for any port.
        shared_memory: pass large messages on one machine through shared memory.
        num_queued: messages of a size class that may wait for a link.
        receive_buffer_bytes: per link.
    """

    mesh: str | None
    mode: Mode = Mode.PEER
    listen: Sequence[str] = ()
    seeds: Sequence[str] = ()
    insecure: bool = False
    tls: TlsFiles | None = None
    members: frozenset[str] | None = None
    routers: frozenset[str] = frozenset()
    gossip: bool = True
    multicast: str | None = None
    site: str | None = None
    sites: Sequence[str] = ()
    lease_s: float = 1.0
    direct_port: int = 0
    shared_memory: bool = False  # honest network figures, and 50 MB less per process
    num_queued: int = 16  # with the next line 2.4-3.4 times the throughput of zenoh's own at 1 MiB, see docs/why
    receive_buffer_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        """Check what can be checked before a socket is opened.

        Raises:
            ValueError: when a name, endpoint or interface is malformed, plain tcp would leave this machine, or what is said does not go
                together.
        """
        if self.mesh is not None:
            check_name(self.mesh, "mesh name")
        for site in (*self.sites, *(() if self.site is None else (self.site,))):
            check_name(site, "site")
        if self.sites and self.mode is not Mode.ROUTER:
            raise ValueError(f"only a router stands between sites, this is a {self.mode.value}")
        if self.listen and self.mode is Mode.CLIENT:
            raise ValueError(f"a client dials and does not listen, got {', '.join(self.listen)}")
        for endpoint in (*self.listen, *self.seeds):
            check_endpoint(endpoint, insecure=self.insecure)
            if self.tls is None and not endpoint.startswith("tcp/"):
                raise ValueError(f"{endpoint} needs the three files of TLS: authority, certificate and key")
        if self.multicast is not None and _INTERFACE.fullmatch(self.multicast) is None:
            raise ValueError(f"an interface looks like eth0, or is auto, got {self.multicast!r}")
        if self.members is not None:
            self._check_members(self.members)

    def _check_members(self, members: frozenset[str]) -> None:
        if self.mesh is None:
            raise ValueError("a list of members needs the name of their mesh")
        if self.tls is None or any(endpoint.startswith("tcp/") for endpoint in (*self.listen, *self.seeds)):
            raise ValueError("members are known by their certificates: endpoints must be tls/ or quic/")
        if not self.routers <= members:
            raise ValueError(f"routers must be members, {', '.join(sorted(self.routers - members))} is not")
        if not members:
            raise ValueError("the list of members is empty: nobody could be heard")
        for name in members:
            check_name(name, "member's name")

    def entries(self) -> dict[str, object]:
        """Return zenoh's settings: a JSON-able value for each key of its configuration."""
        entries: dict[str, object] = {
            "mode": self.mode.value,
            "listen/endpoints": list(self.listen),
            "listen/exit_on_failure": True,
            "connect/endpoints": [seed for seed in self.seeds if seed not in self.listen],
            "connect/timeout_ms": -1,  # go on trying seeds that come later; with exit_on_failure off, open does not wait for them
            "connect/exit_on_failure": False,
            "connect/retry": {"period_init_ms": 100, "period_max_ms": 1000, "period_increase_factor": 2},
            "scouting/multicast/enabled": self.multicast is not None,
            "scouting/gossip/enabled": self.gossip,
            "scouting/delay": 1,
            "transport/unicast/open_timeout": 2000,  # a frozen node accepts and says nothing; close() waits for that
            "transport/shared_memory/enabled": self.shared_memory,
            "transport/link/tx/lease": round(self.lease_s * 1000),
            "transport/link/tx/queue/size/data": self.num_queued,
            "transport/link/rx/buffer_size": self.receive_buffer_bytes,
        }
        if self.multicast is not None:
            entries["scouting/multicast/interface"] = self.multicast
        if self.site is not None:
            entries["region_name"] = self.site
        if self.sites:
            entries["gateway"] = {"south": [{"filters": [{"region_names": [site]}]} for site in self.sites]}
        if self.tls is not None:
            entries["transport/link/tls"] = _tls_entry(self.tls)
        if self.members is not None:
            entries["transport/link/protocols"] = ["tls", "quic"]  # gossip and multicast may name others, without certificates
            entries["access_control"] = _access_entry(f"nmoe/{self.mesh}", self.members, self.routers)
        return entries


def check_endpoint(endpoint: str, *, insecure: bool) -> None:
    """Check the form of an endpoint, and that plain tcp stays on this machine unless ``insecure``.

    Raises:
        ValueError: when it does not hold.
    """
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"an endpoint looks like tcp/127.0.0.1:7447 (or tls/, quic/), got {endpoint!r}")
    if match[1] == "tcp" and not insecure and not _is_loopback(match[2].strip("[]")):
        raise ValueError(
            f"{endpoint} would send features unencrypted beyond this machine; use tls/, or pass --insecure (insecure=True) to allow it"
        )


def direct_host(endpoint: str) -> str | None:
    """Return the IP address on which a node with this endpoint can be reached directly; None when the endpoint does not say."""
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None:
        return None
    try:
        address = ipaddress.ip_address(match[2].strip("[]"))
    except ValueError:  # a name
        return None
    return None if address.is_unspecified else str(address)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tls_entry(tls: TlsFiles) -> dict[str, object]:
    """Return the TLS settings: each side shows its certificate and checks the other's."""
    files = {"listen_certificate": tls.certificate, "connect_certificate": tls.certificate}
    keys = {"listen_private_key": tls.private_key, "connect_private_key": tls.private_key, "root_ca_certificate": tls.root_ca}
    return {"enable_mtls": True, "close_link_on_expiration": True} | {name: str(path) for name, path in (files | keys).items()}


def _access_entry(root: str, members: frozenset[str], routers: frozenset[str]) -> dict[str, object]:
    """Return access rules by the common name of the other end of a link.

    Members may ask anything under ``root``; they are heard under ``root/*/*/<own name>`` only, so that none can answer, or seem alive, as
    another. Routers bring what others say. Anybody else may say and hear nothing at all.
    """

    def rule(name: str, flows: list[str], messages: Sequence[str], keys: str) -> dict[str, object]:
        return {"id": name, "permission": "allow", "flows": flows, "messages": list(messages), "key_exprs": [keys]}

    own = [
        rule(f"own {name}", ["ingress"], _SPEAKING, f"{root}/**" if name in routers else f"{root}/*/*/{name}/**")
        for name in sorted(members)
    ]
    policies = [{"rules": ["ask", "hear", f"own {name}"], "subjects": [name]} for name in sorted(members)]
    return {
        "enabled": True,
        "default_permission": "deny",
        "rules": [rule("ask", ["ingress", "egress"], _ASKING, f"{root}/**"), rule("hear", ["egress"], _SPEAKING, f"{root}/**"), *own],
        "subjects": [{"id": name, "cert_common_names": [name]} for name in sorted(members)],
        "policies": policies,
    }
