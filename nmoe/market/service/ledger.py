"""Ledger: the market's database, an SQLite file. What a write's future says is done has survived the process, and the machine's power.

Writes from one event loop go to one thread, which commits all that wait as one transaction (group commit): while it is on its way to the
disk the next ones gather. WAL with ``synchronous=FULL`` syncs each commit. One server at a time holds the file, by a lock beside it.

The first write that fails ends the ledger: after a failed sync nobody knows what is on the disk, but the next start does.
"""

import asyncio
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from nmoe.core.errors import BadFile, NmoeError

LINGER_S = 0.001  # that a write waits for others before its transaction begins
BUSY_S = 2.0  # that a lock of somebody else's, such as a backup's, is waited for at the start
PATIENCE_S = 60.0  # the same when the market is running; bids wait meanwhile, or are told that it is busy
MAX_BATCH = 10_000  # writes in a transaction
_APPLICATION = 0x6E6D6B74  # "nmkt": whose file it is
_VERSION = 1
_EPOCH_TABLE = """CREATE TABLE epoch (
    number INTEGER PRIMARY KEY, terms BLOB NOT NULL, nonce BLOB NOT NULL, commitment TEXT NOT NULL, closed_s REAL, num_bids INTEGER,
    summary BLOB, record BLOB
) STRICT"""
_BID_TABLE = """CREATE TABLE bid (
    epoch INTEGER NOT NULL, user TEXT NOT NULL, body BLOB NOT NULL, key TEXT, receipt TEXT NOT NULL, result BLOB,
    PRIMARY KEY (epoch, user)
) STRICT, WITHOUT ROWID"""
_SCHEMA = (
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_VERSION}",
    "CREATE TABLE market (secret BLOB NOT NULL) STRICT",
    _EPOCH_TABLE,
    _BID_TABLE,
)
_OPEN_EPOCH = "INSERT INTO epoch (number, terms, nonce, commitment) VALUES (?, ?, ?, ?)"
_ADD_BID = "INSERT INTO bid (epoch, user, body, key, receipt) VALUES (?, ?, ?, ?, ?)"
_CLOSE_EPOCH = "UPDATE epoch SET closed_s = ?, num_bids = (SELECT count(*) FROM bid WHERE bid.epoch = epoch.number) WHERE number = ?"
_STORE_RESULT = "UPDATE bid SET result = ? WHERE epoch = ? AND user = ?"
_STORE_RECORD = "UPDATE epoch SET summary = ?, record = ? WHERE number = ?"
_EPOCHS = "SELECT number, terms, nonce, commitment, closed_s, num_bids, summary FROM epoch WHERE number < ? ORDER BY number DESC LIMIT ?"
_UNCLEARED = "SELECT number, terms, nonce, commitment, closed_s, num_bids, summary FROM epoch WHERE summary IS NULL ORDER BY number"


class LedgerError(NmoeError):
    """A database that cannot be written or read, or that another server holds."""


class EpochRow(NamedTuple):
    """An epoch as it is stored; ``closed_s`` and ``num_bids`` are None while it is open, ``summary`` until it is cleared."""

    number: int
    terms: bytes
    nonce: bytes
    commitment: str
    closed_s: float | None
    num_bids: int | None
    summary: bytes | None


class BidRow(NamedTuple):
    """A bid as it is stored; ``result`` is None until its epoch is cleared."""

    user: str
    body: bytes
    key: str | None
    receipt: str
    result: bytes | None


class _Write(NamedTuple):
    statement: str
    rows: Sequence[tuple[Any, ...]]
    done: asyncio.Future[None]


