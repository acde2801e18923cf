"""Folder: the files a server hands out, by plain names, and the models among them that can be planned for."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nmoe.core.errors import BadFile
from nmoe.deliver.card import CARD_SUFFIX
from nmoe.deliver.server.packed import ReadableFile, read_packed
from nmoe.deliver.server.task import PackedModel

MODEL, INDEX = ".safetensors", ".safetensors.index.json"
HANDED_OUT = (MODEL, INDEX, MODEL + CARD_SUFFIX, INDEX + CARD_SUFFIX)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,249}", re.ASCII)


class NoSuchFile(Exception):
    """A name under which nothing is handed out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFile:
    """A file that is open for reading, once per request.

    Attributes:
        descriptor: of the open file.
        size: in bytes, when it was opened.
        etag: another one as soon as the file is another; quoted.
        modified_s: time stamp of the file.
        media_type: what it is.
    """

    descriptor: int
    size: int
    etag: str
    modified_s: int
    media_type: str

    def close(self) -> None:
        """Close it."""
        os.close(self.descriptor)


class Listed(NamedTuple):
    """One model file: its name without suffix, size, and why it cannot be planned for, empty if it can."""

    name: str
    bytes: int
    reason: str


class ModelFolder:
    """A folder of model files. Links in it are not followed, so nothing outside can be reached; other kinds of files are not there.

    Args:
        path: of the folder.

    Raises:
        BadFile: when it is not one.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise BadFile(f"{path} is not a folder")
        self.path = path
        self._packed: dict[str, tuple[str, PackedModel]] = {}

    def open(self, name: str) -> OpenFile:
        """Open a file; the caller closes it.

        Raises:
            NoSuchFile: when the name is not plain, of no kind that is handed out, or of no regular file in the folder.
        """
        if not _NAME.fullmatch(name) or not name.endswith(HANDED_OUT):
            raise NoSuchFile(name)
        try:
            descriptor = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise NoSuchFile(name) from error
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise NoSuchFile(name)
        return OpenFile(
            descriptor=descriptor,
            size=found.st_size,
            etag=f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"',
            modified_s=int(found.st_mtime),
            media_type="application/octet-stream" if name.endswith(MODEL) else "application/json",
        )

    def models(self) -> Iterator[Listed]:
        """Give every model file there is now, by name."""
        for path in sorted(self.path.glob(f"*{MODEL}")):
            try:
                file = self.open(path.name)
            except NoSuchFile:
                continue
            file.close()
            name = path.name.removesuffix(MODEL)
            packed = self.packed(name)
            yield Listed(name, file.size, packed if isinstance(packed, str) else "")

    def packed(self, name: str) -> PackedModel | str:
        """Return a model as it can be planned for, or why it cannot. Read again only when its file or card has changed.

        Raises:
            NoSuchFile: when there is no such model file.
        """
        with self._readable(f"{name}{MODEL}") as (model, etag):
            try:
                with self._readable(f"{name}{MODEL}{CARD_SUFFIX}") as (card, card_etag):
                    if name not in self._packed or self._packed[name][0] != etag + card_etag:
                        self._packed[name] = etag + card_etag, read_packed(name, model, card)
            except NoSuchFile:
                return f"{name}{MODEL} has no card: write one with nmoe deliver pack"
            except BadFile as error:
                return str(error)
        return self._packed[name][1]

    @contextmanager
    def _readable(self, name: str) -> Iterator[tuple[ReadableFile, str]]:
        """Open a file for the length of a block; gives its ETag too."""
        file = self.open(name)
        try:
            yield ReadableFile(name=name, descriptor=file.descriptor, size=file.size), file.etag
        finally:
            file.close()
