"""An authority, its certificates and its list: what they hold, and every mistake in one line."""

import datetime as dt
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from nmoe.core.errors import BadFile, MeshError
from nmoe.node.keys import certificate_days_left, check_certificate, init_authority, issue, members, revoke
from nmoe.node.members import read_members, read_routers
from nmoe.node.transport.config import TlsFiles

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    folder = tmp_path / "authority"
    init_authority(folder, name="ours", days=3650, now=NOW)
    return folder


def add(folder: Path, name: str, *, days: int = 365, now: dt.datetime = NOW, out: Path | None = None) -> TlsFiles:
    return issue(folder, name, ["192.0.2.3", "2001:db8::3", "node.example.org"], days=days, now=now, out=out)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_certificate_says_who_where_and_what_for(authority: Path) -> None:
    files = add(authority, "node-0")
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    root = x509.load_pem_x509_certificate(files.root_ca.read_bytes())
    certificate.verify_directly_issued_by(root)
    assert certificate.subject.rfc4514_string() == "CN=node-0"
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(ca=True, path_length=0)
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.3", "2001:db8::3"]
    assert names.get_values_for_type(x509.DNSName) == ["node.example.org"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {x509.OID_SERVER_AUTH, x509.OID_CLIENT_AUTH}
    assert certificate.not_valid_after_utc == NOW + 365 * DAY
    assert certificate_days_left(files.certificate, now=NOW + 366 * DAY) == -1


def test_openssl_agrees(tmp_path: Path) -> None:
    now = dt.datetime.now(dt.UTC)
    init_authority(tmp_path, name="ours", days=30, now=now)
    files = issue(tmp_path, "node-0", ["192.0.2.3"], days=7, now=now)
    for purpose in ("sslserver", "sslclient"):
        words = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-verify_ip", "192.0.2.3", "-CAfile", str(files.root_ca)]
        done = subprocess.run([*words, str(files.certificate)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_only_the_owner_reads_private_keys(authority: Path) -> None:
    files = add(authority, "node-0")
    for path in (authority / "ca.key", files.private_key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"PRIVATE" not in files.certificate.read_bytes() + files.root_ca.read_bytes() + (authority / "members.json").read_bytes()
    assert sorted(path.name for path in files.private_key.parent.iterdir()) == ["ca.pem", "node.key", "node.pem"]


def test_members_come_and_go(authority: Path) -> None:
    listed = authority / "members.json"
    assert read_members(listed) == frozenset()
    first = add(authority, "node-0")
    add(authority, "node-1", days=10)
    assert read_members(listed) == {"node-0", "node-1"}
    revoke(authority, "node-1", now=NOW + DAY)
    assert read_members(listed) == {"node-0"}
    one, two = members(authority)
    assert (one.name, one.revoked_at, two.name, two.revoked_at) == ("node-0", None, "node-1", NOW + DAY)
    assert one.serial == f"{x509.load_pem_x509_certificate(first.certificate.read_bytes()).serial_number:x}"
    assert two.not_after == NOW + 10 * DAY


def test_routers_are_on_the_list_as_such(authority: Path) -> None:
    add(authority, "node-0")
    issue(authority, "door", ["192.0.2.1"], days=9, now=NOW, router=True)
    assert read_members(authority / "members.json") == {"node-0", "door"}
    assert read_routers(authority / "members.json") == {"door"}
    revoke(authority, "door", now=NOW)
    assert read_routers(authority / "members.json") == frozenset()


def test_nothing_is_overwritten(authority: Path, tmp_path: Path) -> None:
    files = add(authority, "node-0", days=20)
    before = contents(authority)
    with pytest.raises(ValueError, match=r"ca\.key exists and will not be overwritten"):
        init_authority(authority, name="ours", days=10, now=NOW)
    with pytest.raises(ValueError, match=r"node\.key exists and will not be overwritten"):
        add(authority, "node-0")
    with pytest.raises(ValueError, match=r"node\.key exists and will not be overwritten"):
        add(authority, "node-1", out=files.private_key.parent)
    assert contents(authority) == before
    assert add(authority, "node-0", out=tmp_path / "new").private_key.read_bytes() != files.private_key.read_bytes()


def test_a_name_is_given_out_again_when_that_lets_nobody_in(authority: Path, tmp_path: Path) -> None:
    add(authority, "node-0", days=100)
    with pytest.raises(ValueError, match=r"^node-0 has a certificate until 2026-06-09; it can be renewed in its last 30 days$"):
        add(authority, "node-0", out=tmp_path / "again")
    add(authority, "node-0", days=100, now=NOW + 71 * DAY, out=tmp_path / "again")
    revoke(authority, "node-0", now=NOW + 80 * DAY)
    with pytest.raises(ValueError, match=r"^node-0 is revoked, and .* would be let in again until 2026-08-19; take another name$"):
        add(authority, "node-0", now=NOW + 81 * DAY, out=tmp_path / "third")
    add(authority, "node-0", now=NOW + 172 * DAY, out=tmp_path / "third")
    assert read_members(authority / "members.json") == {"node-0"}


def test_mistakes_are_named_and_change_nothing(authority: Path) -> None:
    add(authority, "node-0")
    before = contents(authority)
    for days in (0, -1, 826):
        with pytest.raises(ValueError, match=rf"^days must be 1 to 825, got {days}$"):
            add(authority, "node-1", days=days)
    for address in ("", "192.0.2.300", "tls/192.0.2.3:7447", "192.0.2.3:7447", "a b", "-x.org", "*.example.org", "ä.org", "x" * 254):
        with pytest.raises(ValueError, match="an address is an IP address or a host name"):
            issue(authority, "node-1", [address], days=1, now=NOW)
    with pytest.raises(ValueError, match="at least one address"):
        issue(authority, "node-1", [], days=1, now=NOW)
    for name in ("", "a/b", "../x", "ä"):
        with pytest.raises(ValueError, match="node name must be"):
            issue(authority, name, ["192.0.2.3"], days=1, now=NOW)
    with pytest.raises(ValueError, match=r"longer than the authority itself is valid \(until 2036-02-27\)"):
        add(authority, "node-1", now=NOW + 3600 * DAY)
    with pytest.raises(ValueError, match=r"^no certificate was issued to node-9; there are node-0$"):
        revoke(authority, "node-9", now=NOW)
    assert contents(authority) == before
    revoke(authority, "node-0", now=NOW)
    with pytest.raises(ValueError, match=r"^node-0 is revoked already, since 2026-03-01$"):
        revoke(authority, "node-0", now=NOW)
    with pytest.raises(ValueError, match=r"^days must be 1 to 7300"):
        init_authority(authority / "new", name="ours", days=7301, now=NOW)


def test_an_unknown_authority_is_named(tmp_path: Path) -> None:
    for act in (
        lambda: add(tmp_path / "no", "node-0"),
        lambda: revoke(tmp_path / "no", "node-0", now=NOW),
        lambda: members(tmp_path / "no"),
    ):
        with pytest.raises(BadFile, match=r"no holds no authority; nmoe keys init .*no makes one$"):
            act()
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 1}',
        '{"version": 2, "authority": "", "members": {}}',
        '{"version": 1, "authority": "", "members": {"a": 1}}',
    ]
    + [
        f'{{"version": 1, "authority": "", "members": {{"a": {{"name": "{name}", "serial": "1", "not_after": "{when}"}}}}}}'
        for name, when in (("b", "2026-03-01T12:00:00Z"), ("a", "2026-03-01T12:00:00"), ("a", "soon"))
    ],
)
def test_a_damaged_list_is_named(authority: Path, text: str) -> None:
    (authority / "members.json").write_text(text)
    for act in (lambda: read_members(authority / "members.json"), lambda: add(authority, "node-0"), lambda: members(authority)):
        with pytest.raises(BadFile, match=r"members\.json (is not a list of members|has version 2)") as caught:
            act()
        assert "\n" not in str(caught.value)


def test_damaged_keys_and_certificates_are_named(authority: Path, tmp_path: Path) -> None:
    files = add(authority, "node-0")
    (tmp_path / "empty").write_text("")
    with pytest.raises(BadFile, match=r"empty is not a certificate in PEM form$"):
        certificate_days_left(tmp_path / "empty", now=NOW)
    with pytest.raises(BadFile, match=r"cannot read .*none: No such file"):
        certificate_days_left(tmp_path / "none", now=NOW)
    files.private_key.write_text("x")
    with pytest.raises(BadFile, match=r"node\.key is not an unencrypted private key"):
        check_certificate(files, "node-0", now=NOW, members=None)
    (authority / "ca.key").write_text("x")
    with pytest.raises(BadFile, match=r"ca\.key is not an unencrypted private key"):
        add(authority, "node-1")
    (authority / "ca.key").write_bytes(issue_elsewhere(tmp_path, "node-1").private_key.read_bytes())
    with pytest.raises(BadFile, match="do not belong together"):
        add(authority, "node-1")


def issue_elsewhere(tmp_path: Path, name: str) -> TlsFiles:
    if not (tmp_path / "elsewhere").exists():
        init_authority(tmp_path / "elsewhere", name="ours", days=3650, now=NOW)
    return issue(tmp_path / "elsewhere", name, ["192.0.2.3"], days=365, now=NOW)


def test_a_node_checks_its_certificate_at_start(authority: Path, tmp_path: Path) -> None:
    files, listed = add(authority, "node-0"), authority / "members.json"
    other = issue_elsewhere(tmp_path, "node-0")
    check_certificate(files, "node-0", now=NOW, members=None)
    check_certificate(files, "node-0", now=NOW + 364 * DAY, members=listed)

    def refuses(words: str, given: TlsFiles = files, name: str = "node-0", now: dt.datetime = NOW, members: Path = listed) -> None:
        with pytest.raises(MeshError, match=words) as caught:
            check_certificate(given, name, now=now, members=members)
        assert "\n" not in str(caught.value)

    refuses(r"node\.pem expired on 2027-03-01 12:00 UTC$", now=NOW + 366 * DAY)
    refuses(r"ca\.pem expired on 2036", now=NOW + 3651 * DAY)
    refuses(r"is not valid before 2026-03-01 11:55 UTC; is the clock right\?$", now=NOW - DAY)
    refuses(r"belongs to 'node-0', but this node is 'node-1'$", name="node-1")
    mixed = TlsFiles(root_ca=files.root_ca, certificate=other.certificate, private_key=other.private_key)
    refuses(r"node\.pem is not signed by the authority", given=mixed)
    refuses(r"is not the key of", given=TlsFiles(root_ca=files.root_ca, certificate=files.certificate, private_key=other.private_key))
    refuses(r"is the list of another authority than", members=tmp_path / "elsewhere" / "members.json")
    revoke(authority, "node-0", now=NOW)
    refuses(r"^node-0 was revoked")
    text = listed.read_text().replace("node-0", "node-7")
    listed.write_text(text)
    refuses(r"^node-0 is not on the list of members")


def test_an_encrypted_key_is_named(authority: Path) -> None:
    files = add(authority, "node-0")
    key = serialization.load_pem_private_key(files.private_key.read_bytes(), None)
    lock = serialization.BestAvailableEncryption(b"secret")
    files.private_key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))
    with pytest.raises(BadFile, match="is not an unencrypted private key"):
        check_certificate(files, "node-0", now=NOW, members=None)


def test_two_at_once_lose_nobody(authority: Path) -> None:
    code = (
        "import datetime as dt, sys\nfrom pathlib import Path\nfrom nmoe.node.keys import issue\nfolder, first = sys.argv[1:]\n"
        "for number in range(5):\n"
        "    issue(Path(folder), f'{first}{number}', ['192.0.2.3'], days=9, now=dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(authority), first]) for first in "ab"]
    assert [process.wait(60) for process in both] == [0, 0]
    assert read_members(authority / "members.json") == {f"{first}{number}" for first in "ab" for number in range(5)}
