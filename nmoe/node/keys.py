"""Keys: an authority of one's own, certificates for nodes, and the list of who is a member. The only file that imports cryptography.

An authority is a folder: ``ca.pem``, ``ca.key`` (it never leaves this folder), ``members.json`` and, per node, ``nodes/<name>`` with the
three files its device gets: ``ca.pem``, ``node.pem``, ``node.key``. Keys are ECDSA on P-256 in PKCS #8, mode 0600, unencrypted, because a
node starts without anybody to type a password.

Zenoh reads no revocation lists and its access rules know common names, not serial numbers. So the common name is the node's name, nodes
let in only names that ``members.json`` holds unrevoked, and a revoked name is not given out again before its certificate has expired: a
new certificate of that name would let the old one in again.
"""

import datetime as dt
import fcntl
import ipaddress
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nmoe.core.errors import BadFile, MeshError
from nmoe.core.files import write_bytes
from nmoe.node.members import Member, Register, read_register, write_register
from nmoe.node.messages import check_name
from nmoe.node.transport.config import TlsFiles

MAX_AUTHORITY_DAYS = 7300  # twenty years
MAX_NODE_DAYS = 825  # what browsers and CAs settled on; a list of members is the answer to a stolen key, short validity is the second
RENEW_DAYS = 30  # a certificate with no more left may be issued again, so that a node can change before it expires
BACKDATED = dt.timedelta(minutes=5)  # a device's clock may be a little behind the authority's

_HOST = re.compile(r"(?=.{1,253}\Z)([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")


