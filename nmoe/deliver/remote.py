"""Remote: finds a model's files on its servers and reads their headers, before anything else is fetched."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote, unquote, urljoin, urlsplit

from nmoe.core.errors import BadFile
from nmoe.deliver.address import shown
from nmoe.deliver.cache import FileVersion
from nmoe.deliver.card import MAX_CARD_BYTES, DeliveryCard, card_url, parse_card
from nmoe.deliver.http import BrokenTransfer, DeliveryError, RemoteFile, Source, UnknownHost
from nmoe.deliver.layout import LENGTH_BYTES, Layout, TensorPlace, check_index, data_start, parse_index, parse_layout
from nmoe.deliver.supply import FIRST_PAUSE_S, LONGEST_PAUSE_S, TRIES, Supplier

FIRST_BYTES = 1 << 16  # ours: most headers fit
MAX_INDEX_BYTES = 100_000_000

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemotePart:
    """One file of a model.

    Attributes:
        name: without a folder.
        url: as the user or the index names it, on the first source; names the file in the cache.
        layout, head: what it says of itself, and the bytes that say it.
        remote: what the server says of it.
    """

    name: str
    url: str
    layout: Layout
    head: bytes
    remote: RemoteFile

    def version(self, sha256: str) -> FileVersion:
        """Return which version of the file this is; the hash may be empty."""
        validator = self.remote.validator
        if self.remote.url != self.url and validator:  # another source's word
            validator = f"{shown(self.remote.url)} {validator}"
        head_sha256 = hashlib.sha256(self.head).hexdigest()
        return FileVersion(url=self.url, bytes=self.layout.file_bytes, validator=validator, head_sha256=head_sha256, sha256=sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteModel:
    """A model's files.

    Attributes:
        parts: the files.
        suppliers: the sources that have them, the one they were opened on first.
        index: of shards, as it came; empty for a single file.
    """

    parts: tuple[RemotePart, ...]
    suppliers: tuple[Supplier, ...]
    index: bytes

    @property
    def places(self) -> list[TensorPlace]:
        """Where the tensors of all files lie."""
        return [place for part in self.parts for place in part.layout.tensors]

    def close(self) -> None:
        """End all connections."""
        for supplier in self.suppliers:
            supplier.source.close()

    def card(self, notice: Callable[[str], None], url: str) -> DeliveryCard | None:
        """Return the card beside the model's file, if there is one that can be read."""
        try:
            data = self.suppliers[0].source.small(card_url(url), MAX_CARD_BYTES)
            return None if data is None else parse_card(data, name=shown(card_url(url)))
        except (DeliveryError, BadFile) as error:
            notice(f"no card: {error}")
            return None


def check_url(url: str) -> str:
    """Return an address.

    Raises:
        ValueError: when it is not an http or https one.
    """
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as error:  # of a port that is no number, or half a bracket
        raise ValueError(f"an http or https address wanted, got {shown(url)}: {error}") from None
    if not fits:
        raise ValueError(f"an http or https address wanted, got {shown(url)}")
    return url


def file_name(url: str) -> str:
    """Return the last part of an address."""
    return unquote(urlsplit(url).path.rpartition("/")[2]) or shown(url)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A model's files as one source has them."""

    source: Source
    parts: tuple[RemotePart, ...]
    index: bytes

    @property
    def ranges(self) -> bool:
        return all(part.remote.ranges for part in self.parts)

    def supplier(self) -> Supplier:
        remotes = dict(enumerate(part.remote for part in self.parts))
        return Supplier(source=self.source, urls=[remote.url for remote in remotes.values()], remotes=remotes)


def open_remote(
    urls: Sequence[str], *, headers: Mapping[str, str], stall_timeout_s: float, deadline_s: float, notice: Callable[[str], None]
) -> RemoteModel:
    """Open a model's files: on the first source that has them and honours Range, else on the first that has them.

    Args:
        urls: of the file, or of the index of its shards, on each source.
        headers: sent with every request.
        stall_timeout_s: see ``Source``.
        deadline_s: for how long to ask again, where that may help.
        notice: told of sources that failed.

    Raises:
        DeliveryError: when no source has them.
        BadFile: when a header or the index does not hold together.
    """
    until_s, turn = time.monotonic() + deadline_s, 0
    while True:
        try:
            return _open_once(urls, headers, stall_timeout_s, until_s, notice)
        except BrokenTransfer as error:
            pause_s = max(error.retry_after_s, min(FIRST_PAUSE_S * 2.0 ** min(turn, 10), LONGEST_PAUSE_S))
            left_s = until_s - time.monotonic()
            if pause_s > left_s:
                raise
            if not turn:
                notice(f"{error}; tried again for up to {left_s:.0f} s")
            time.sleep(pause_s)
            turn += 1