class Ledger:
    """A market's database, open and held.

    Args:
        path: of the file; made if it is not there.
        secret: of a market that is made; one that is there has its own.
        linger_s: that a write waits for others.

    Raises:
        BadFile: when it is no market's database, or damaged.
        LedgerError: when another server holds it, or it cannot be written.
    """

    def __init__(self, path: Path, *, secret: bytes, linger_s: float = LINGER_S) -> None:
        self._path, self._linger_s = path, linger_s
        self.failure: str | None = None
        self.num_commits, self.num_writes = 0, 0
        self._waiting: list[_Write] = []
        self._turn = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reading = threading.Lock()
        with ExitStack() as opened:
            opened.callback(os.close, _hold(path))
            with self._named():
                self._writer = opened.enter_context(self._connected())
                self.secret = self._prepare(secret)
                self._reader = opened.enter_context(self._connected())
                self._writer.execute(f"PRAGMA busy_timeout = {1000 * PATIENCE_S:.0f}")
            self._opened = opened.pop_all()

    def start(self, loop: asyncio.AbstractEventLoop, failed: Callable[[], None]) -> None:
        """Take writes from now on.

        Args:
            loop: from whose thread they come.
            failed: called in the loop when a write has failed, after which there are no others.
        """
        self._loop, self._failed = loop, failed
        self._thread = threading.Thread(target=self._run, name="nmoe-ledger", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Finish the writes that wait, and let go of the file. May be called twice."""
        with self._turn:
            already, self._closed = self._closed, True
            self._turn.notify()
        if already:
            return
        if self._thread is not None:
            self._thread.join()
        with suppress(sqlite3.Error):  # what was acknowledged is on the disk without it
            self._opened.close()

    @property
    def num_waiting(self) -> int:
        """Writes that no transaction has begun with."""
        return len(self._waiting)

    def open_epoch(self, number: int, terms: bytes, nonce: bytes, commitment: str) -> asyncio.Future[None]:
        """Write a new epoch."""
        return self._write(_OPEN_EPOCH, [(number, terms, nonce, commitment)])

    def add_bid(self, epoch: int, bid: BidRow) -> asyncio.Future[None]:
        """Write a bid."""
        return self._write(_ADD_BID, [(epoch, *bid[:-1])])

    def close_epoch(self, number: int, closed_s: float) -> asyncio.Future[None]:
        """Write that an epoch has ended; bids written before are in it."""
        return self._write(_CLOSE_EPOCH, [(closed_s, number)])

    def store_results(self, epoch: int, results: Sequence[tuple[str, bytes]]) -> asyncio.Future[None]:
        """Write what became of some bids, as pairs of user and JSON."""
        return self._write(_STORE_RESULT, [(result, epoch, user) for user, result in results])

    def store_record(self, number: int, summary: bytes, record: bytes) -> asyncio.Future[None]:
        """Write that an epoch is cleared."""
        return self._write(_STORE_RECORD, [(summary, record, number)])

    def epochs(self, before: int, limit: int) -> list[EpochRow]:
        """Return the latest epochs with a smaller number, the latest first. May be called in any thread, as the next three."""
        return [EpochRow(*row) for row in self._read(_EPOCHS, before, limit)]

    def uncleared(self) -> list[EpochRow]:
        """Return the epochs that have no record yet, the earliest first."""
        return [EpochRow(*row) for row in self._read(_UNCLEARED)]

    def record(self, number: int) -> bytes | None:
        """Return the record of an epoch; None where there is none."""
        found = self._read("SELECT record FROM epoch WHERE number = ?", number)
        return found[0][0] if found else None

    def bids(self, epoch: int) -> list[BidRow]:
        """Return all bids of an epoch, by user."""
        return [BidRow(*row) for row in self._read("SELECT user, body, key, receipt, NULL FROM bid WHERE epoch = ? ORDER BY user", epoch)]

    def bid(self, epoch: int, user: str) -> BidRow | None:
        """Return one bid; None where there is none."""
        found = self._read("SELECT user, body, key, receipt, result FROM bid WHERE epoch = ? AND user = ?", epoch, user)
        return BidRow(*found[0]) if found else None

    def _read(self, statement: str, *values: Any) -> list[Any]:
        with self._named(), self._reading:
            return self._reader.execute(statement, values).fetchall()

    def _write(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> asyncio.Future[None]:
        assert self._loop is not None, "start comes first"
        done = self._loop.create_future()
        with self._turn:
            if self.failure is not None or self._closed:
                done.set_exception(LedgerError(self.failure or f"{self._path} is closed"))
                return done
            self._waiting.append(_Write(statement, rows, done))
            if len(self._waiting) == 1:
                self._turn.notify()
        return done

    def _run(self) -> None:
        """Commit until closed, or until a commit fails."""
        while True:
            with self._turn:
                while not self._waiting and not self._closed:
                    self._turn.wait()
                if not self._waiting:
                    return
            if self._linger_s and not self._closed:
                time.sleep(self._linger_s)
            with self._turn:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            try:
                with self._named():
                    self._commit(batch)
            except NmoeError as error:
                with self._turn:
                    self.failure = str(error)
                    batch, self._waiting = [*batch, *self._waiting], []
                self._tell(batch)
                return
            self._tell(batch)

    def _commit(self, batch: list[_Write]) -> None:
        self._writer.execute("BEGIN IMMEDIATE")
        for write in batch:
            if len(write.rows) == 1:
                self._writer.execute(write.statement, write.rows[0])
            else:
                self._writer.executemany(write.statement, write.rows)
        self._writer.execute("COMMIT")
        self.num_commits += 1
        self.num_writes += len(batch)

    def _tell(self, batch: list[_Write]) -> None:
        """Resolve the futures of a batch, in their own thread, with one wake-up."""
        assert self._loop is not None, "start comes first"
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(self._resolve, batch, self.failure)

    def _resolve(self, batch: list[_Write], failure: str | None) -> None:
        for write in batch:
            if write.done.done():  # its client went away
                continue
            if failure is None:
                write.done.set_result(None)
            else:
                write.done.set_exception(LedgerError(failure))
                write.done.exception()  # seen: a client that went away does not ask
        if failure is not None:
            self._failed()

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            yield connection

    def _prepare(self, secret: bytes) -> bytes:
        """Make the tables of a new file, check whose file an old one is, and return the market's secret."""
        (application,), (version,), (tables,) = (
            self._writer.execute(question).fetchone()
            for question in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
        )
        if tables == 0 and application in (0, _APPLICATION):
            for statement in ("BEGIN IMMEDIATE", *_SCHEMA):
                self._writer.execute(statement)
            self._writer.execute("INSERT INTO market VALUES (?)", (secret,))
            self._writer.execute("COMMIT")
        elif (application, version) != (_APPLICATION, _VERSION):
            raise BadFile(f"{self._path} is no database of a market, or of another version")
        found = self._writer.execute("SELECT secret FROM market").fetchone()
        if found is None:
            raise BadFile(f"{self._path} is damaged: it lacks the market's secret")
        return bytes(found[0])

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turn what SQLite raises into one line that names the file."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise LedgerError(f"cannot use the database {self._path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise BadFile(f"the database {self._path} is damaged or none: {error}") from error


def _hold(path: Path) -> int:
    """Lock the file beside a database and return its descriptor. It is not the database itself: SQLite's own locks lie on that one.

    Raises:
        LedgerError: when somebody else holds it, or it cannot be made.
    """
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # bids and nonces are nobody else's to read
    except OSError as error:
        raise LedgerError(f"cannot open the database {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise LedgerError(f"another server holds the database {path}") from error
    return descriptor
