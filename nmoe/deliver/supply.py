"""Supply: the files that are fetched, the sources they come from, and a run of bytes on its way from one to the other."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nmoe.deliver.address import shown
from nmoe.deliver.cache import CacheEntry
from nmoe.deliver.http import DeliveryError, FileChanged, RemoteFile, Source
from nmoe.deliver.layout import Layout
from nmoe.deliver.pieces import Piece

TRIES = 4  # of a source in a row, while there are others
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0  # between tries


@dataclass(slots=True, kw_only=True)
class FetchedFile:
    """A file that is being fetched.

    Attributes:
        name: for errors.
        layout, head: what it says of itself, and the bytes that say it.
        entry: where it goes, begun.
        sha256: of the whole file, if it is to be checked at the end; else empty.
        tensors_left: how many have not been checked.
    """

    name: str
    layout: Layout
    head: bytes
    entry: CacheEntry
    sha256: str = ""
    tensors_left: int = 0


@dataclass(slots=True, kw_only=True)
class Supplier:
    """A source of all the files.

    Attributes:
        source: the connection.
        urls: of the files.
        remotes: what it says of those files that it has been asked for.
        failures: in a row.
        dropped: whether it is no longer asked.
    """

    source: Source
    urls: Sequence[str]
    remotes: dict[int, RemoteFile] = field(default_factory=dict)
    failures: int = 0
    dropped: bool = False

    def remote(self, number: int, file: FetchedFile) -> RemoteFile:
        """Return a file as this source has it, after checking that it begins as the others' does."""
        if number not in self.remotes:
            remote, head = self.source.open(self.urls[number], len(file.head))
            if remote.bytes != file.layout.file_bytes or head != file.head:
                raise FileChanged(f"{shown(remote.url)} is not the same file as {file.name} of the first source")
            if not remote.ranges:
                raise DeliveryError(f"{shown(remote.url)} does not honour Range")
            self.remotes[number] = remote
        return self.remotes[number]


class Filling:
    """A run on its way into the cache: follows the bytes from piece to piece.

    Args:
        file: that they belong to.
        numbers: of the run's pieces, rising; those between that are not named are passed over.
        pieces: all of them.
        done: told of a piece that is there, and its SHA-256.
    """

    def __init__(self, file: FetchedFile, numbers: list[int], pieces: Sequence[Piece], done: Callable[[int, str], None]) -> None:
        self._file, self._pieces, self._done = file, pieces, done
        self.left = list(numbers)
        self.at = pieces[numbers[0]].start
        self.end = pieces[numbers[-1]].end
        self._digest = hashlib.sha256()

    def feed(self, chunk: bytes) -> int:
        """Take the next bytes; return how many of them were new."""
        new_bytes = 0
        while chunk and self.left:
            piece = self._pieces[self.left[0]]
            skip = max(0, piece.start - self.at)  # of pieces that are there already
            part = chunk[skip : piece.end - self.at]
            if part:
                self._file.entry.write(self.at + skip, part)
                self._digest.update(part)
            step = min(len(chunk), piece.end - self.at)
            self.at, chunk, new_bytes = self.at + step, chunk[step:], new_bytes + len(part)
            if self.at == piece.end:
                number, sha256, self._digest = self.left.pop(0), self._digest.hexdigest(), hashlib.sha256()
                self._done(number, sha256)
        return new_bytes