def _open_once(
    urls: Sequence[str], headers: Mapping[str, str], stall_timeout_s: float, until_s: float, notice: Callable[[str], None]
) -> RemoteModel:
    """Ask the sources in turn until one has the files.

    Raises:
        BrokenTransfer: when none does, and asking again may help.
        DeliveryError: when none does.
    """
    best: _Found | None = None
    failed: list[DeliveryError] = []
    later = list(urls)
    while later and (best is None or not best.ranges):
        found = _find(later.pop(0), urls[0], Source(headers=headers, stall_timeout_s=stall_timeout_s), until_s, failed)
        if found is not None and best is not None:
            other, best = (best, found) if found.ranges else (found, best)
            failed.append(DeliveryError(f"{shown(other.parts[0].remote.url)} does not honour Range"))
            other.source.close()
        best = best or found
    if best is None:
        reasons = "; ".join(map(str, failed))
        if passing := [error.retry_after_s for error in failed if isinstance(error, BrokenTransfer) and not isinstance(error, UnknownHost)]:
            raise BrokenTransfer(reasons, retry_after_s=min(passing))
        raise DeliveryError(reasons)
    for reason in failed:
        notice(f"a source is dropped: {reason}")
    suppliers = [best.supplier()]
    if not best.ranges:
        notice(f"{shown(suppliers[0].urls[0])} does not honour Range: one sequential download, in the order of the file")
    for url in later:  # asked by their own threads, so that a dead one delays nobody
        places = [_beside(url, part.name) if best.index else url for part in best.parts]
        suppliers.append(Supplier(source=Source(headers=headers, stall_timeout_s=stall_timeout_s), urls=places))
    return RemoteModel(parts=best.parts, suppliers=tuple(suppliers), index=best.index)


def is_index(url: str) -> bool:
    """Say whether an address is that of an index of shards."""
    return urlsplit(url).path.endswith(".index.json")


def _find(url: str, first_url: str, source: Source, until_s: float, failed: list[DeliveryError]) -> _Found | None:
    """Read the headers of all files of a model on one source; note why not."""
    try:
        if not is_index(url):
            return _Found(source=source, parts=(_open_part(source, url, first_url, until_s),), index=b"")
        index = _tried(lambda: source.small(url, MAX_INDEX_BYTES), until_s)
        if index is None:
            raise DeliveryError(f"{shown(url)} answers 404: there is no such index")
        shards = parse_index(index, name=file_name(url))
        parts = tuple(_open_part(source, _beside(url, name), _beside(first_url, name), until_s) for name in sorted(set(shards.values())))
        check_index(shards, {part.name: part.layout for part in parts}, name=file_name(url))
        return _Found(source=source, parts=parts, index=index)
    except DeliveryError as error:
        source.close()
        failed.append(error)
        return None
    except BaseException:
        source.close()
        raise


def _beside(url: str, name: str) -> str:
    return urljoin(url, quote(name))


def _open_part(source: Source, url: str, first_url: str, until_s: float) -> RemotePart:
    name = file_name(first_url)
    remote, head = _tried(lambda: source.open(url, FIRST_BYTES), until_s)
    start = data_start(head[:LENGTH_BYTES], remote.bytes, name=name)
    if start > len(head):
        head = _tried(lambda: _read_all(source, remote, start), until_s)
    return RemotePart(
        name=name, url=first_url, layout=parse_layout(head[:start], remote.bytes, name=name), head=head[:start], remote=remote
    )


def _read_all(source: Source, remote: RemoteFile, end: int) -> bytes:
    with closing(source.read(remote, 0, end)) as chunks:
        data = b"".join(chunks)
    if len(data) < end:
        raise BrokenTransfer(f"{shown(remote.url)} ended at byte {len(data)}")
    return data


def _tried(ask: Callable[[], Result], until_s: float) -> Result:
    """Ask again a few times when a transfer breaks, until that time, before another source is asked."""
    for turn in range(TRIES - 1):
        try:
            return ask()
        except BrokenTransfer as error:
            pause_s = FIRST_PAUSE_S * 2**turn
            if isinstance(error, UnknownHost) or error.retry_after_s > pause_s or time.monotonic() + pause_s > until_s:
                raise
            time.sleep(pause_s)
    return ask()
