"""Intake: from a model's files on their servers to their folders in the cache, with what a card tells of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urljoin

from nmoe.core.errors import BadFile
from nmoe.core.files import write_bytes
from nmoe.deliver.address import shown
from nmoe.deliver.cache import find_whole, open_complete, open_entry, url_folder
from nmoe.deliver.card import DeliveryCard, card_url, fit_card, parse_card
from nmoe.deliver.delivery import Delivery
from nmoe.deliver.layout import Layout, TensorPlace, check_index, parse_index, read_layout
from nmoe.deliver.mapped import MappedFile
from nmoe.deliver.remote import RemoteModel, file_name, is_index
from nmoe.deliver.supply import FetchedFile, Supplier

CardGiven = DeliveryCard | Path | Literal[False] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What is known of a model's files beforehand.

    Attributes:
        file_sha256: SHA-256 of each file, by its name; empty where not known.
        asked_sha256: the one that the caller wants a single file to have; empty if none.
        tensor_sha256: SHA-256 of tensors.
        order: of execution; empty where not known.
    """

    file_sha256: Mapping[str, str]
    asked_sha256: str
    tensor_sha256: Mapping[str, str]
    order: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """Files in the cache, some of which are still to come.

    Attributes:
        files: that are to come, with their sources and what their journals say.
        suppliers: see files.
        cached: see files.
        places: where each tensor lies.
        paths: of all files.
    """

    files: list[FetchedFile]
    suppliers: list[Supplier]
    cached: list[Mapping[tuple[int, int], str]]
    places: dict[str, tuple[MappedFile, TensorPlace]]
    paths: list[Path]


def ask_card(given: CardGiven, remote: RemoteModel, url: str, sha256: str, delivery: Delivery) -> Told:
    """Return what the card tells, the one given or the one beside the file, and the caller.

    Args:
        given: see ``stream_model``.
        remote: the model's files.
        url: of the model.
        sha256: of a single file, as the caller knows it; else empty.
        delivery: told where no card can be read.

    Raises:
        BadFile: when the card is of other files, or contradicts the caller.
    """
    name = shown(card_url(url))
    card: DeliveryCard | None
    if given is None:
        card = remote.card(delivery.notice, url)
    elif isinstance(given, Path):
        name = str(given)
        try:
            card = parse_card(given.read_bytes(), name=name)
        except OSError as error:
            raise BadFile(f"cannot read {given}: {error.strerror}") from error
    else:
        card = given or None
    hashes = dict.fromkeys((part.name for part in remote.parts), sha256)
    if card is None:
        return Told(file_sha256=hashes, asked_sha256=sha256, tensor_sha256={}, order=())
    told = {
        file: of.sha256 for file, of in fit_card(card, {part.name: (part.layout, part.head) for part in remote.parts}, name=name).items()
    }
    if sha256 and told != hashes:
        raise BadFile(f"{file_name(url)} should have SHA-256 {sha256}, its card says {next(iter(told.values()))}")
    order = tuple(tensor.name for tensor in card.tensors) if card.traced else ()
    return Told(file_sha256=told, asked_sha256=sha256, tensor_sha256={tensor.name: tensor.sha256 for tensor in card.tensors}, order=order)


def whole_files(remote: RemoteModel, folder: Path, sha256: str) -> list[tuple[Path, Layout]] | None:
    """Return the files and their layouts where the cache has all of them as the server has them now, else None."""
    entries = [find_whole(folder, part.version(sha256)) for part in remote.parts]
    whole = [(entry.path, part.layout) for entry, part in zip(entries, remote.parts, strict=True) if entry is not None]
    return whole if len(whole) == len(entries) else None


def kept_files(folder: Path, url: str, sha256: str) -> list[tuple[Path, Layout]]:
    """Return a model's files and their layouts from the cache, without any network.

    Raises:
        BadFile: when one is not there, not whole, or has another hash than the one given.
    """
    if not is_index(url):
        entry = open_complete(folder, url, sha256)
        return [(entry.path, read_layout(entry.path, entry.version.bytes))]
    index = url_folder(folder, url) / "index.json"
    if not index.is_file():
        raise BadFile(f"{shown(url)} is not in the cache {folder}, and the server is not to be asked")
    shards = parse_index(index.read_bytes(), name=file_name(url))
    entries = {name: open_complete(folder, urljoin(url, quote(name)), "") for name in sorted(set(shards.values()))}
    layouts = {name: read_layout(entry.path, entry.version.bytes) for name, entry in entries.items()}
    check_index(shards, layouts, name=file_name(url))
    return [(entries[name].path, layouts[name]) for name in entries]


def take_in(remote: RemoteModel, told: Told, folder: Path, url: str, *, patience_s: float) -> Intake:
    """Open the folders of all files, and begin those that are not whole.

    Raises:
        CacheFailure: when there is no room, or another process holds one for longer than ``patience_s``.
    """
    if remote.index:
        write_bytes(url_folder(folder, url) / "index.json", remote.index)
    intake = Intake(files=[], suppliers=[], cached=[], places={}, paths=[])
    coming = []
    try:
        for number, part in enumerate(remote.parts):
            entry = open_entry(folder, part.version(told.file_sha256[part.name]), patience_s=patience_s)
            if not entry.complete:
                coming.append(number)
                file = FetchedFile(name=part.name, layout=part.layout, head=part.head, entry=entry, sha256=told.asked_sha256)
                intake.files.append(file)
                intake.cached.append(entry.begin(part.head, part.layout))
            pages = MappedFile(entry.path, part.layout)
            intake.places.update({place.name: (pages, place) for place in part.layout.tensors})
            intake.paths.append(entry.folder / "whole")
    except BaseException:
        for file in intake.files:
            file.entry.close()
        raise
    for supplier in remote.suppliers:
        remotes = {at: supplier.remotes[number] for at, number in enumerate(coming) if number in supplier.remotes}
        intake.suppliers.append(replace(supplier, urls=[supplier.urls[number] for number in coming], remotes=remotes))
    return intake


def mapped_places(files: Sequence[tuple[Path, Layout]]) -> dict[str, tuple[MappedFile, TensorPlace]]:
    """Return where each tensor of whole files lies."""
    places = {}
    for path, layout in files:
        pages = MappedFile(path, layout)
        places.update({place.name: (pages, place) for place in layout.tensors})
    return places
