"""Bundle: what training writes for one node and serving reads.

A folder with ``card.json`` and three safetensors files (extractor, expert, gate). Reading checks the card, then sizes and hashes, before a
tensor is touched; nothing is ever unpickled. Shapes are checked when the modules are built (``nmoe.moe.build``).
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from nmoe.core.errors import BundleError
from nmoe.core.files import write_bytes

FORMAT = 1
PARTS = ("extractor", "expert", "gate")


class PartFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Size and SHA-256 of one file of a bundle."""

    bytes: int
    sha256: str


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to build one module: its kind and its keyword arguments."""

    kind: str
    arguments: dict[str, int | float | bool | str]


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a bundle came from."""

    recipe: str
    seed: int
    data: str
    git_revision: str


class BundleCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The card of a bundle.

    Attributes:
        format: version of the bundle format.
        node: name of the node, one word such as ``node-3``.
        experts: names of all nodes, in the order of the gate's outputs.
        neighbours: names of the nodes this one may ask (itself left out).
        classes_seen: class numbers in this node's training data.
        num_classes: classes the experts tell apart.
        k: experts asked per sample.
        mix: whether experts' probabilities or logits are averaged.
        image_shape: height, width, channels of an input image (uint8).
        extractor, expert, gate: how to build each part.
        extractor_fingerprint: SHA-256 of the extractor's tensors; only nodes that agree on it exchange features.
        files: size and hash of each file.
        provenance: recipe, seed, data and revision.
    """

    format: int
    node: str
    experts: tuple[str, ...]
    neighbours: tuple[str, ...]
    classes_seen: tuple[int, ...]
    num_classes: int
    k: int
    mix: Literal["probabilities", "logits"]
    image_shape: tuple[int, int, int]
    extractor: ModelSpec
    expert: ModelSpec
    gate: ModelSpec
    extractor_fingerprint: str
    files: dict[str, PartFile]
    provenance: Provenance


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """A verified bundle in memory: its card and the tensors of each part by name."""

    card: BundleCard
    tensors: dict[str, dict[str, Tensor]]


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over names, dtypes, shapes and values, independent of insertion order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous().cpu()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_bundle(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], **card: Any) -> BundleCard:
    """Write a bundle; the card goes last, so a folder with a card is whole.

    Args:
        folder: where to write; made if absent.
        tensors: the tensors of ``extractor``, ``expert`` and ``gate``.
        card: the card's fields but ``format``, ``files`` and ``extractor_fingerprint``, which are computed here.

    Returns:
        The card as written.

    Raises:
        ValueError: when a part is missing.
    """
    if set(tensors) != set(PARTS):
        raise ValueError(f"a bundle has the parts {', '.join(PARTS)}, got {', '.join(sorted(tensors))}")
    files = {}
    for part in PARTS:
        data = save_tensors({name: tensor.detach().contiguous().clone() for name, tensor in tensors[part].items()})
        write_bytes(folder / f"{part}.safetensors", data)
        files[part] = PartFile(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    whole = BundleCard(format=FORMAT, files=files, extractor_fingerprint=fingerprint(tensors["extractor"]), **card)
    write_bytes(folder / "card.json", (json.dumps(msgspec.to_builtins(whole), indent=2) + "\n").encode())
    return whole


def read_card(folder: Path) -> BundleCard:
    """Read and check a bundle's card alone.

    Raises:
        BundleError: when there is no card, or it is not one of this format.
    """
    path = folder / "card.json"
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle: no card.json in it")
    try:
        card = msgspec.json.decode(path.read_bytes(), type=BundleCard)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is damaged or of another format: {error}") from error
    if card.format != FORMAT:
        raise BundleError(f"{path} has bundle format {card.format}, this nmoe reads format {FORMAT}")
    if reason := _contradiction(card):
        raise BundleError(f"{path} contradicts itself: {reason}")
    return card


def _contradiction(card: BundleCard) -> str | None:
    """Say which fields of a card cannot hold together, or None."""
    reachable = (card.node, *card.neighbours)
    if len(set(card.experts)) != len(card.experts) or len(set(reachable)) != len(reachable) or not set(reachable) <= set(card.experts):
        return "node and neighbours are not different ones of its experts"
    if set(card.files) != set(PARTS):
        return f"its files are not those of {', '.join(PARTS)}"
    if card.k < 1:  # a large one is none: serving asks as many as it reaches
        return f"k is {card.k}"
    if not all(0 <= label < card.num_classes for label in card.classes_seen):
        return f"a class it has seen is not one of its {card.num_classes}"
    return None


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle after checking its card, sizes and hashes.

    Raises:
        BundleError: when anything does not hold; the message names the file.
    """
    card = read_card(folder)
    tensors = {}
    for part in PARTS:
        path = folder / f"{part}.safetensors"
        if not path.is_file():
            raise BundleError(f"bundle {folder} lacks {path.name}")
        data = path.read_bytes()
        wanted = card.files[part]
        if len(data) != wanted.bytes:
            raise BundleError(f"{path} is damaged: {wanted.bytes} bytes wanted, {len(data)} found")
        if hashlib.sha256(data).hexdigest() != wanted.sha256:
            raise BundleError(f"{path} is damaged: its SHA-256 is not the card's")
        try:
            tensors[part] = load_tensors(data)
        except SafetensorError as error:
            raise BundleError(f"{path} is not a safetensors file: {error}") from error
    if fingerprint(tensors["extractor"]) != card.extractor_fingerprint:
        raise BundleError(f"{folder}: the extractor's fingerprint is not the card's")
    return Bundle(card=card, tensors=tensors)
