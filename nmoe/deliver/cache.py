"""Cache: a folder per file, in which a download is continued after a crash and from which it is read once it is whole.

    <cache>/<hash of the address>/entry.json          which version of the file this is, and whether it is whole
                                  part                the file's bytes, each tensor aligned (``Arrangement``), while pieces arrive
                                  whole               the same, once all are there
                                  journal             a line for each finished piece: first byte, end, SHA-256
                                  lock                held by the process that downloads

Nothing in a journal is believed: a piece counts when its bytes have the hash. Files of one address follow each other, they never mix.
Nothing is ever evicted; a folder may be deleted at any time.
"""

import errno
import fcntl
import hashlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nmoe.core.errors import BadFile, NmoeError
from nmoe.core.files import read_json, write_json
from nmoe.deliver.address import shown
from nmoe.deliver.layout import Arrangement, Layout, read_layout

FORMAT = 1
POLL_S = 0.05
_BLOCK_BYTES = 1 << 20
_FILES = ("journal", "part", "whole")


class CacheFailure(NmoeError):
    """A disk that is full or fails, or an entry that another process holds."""


def default_cache() -> Path:
    """Return where downloads are kept: ``$XDG_CACHE_HOME/nmoe/deliver``, by default below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nmoe" / "deliver"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileVersion:
    """Which file, in which version.

    Attributes:
        url: its address.
        bytes: its length.
        validator: the server's ETag or Last-Modified; empty if it gave none.
        head_sha256: SHA-256 of everything before its data.
        sha256: of the whole file; empty if not known.
    """

    url: str
    bytes: int
    validator: str
    head_sha256: str
    sha256: str = ""

    def same(self, other: "FileVersion") -> bool:
        """Say whether both are surely the same bytes: by hash where both have one, else by what the server says."""
        if (shown(self.url), self.bytes, self.head_sha256) != (shown(other.url), other.bytes, other.head_sha256):
            return False
        if self.sha256 and other.sha256:
            return self.sha256 == other.sha256
        return bool(self.validator) and self.validator == other.validator


class CacheEntry:
    """The folder of one file; see ``open_entry`` and ``open_complete``. Any thread may read and write pieces."""

    def __init__(self, folder: Path, version: FileVersion, *, complete: bool, lock: int | None) -> None:
        self.folder = folder
        self.version = version
        self.complete = complete
        self._lock = lock
        self._data: int | None = None
        self._journal: int | None = None
        self._arrangement: Arrangement | None = None

    @property
    def path(self) -> Path:
        """The file: whole, or being filled."""
        return self.folder / ("whole" if self.complete else "part")

    def begin(self, head: bytes, layout: Layout) -> dict[tuple[int, int], str]:
        """Make room for the whole file, or take up one that was begun.

        Args:
            head: the file's bytes before its data.
            layout: of the file.

        Returns:
            The SHA-256 of the pieces, first byte and end, that the journal says are there.

        Raises:
            CacheFailure: when there is no room.
        """
        self._data = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        self._journal = os.open(self.folder / "journal", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._arrangement = Arrangement(layout)
            if os.fstat(self._data).st_size != self._arrangement.bytes:
                os.ftruncate(self._data, 0)
            if sys.platform == "linux":
                os.posix_fallocate(self._data, 0, self._arrangement.bytes)
            else:
                os.ftruncate(self._data, self._arrangement.bytes)
        except OSError as error:
            raise self._no_room(error) from error
        self.write(0, head)
        return self._read_journal()

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes of the file.

        Raises:
            CacheFailure: when the disk is full or fails.
        """
        assert self._data is not None
        assert self._arrangement is not None
        view = memoryview(data)
        try:
            for position, num_bytes in self._arrangement.spans(offset, offset + len(data)):
                until = position + num_bytes
                while position < until:
                    written = os.pwrite(self._data, view[: until - position], position)
                    view, position = view[written:], position + written
        except OSError as error:
            raise self._no_room(error) from error

    def record(self, start: int, end: int, sha256: str | None) -> None:
        """Enter a finished piece in the journal, or, with None, strike it out."""
        assert self._journal is not None
        try:
            os.write(self._journal, (json.dumps([start, end, sha256]) + "\n").encode())
        except OSError as error:
            raise self._no_room(error) from error

    def digest(self, start: int, end: int) -> str:
        """Return the SHA-256 of some of the file's bytes, as they lie on the disk."""
        assert self._data is not None
        assert self._arrangement is not None
        return _digest(self._data, self._arrangement, start, end)

    def finish(self) -> None:
        """Give the file its name and say that it is whole. Its bytes must have been checked."""
        assert self._data is not None
        os.fsync(self._data)
        self.path.replace(self.folder / "whole")
        self.complete = True
        write_json(self.folder / "entry.json", _described(self.version, self.path))
        self.close()

    def discard(self) -> None:
        """Throw away what is there, which proved to be wrong, and let go of it."""
        for name in ("entry.json", *_FILES):
            (self.folder / name).unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of the folder; what is there stays for the next time."""
        handles, self._data, self._journal, self._lock = (self._data, self._journal, self._lock), None, None, None
        for handle in handles:
            if handle is not None:
                os.close(handle)  # the lock's too, which frees it

    def _read_journal(self) -> dict[tuple[int, int], str]:
        """Return the journal's pieces; a line that a crash cut off, or that says nothing, is passed over."""
        pieces: dict[tuple[int, int], str] = {}
        for line in (self.folder / "journal").read_bytes().splitlines():
            try:
                start, end, sha256 = json.loads(line)
            except (ValueError, TypeError):
                continue
            if sha256 is None:
                pieces.pop((start, end), None)
            elif isinstance(sha256, str):
                pieces[start, end] = sha256
        return pieces

    def _no_room(self, error: OSError) -> CacheFailure:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return CacheFailure(f"no room for the {self.version.bytes} bytes of {shown(self.version.url)} in {self.folder}")
        return CacheFailure(f"cannot write {self.path}: {error.strerror}")


