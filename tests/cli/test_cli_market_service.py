"""``nmoe market serve`` and ``verify``: mistakes are one line and exit code 2."""

import sys

import pytest

from nmoe import cli
from nmoe.market.service import MarketServer, MarketSettings


def run(*words, monkeypatch, capsys):
    """Run a command in this process; return exit code, output and error output."""
    monkeypatch.setattr(sys, "argv", ["nmoe", "market", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--http", "nowhere"], "an HTTP address looks like 127.0.0.1:8090, got 'nowhere'"),
        (["--port", "99999"], "got '127.0.0.1:99999'"),
        (["--mechanism", "no"], "mechanism must be one of aeria-ic"),
        (["--epoch-s", "0"], "need an operator's token"),
        (["--capacity", "-1"], "capacity must be at least 0"),
        (["--database", "nowhere/m"], "cannot open the database nowhere/m: No such file or directory"),
        (["--workloads", "nowhere.json"], "cannot read nowhere.json"),
    ],
)
def test_a_mistake_is_one_line(words, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NMOE_OPERATOR_TOKEN", raising=False)
    code, out, err = run("serve", *words, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert part in line


def test_a_record_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    code, _, err = run("verify", tmp_path / "EPOCH.json", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert err.startswith("error: cannot read ")


def test_a_database_in_use_or_damaged_is_one_line(tmp_path, monkeypatch, capsys):
    server = MarketServer(tmp_path / "m", "127.0.0.1", 0, settings=MarketSettings())
    words = ["serve", "--database", tmp_path / "m", "--port", 0]
    code, out, err = run(*words, monkeypatch=monkeypatch, capsys=capsys)
    server.stop()
    assert (code, out, err) == (2, "", f"error: another server holds the database {tmp_path / 'm'}\n")
    (tmp_path / "m").write_bytes(b"x" * 5000)
    code, out, err = run(*words, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (2, "")
    assert err == f"error: the database {tmp_path / 'm'} is damaged or none: file is not a database\n"
