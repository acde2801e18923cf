"""Card: what ``nmoe deliver pack`` writes beside a model's file, ``NAME.card.json``, so that a client knows order and hashes beforehand.

A card is as untrusted as the file. It must fit the file's header; its hashes then hold for the file, and its order is a hint.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

import msgspec

from nmoe.core.errors import BadFile
from nmoe.deliver.execution import LayerGroup
from nmoe.deliver.layout import Layout

CARD_FORMAT = 1
CARD_SUFFIX = ".card.json"
MAX_CARD_BYTES = 100_000_000
_SHA256 = re.compile("[0-9a-f]{64}")


class CardFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file: its length, and the SHA-256 of all of it and of what comes before its data."""

    bytes: int
    sha256: str
    head_sha256: str


class CardTensor(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor: its name, the length of its data, and their SHA-256."""

    name: str
    bytes: int
    sha256: str


class DeliveryCard(msgspec.Struct, frozen=True, kw_only=True):
    """The card of a model.

    Attributes:
        format: of the card.
        traced: whether the order is that of a traced call; else tensors are in the order of the files.
        files: by name.
        tensors: in the order in which they should be fetched.
        layers: groups of them that are computed together, with bytes and, where traced, operations per sample.
    """

    format: int
    traced: bool
    files: dict[str, CardFile]
    tensors: tuple[CardTensor, ...]
    layers: tuple[LayerGroup, ...]


def card_url(url: str) -> str:
    """Return where the card of a file is looked for: beside it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path + CARD_SUFFIX))


def parse_card(data: bytes, *, name: str) -> DeliveryCard:
    """Read a card.

    Raises:
        BadFile: when it is none of this format.
    """
    try:
        card = msgspec.json.decode(data, type=DeliveryCard)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFile(f"{name} is not a card of a model: {error}") from error
    if card.format != CARD_FORMAT:
        raise BadFile(f"{name} has card format {card.format}, this nmoe reads format {CARD_FORMAT}")
    hashes = [file.sha256 for file in card.files.values()] + [file.head_sha256 for file in card.files.values()]
    if not all(_SHA256.fullmatch(sha256) for sha256 in (*hashes, *(tensor.sha256 for tensor in card.tensors))):
        raise BadFile(f"{name}: a SHA-256 is 64 hexadecimal digits, one is not")
    if not all(group.flops is None or (math.isfinite(group.flops) and group.flops >= 0) for group in card.layers):
        raise BadFile(f"{name}: operations per sample must be at least 0")
    return card


def fit_card(card: DeliveryCard, files: Mapping[str, tuple[Layout, bytes]], *, name: str) -> dict[str, CardFile]:
    """Check that a card is of these files.

    Args:
        card: the card.
        files: layout and head of each, by name; a single one may have another name than in the card.
        name: of the card, for errors.

    Returns:
        What the card says of each file.

    Raises:
        BadFile: when it is of others.
    """
    told = dict(zip(files, card.files.values(), strict=True)) if len(files) == len(card.files) == 1 else card.files
    if set(told) != set(files):
        raise BadFile(f"{name} is the card of other files: {', '.join(sorted(told))}")
    for file, (layout, head) in files.items():
        if told[file].bytes != layout.file_bytes or told[file].head_sha256 != hashlib.sha256(head).hexdigest():
            raise BadFile(f"{name} is the card of another {file}: its length or header differ")
    sizes = {place.name: place.end - place.start for layout, _ in files.values() for place in layout.tensors}
    if len(card.tensors) != len(sizes) or {tensor.name: tensor.bytes for tensor in card.tensors} != sizes:
        raise BadFile(f"{name} does not list the tensors of its files")
    return {file: told[file] for file in files}