def url_folder(cache_dir: Path, url: str) -> Path:
    """Return the folder of an address."""
    return cache_dir / hashlib.sha256(url.encode()).hexdigest()[:32]


def find_whole(cache_dir: Path, version: FileVersion) -> CacheEntry | None:
    """Return a file's folder where the file is whole, else None.

    Raises:
        BadFile: when it does not have the hash that is wanted.
    """
    folder = url_folder(cache_dir, version.url)
    return CacheEntry(folder, version, complete=True, lock=None) if _known(folder, version) else None


def open_entry(cache_dir: Path, version: FileVersion, *, patience_s: float) -> CacheEntry:
    """Open a file's folder: whole, or locked for downloading. An older version of the file is removed.

    Args:
        cache_dir: of all entries.
        version: the file that is wanted.
        patience_s: how long to wait for another process that is downloading it.

    Raises:
        CacheFailure: when that process takes longer.
        BadFile: when a whole file in the cache does not have the hash that is wanted now.
    """
    folder = url_folder(cache_dir, version.url)
    folder.mkdir(parents=True, exist_ok=True)
    if _known(folder, version):
        return CacheEntry(folder, version, complete=True, lock=None)
    lock = _locked(folder / "lock", version.url, patience_s)
    try:
        if _known(folder, version):  # by now
            os.close(lock)
            return CacheEntry(folder, version, complete=True, lock=None)
        stored = _read_version(folder)
        if stored is None or not version.same(stored[0]):
            for name in _FILES:
                (folder / name).unlink(missing_ok=True)
        elif (folder / "whole").exists():  # whole once, and touched since: its pieces are checked again
            (folder / "whole").replace(folder / "part")
        write_json(folder / "entry.json", _described(version, None))
    except BaseException:
        os.close(lock)
        raise
    return CacheEntry(folder, version, complete=False, lock=lock)


def open_complete(cache_dir: Path, url: str, sha256: str) -> CacheEntry:
    """Open a whole file without asking its server.

    Args:
        cache_dir: of all entries.
        url: of the file.
        sha256: that it must have; empty for any.

    Raises:
        BadFile: when it is not there, or has another hash.
    """
    folder = url_folder(cache_dir, url)
    stored = _read_version(folder)
    if stored is None or not _whole(folder, stored):
        raise BadFile(f"{shown(url)} is not whole in the cache {cache_dir}, and the server is not to be asked")
    if sha256 not in ("", stored[0].sha256) and not _known(folder, replace(stored[0], sha256=sha256)):
        raise BadFile(f"{shown(url)} should have SHA-256 {sha256}, in the cache it has {stored[0].sha256}")
    return CacheEntry(folder, stored[0], complete=True, lock=None)


def _described(version: FileVersion, whole: Path | None) -> dict[str, Any]:
    state = None if whole is None else [whole.stat().st_size, whole.stat().st_mtime_ns]
    return {"format": FORMAT, **asdict(version), "url": shown(version.url), "whole": state}


def _read_version(folder: Path) -> tuple[FileVersion, list[int] | None] | None:
    """Return the version in a folder, and length and time of what is whole, or None where there is none that can be read."""
    try:
        entry = read_json(folder / "entry.json")
        if entry.pop("format") != FORMAT:
            return None
        state = entry.pop("whole")
        return FileVersion(**entry), state
    except (BadFile, TypeError, KeyError, AttributeError):
        return None  # of another make: as if it were not there


def _whole(folder: Path, stored: tuple[FileVersion, list[int] | None]) -> bool:
    """Say whether a file is there and has not been touched since it was whole."""
    try:
        state = (folder / "whole").stat()
    except FileNotFoundError:
        return False
    return [state.st_size, state.st_mtime_ns] == stored[1]


def _known(folder: Path, version: FileVersion) -> bool:
    """Say whether a folder has this version of the file, whole."""
    stored = _read_version(folder)
    if stored is None or not version.same(stored[0]) or not _whole(folder, stored):
        return False
    if version.sha256 and not stored[0].sha256:  # nobody knew its hash when it came
        layout = read_layout(folder / "whole", version.bytes)
        with (folder / "whole").open("rb") as file:
            if _digest(file.fileno(), Arrangement(layout), 0, layout.file_bytes) != version.sha256:
                raise BadFile(f"{shown(version.url)}: SHA-256 {version.sha256} wanted, {folder / 'whole'} has another")
        write_json(folder / "entry.json", _described(version, folder / "whole"))
    return True


def _digest(handle: int, arrangement: Arrangement, start: int, end: int) -> str:
    """Return the SHA-256 of the file's bytes from start to end, as they are kept."""
    digest = hashlib.sha256()
    for position, num_bytes in arrangement.spans(start, end):
        until = position + num_bytes
        while position < until and (block := os.pread(handle, min(_BLOCK_BYTES, until - position), position)):
            digest.update(block)
            position += len(block)
    return digest.hexdigest()


def _locked(path: Path, url: str, patience_s: float) -> int:
    """Lock a file, waiting for whoever holds it; return its handle."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    until_s = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until_s:
                holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip() or "unknown"
                os.close(handle)
                raise CacheFailure(f"process {holder} has been downloading {shown(url)} into {path.parent} for {patience_s:g} s") from None
            time.sleep(POLL_S)
        else:
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
            return handle
