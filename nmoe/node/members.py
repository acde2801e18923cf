"""The list of members: who may take part in a mesh, ``members.json``. The authority writes it (keys.py), nodes and routers go by it."""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from nmoe.core.errors import BadFile
from nmoe.core.files import write_bytes
from nmoe.node.messages import check_name

VERSION = 1

_Moment = Annotated[dt.datetime, msgspec.Meta(tz=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A node that was let in: the certificate it was given last, and when it was put out again, if it was."""

    name: str
    serial: str  # hexadecimal
    not_after: _Moment
    revoked_at: _Moment | None = None
    router: bool = False  # may bring what others say


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """What the list holds; ``authority`` is the SHA-256 of the certificate it belongs to."""

    authority: str
    members: dict[str, Member]
    version: int = VERSION


def read_members(path: Path) -> frozenset[str]:
    """Return the names that a list of members lets in: those not revoked. Expired certificates are TLS's business.

    Raises:
        BadFile: when the file is missing or damaged.
    """
    return frozenset(name for name, member in read_register(path).members.items() if member.revoked_at is None)


def read_routers(path: Path) -> frozenset[str]:
    """Return those of ``read_members`` that are routers.

    Raises:
        BadFile: when the file is missing or damaged.
    """
    return frozenset(name for name, member in read_register(path).members.items() if member.revoked_at is None and member.router)


def read_register(path: Path) -> Register:
    """Read a list of members.

    Raises:
        BadFile: when the file is missing or damaged, or of another version.
    """
    try:
        register = msgspec.json.decode(path.read_bytes(), type=Register)
        for name, member in register.members.items():
            if check_name(name, "node name") != member.name:
                raise ValueError(f"{member.name!r} is listed as {name!r}")
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # msgspec's errors are ValueErrors
        raise BadFile(f"{path} is not a list of members: {error}") from error
    if register.version != VERSION:
        raise BadFile(f"{path} has version {register.version}, this nmoe reads {VERSION}")
    return register


def write_register(path: Path, register: Register) -> None:
    """Write a list of members, so that readers see the old one or the new one."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(register), indent=2) + b"\n")