def init_authority(folder: Path, *, name: str, days: int, now: dt.datetime) -> Path:
    """Make an authority in ``folder``: its key, its certificate and an empty list of members.

    Args:
        folder: made if need be.
        name: common name of the authority, one word.
        days: validity, 1 to 7300.
        now: with time zone.

    Returns:
        The authority's certificate.

    Raises:
        ValueError: when there is an authority already, or an argument is out of range.
    """
    check_name(name, "authority's name")
    _check_days(days, MAX_AUTHORITY_DAYS)
    with _locked(folder):
        _refuse_existing(folder / "ca.key", folder / "ca.pem", folder / "members.json")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _common_name(name)
        certificate = (
            _begin(subject, subject, key.public_key(), now, now + dt.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        _write_private(folder / "ca.key", _private_pem(key))
        write_bytes(folder / "ca.pem", _public_pem(certificate))
        write_register(folder / "members.json", Register(authority=_fingerprint(certificate), members={}))
    return folder / "ca.pem"


def issue(
    folder: Path, name: str, addresses: Sequence[str], *, days: int, now: dt.datetime, out: Path | None = None, router: bool = False
) -> TlsFiles:
    """Make a node's key and certificate, and put the node on the list of members.

    Args:
        folder: the authority's.
        name: the node's, one word; it becomes the common name.
        addresses: IP addresses and host names under which others dial the node. Gossip dials IP addresses.
        days: validity, 1 to 825, not beyond the authority's own.
        now: with time zone.
        out: folder for the node's three files; ``nodes/<name>`` of the authority's if not given.
        router: whether it may bring what others say; a node is heard under its own name only.

    Returns:
        The three files the node's device gets.

    Raises:
        ValueError: when the name is taken (still valid, or revoked and not yet expired), a file would be overwritten, or an argument
            is bad.
        BadFile: when there is no authority in the folder, or it is damaged.
    """
    check_name(name, "node name")
    _check_days(days, MAX_NODE_DAYS)
    names = _alternative_names(addresses)
    with _locked(_known(folder)):
        authority, authority_key, register = _read_authority(folder)
        _check_free(register.members.get(name), now)
        not_after = (now + dt.timedelta(days=days)).replace(microsecond=0)
        if not_after > authority.not_valid_after_utc:
            raise ValueError(f"{days} days is longer than the authority itself is valid (until {authority.not_valid_after_utc:%Y-%m-%d})")
        place = folder / "nodes" / name if out is None else out
        files = TlsFiles(root_ca=place / "ca.pem", certificate=place / "node.pem", private_key=place / "node.key")
        _refuse_existing(files.private_key, files.certificate)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _begin(_common_name(name), authority.subject, key.public_key(), now, not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([x509.OID_SERVER_AUTH, x509.OID_CLIENT_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(authority_key, hashes.SHA256())
        )
        _write_private(files.private_key, _private_pem(key))
        write_bytes(files.certificate, _public_pem(certificate))
        write_bytes(files.root_ca, _public_pem(authority))
        member = Member(name=name, serial=f"{certificate.serial_number:x}", not_after=not_after, router=router)
        write_register(folder / "members.json", replace(register, members=register.members | {name: member}))
    return files


def revoke(folder: Path, name: str, *, now: dt.datetime) -> Member:
    """Take a node off the list of members; it holds at every node that has read the new list.

    Raises:
        ValueError: when the node was never let in, or is revoked already.
        BadFile: when there is no authority in the folder, or its list is damaged.
    """
    check_name(name, "node name")
    with _locked(_known(folder)):
        register = read_register(folder / "members.json")
        member = register.members.get(name)
        if member is None:
            raise ValueError(f"no certificate was issued to {name}; there are {', '.join(sorted(register.members)) or 'none'}")
        if member.revoked_at is not None:
            raise ValueError(f"{name} is revoked already, since {member.revoked_at:%Y-%m-%d}")
        member = replace(member, revoked_at=now.replace(microsecond=0))
        write_register(folder / "members.json", replace(register, members=register.members | {name: member}))
    return member


def members(folder: Path) -> tuple[Member, ...]:
    """Return everybody who was ever let in, by name, the revoked ones too.

    Raises:
        BadFile: when there is no authority in the folder, or its list is damaged.
    """
    register = read_register(_known(folder) / "members.json")
    return tuple(register.members[name] for name in sorted(register.members))


def certificate_days_left(path: Path, *, now: dt.datetime) -> float:
    """Return the days until a certificate expires, negative when it has.

    Raises:
        BadFile: when the file is not a certificate.
    """
    return (_read_certificate(path).not_valid_after_utc - now) / dt.timedelta(days=1)


def check_certificate(files: TlsFiles, name: str, *, now: dt.datetime, members: Path | None) -> None:
    """Check at start, before anybody refuses us, that a node's certificate is its own, in time, and lets it in.

    Args:
        files: the node's.
        name: the node's.
        now: with time zone.
        members: the list of members, if the mesh has one.

    Raises:
        MeshError: when it is not so; the message says why.
        BadFile: when a file is missing or damaged.
    """
    authority, certificate = _read_certificate(files.root_ca), _read_certificate(files.certificate)
    for what, path, one in (("authority", files.root_ca, authority), ("certificate", files.certificate, certificate)):
        if now > one.not_valid_after_utc:
            raise MeshError(f"the {what} {path} expired on {one.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
        if now < one.not_valid_before_utc:
            raise MeshError(f"the {what} {path} is not valid before {one.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; is the clock right?")
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise MeshError(f"{files.certificate} is not signed by the authority {files.root_ca}") from error
    if (common := _name_of(certificate)) != name:
        raise MeshError(f"{files.certificate} belongs to {common!r}, but this node is {name!r}")
    if _read_key(files.private_key).public_key() != certificate.public_key():
        raise MeshError(f"{files.private_key} is not the key of {files.certificate}")
    if members is not None:
        register = read_register(members)
        if register.authority != _fingerprint(authority):
            raise MeshError(f"{members} is the list of another authority than {files.root_ca}")
        member = register.members.get(name)
        if member is None or member.revoked_at is not None:
            raise MeshError(f"{name} is not on the list of members {members}" if member is None else f"{name} was revoked ({members})")


def _check_days(days: int, most: int) -> None:
    if not 1 <= days <= most:
        raise ValueError(f"days must be 1 to {most}, got {days}")


def _check_free(member: Member | None, now: dt.datetime) -> None:
    if member is None or now > member.not_after:
        return
    if member.revoked_at is not None:
        raise ValueError(
            f"{member.name} is revoked, and its certificate would be let in again until {member.not_after:%Y-%m-%d}; take another name"
        )
    if member.not_after - now > dt.timedelta(days=RENEW_DAYS):
        raise ValueError(
            f"{member.name} has a certificate until {member.not_after:%Y-%m-%d}; it can be renewed in its last {RENEW_DAYS} days"
        )


def _alternative_names(addresses: Sequence[str]) -> list[x509.GeneralName]:
    if not addresses:
        raise ValueError("a node needs at least one address under which others dial it, such as 192.0.2.3 or node.example.org")
    names: list[x509.GeneralName] = []
    for address in addresses:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            if _HOST.fullmatch(address) is None or address.replace(".", "").isdigit():
                raise ValueError(f"an address is an IP address or a host name, without port, got {address!r}") from None
            names.append(x509.DNSName(address))
    return names


def _begin(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime, not_after: dt.datetime
) -> x509.CertificateBuilder:
    """Return what certificates of authorities and nodes have in common."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _name_of(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


def _public_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror}") from error


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read_bytes(path))
    except ValueError as error:
        raise BadFile(f"{path} is not a certificate in PEM form") from error


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_read_bytes(path), password=None)
    except (ValueError, TypeError) as error:  # TypeError: encrypted
        raise BadFile(f"{path} is not an unencrypted private key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadFile(f"{path} is not an elliptic-curve key")
    return key


def _known(folder: Path) -> Path:
    if not (folder / "ca.pem").is_file():
        raise BadFile(f"{folder} holds no authority; nmoe keys init {folder} makes one")
    return folder


def _read_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey, Register]:
    certificate, key, register = _read_certificate(folder / "ca.pem"), _read_key(folder / "ca.key"), read_register(folder / "members.json")
    if key.public_key() != certificate.public_key() or register.authority != _fingerprint(certificate):
        raise BadFile(f"ca.pem, ca.key and members.json in {folder} do not belong together")
    return certificate, key, register


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if path.exists() or path.is_symlink():
            raise ValueError(f"{path} exists and will not be overwritten; take another folder, or move it away")


def _write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, at no moment anybody else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second ``nmoe keys`` from writing the same list at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
