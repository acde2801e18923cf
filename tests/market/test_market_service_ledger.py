"""The ledger: what it says is done is there afterwards, whoever else wants the file, and however it is damaged."""

import asyncio
import sqlite3
import subprocess
import sys

import pytest

from nmoe.core.errors import BadFile
from nmoe.market.service.ledger import BidRow, Ledger, LedgerError


def bid(user, body=b"{}"):
    return BidRow(user, body, None, "0" * 64, None)


def opened(path, **more):
    return Ledger(path, secret=b"s" * 32, **more)


async def filled(ledger, count, *, failed=lambda: None):
    """Open an epoch and write some bids at once."""
    ledger.start(asyncio.get_running_loop(), failed)
    await asyncio.gather(ledger.open_epoch(1, b"terms", b"nonce", "c"), *(ledger.add_bid(1, bid(f"u{n}")) for n in range(count)))


def test_writes_are_there_afterwards_and_share_transactions(tmp_path):
    ledger = opened(tmp_path / "m")
    asyncio.run(filled(ledger, 500))
    assert ledger.num_writes == 501
    assert ledger.num_commits < 60, "those that wait go together"
    ledger.close()
    ledger.close()
    again = opened(tmp_path / "m")
    assert again.secret == b"s" * 32
    assert {row.user for row in again.bids(1)} == {f"u{n}" for n in range(500)}
    assert [row.number for row in again.uncleared()] == [1]
    assert again.bid(1, "u7") == bid("u7")
    assert again.bid(1, "nobody") is None
    assert again.record(9) is None
    again.close()


def test_bids_before_the_end_of_an_epoch_are_counted_in_it(tmp_path):
    async def run():
        ledger = opened(tmp_path / "m", linger_s=0.05)
        ledger.start(asyncio.get_running_loop(), lambda: None)
        first = [ledger.open_epoch(1, b"", b"", ""), ledger.add_bid(1, bid("a")), ledger.add_bid(1, bid("b"))]
        await asyncio.gather(*first, ledger.close_epoch(1, 5.0), ledger.open_epoch(2, b"", b"", ""), ledger.add_bid(2, bid("a")))
        await ledger.store_results(1, [("a", b"1"), ("b", b"2")])
        await ledger.store_record(1, b"short", b"whole")
        return ledger

    ledger = asyncio.run(run())
    latest, first = ledger.epochs(9, 10)
    assert (first.closed_s, first.num_bids, first.summary) == (5.0, 2, b"short")
    assert (latest.closed_s, latest.num_bids) == (None, None)
    assert ledger.epochs(2, 10) == [first]
    assert ledger.record(1) == b"whole"
    assert ledger.bid(1, "b").result == b"2"
    assert [row.number for row in ledger.uncleared()] == [2]
    ledger.close()


def test_a_failed_write_is_told_and_ends_the_ledger(tmp_path):
    told = []

    async def run():
        ledger = opened(tmp_path / "m")
        await filled(ledger, 1, failed=lambda: told.append(True))
        with pytest.raises((LedgerError, BadFile)):
            await ledger.add_bid(1, bid("u0"))  # twice the same: a bug of ours, as bad as a full disk
        with pytest.raises(LedgerError, match="UNIQUE"):
            await ledger.add_bid(1, bid("u1"))
        ledger.close()

    asyncio.run(run())
    assert told == [True]
    again = opened(tmp_path / "m")
    assert [row.user for row in again.bids(1)] == ["u0"]
    again.close()


def test_a_closed_ledger_takes_nothing(tmp_path):
    async def run():
        ledger = opened(tmp_path / "m")
        await filled(ledger, 1)
        ledger.close()
        with pytest.raises(LedgerError, match="closed"):
            await ledger.add_bid(1, bid("late"))

    asyncio.run(run())


def test_one_at_a_time(tmp_path):
    ledger = opened(tmp_path / "m")
    with pytest.raises(LedgerError, match="another server holds the database"):
        opened(tmp_path / "m")
    ledger.close()
    opened(tmp_path / "m").close()


def test_a_lock_of_another_program_is_one_line(tmp_path):
    opened(tmp_path / "m").close()
    with sqlite3.connect(tmp_path / "m") as other:
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LedgerError, match="locked"):
            opened(tmp_path / "m")
    other.close()


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough to be read as one" * 40, b"SQLite format 3\0" + b"\xff" * 500]
)
def test_what_is_no_database_is_one_line(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises((BadFile, LedgerError), match=str(tmp_path / "m")):
        opened(tmp_path / "m")


def test_a_database_of_something_else_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "m") as other:
        other.execute("CREATE TABLE diary (day TEXT)")
    other.close()
    with pytest.raises(BadFile, match="no database of a market"):
        opened(tmp_path / "m")


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(LedgerError, match="No such file"):
        opened(tmp_path / "nowhere" / "m")


def test_nobody_else_may_read_the_file(tmp_path):
    opened(tmp_path / "m").close()
    assert (tmp_path / "m").stat().st_mode & 0o077 == 0


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from nmoe.market.service.ledger import BidRow, Ledger

async def run():
    ledger = Ledger(Path(sys.argv[1]), secret=b"")
    ledger.start(asyncio.get_running_loop(), lambda: None)
    await ledger.open_epoch(1, b"", b"", "")
    for number in range(20):
        await ledger.add_bid(1, BidRow(f"u{number}", b"{}", None, "", None))
        os.write(1, b"%d\\n" % number)
    ledger.add_bid(1, BidRow("unacknowledged", b"{}", None, "", None))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(run())
"""


def test_what_was_told_survives_a_kill(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "m")], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -9, done.stderr
    acknowledged = {f"u{line}" for line in done.stdout.split()}
    assert len(acknowledged) == 20
    ledger = opened(tmp_path / "m")
    assert acknowledged <= {row.user for row in ledger.bids(1)}
    ledger.close()
