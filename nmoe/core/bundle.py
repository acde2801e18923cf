"""Bundle: what training writes for one node and serving reads.

A folder with ``card.json`` and three safetensors files (extractor, expert, gate), and with a fourth, ``prototypes.safetensors``, where the
node can announce what its classes look like to mixtures whose gate does not know it (``nmoe.moe.newcomer``); a bundle without one reads
alike. Reading checks the card, then sizes and hashes, before a tensor is touched; nothing is ever unpickled. Shapes of modules are checked
when they are built (``nmoe.moe.build``), prototypes here.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
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
PROTOTYPES = "prototypes"  # the part a bundle may lack


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
        files: size and hash of each file, of the prototypes too where there are any.
        provenance: recipe, seed, data and revision.
        class_names: of all classes in order, where the data set names them.
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
    class_names: tuple[str, ...] = ()


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """A verified bundle in memory: its card and the tensors of each part by name, ``prototypes`` only where it has them."""

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
        tensors: the tensors of ``extractor``, ``expert`` and ``gate``, and of ``prototypes`` if there are any: ``classes`` int64 [n],
            rising and among the card's ``classes_seen``, ``means`` float32 [n, dim] and ``counts`` int64 [n].
        card: the card's fields but ``format``, ``files`` and ``extractor_fingerprint``, which are computed here.

    Returns:
        The card as written.

    Raises:
        ValueError: when a part is missing, or the prototypes are not such.
    """
    if set(tensors) - {PROTOTYPES} != set(PARTS):
        raise ValueError(f"a bundle has the parts {', '.join(PARTS)} and may have {PROTOTYPES}, got {', '.join(sorted(tensors))}")
    if PROTOTYPES in tensors and (reason := unsound_prototypes(tensors[PROTOTYPES], card["classes_seen"])):
        raise ValueError(f"prototypes of a bundle: {reason}")
    files = {}
    for part in (part for part in (*PARTS, PROTOTYPES) if part in tensors):
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
    if set(card.files) - {PROTOTYPES} != set(PARTS):
        return f"its files are not those of {', '.join(PARTS)} and, if any, {PROTOTYPES}"
    if card.k < 1:  # a large one is none: serving asks as many as it reaches
        return f"k is {card.k}"
    if not all(0 <= label < card.num_classes for label in card.classes_seen):
        return f"a class it has seen is not one of its {card.num_classes}"
    return None


def unsound_prototypes(prototypes: Mapping[str, Tensor], classes_seen: Sequence[int]) -> str | None:
    """Say what is wrong with the tensors of prototypes, from a bundle or from a stranger's card, or None.

    Args:
        prototypes: ``classes`` int64 [n], ``means`` float32 [n, dim] and ``counts`` int64 [n] wanted.
        classes_seen: the classes that the prototypes may be of.
    """
    if set(prototypes) != {"classes", "means", "counts"}:
        return f"tensors classes, counts, means wanted, got {', '.join(sorted(prototypes))}"
    classes, means, counts = (prototypes[name] for name in ("classes", "means", "counts"))
    if (classes.dtype, means.dtype, counts.dtype) != (torch.int64, torch.float32, torch.int64):
        return f"classes int64, means float32 and counts int64 wanted, got {classes.dtype}, {means.dtype} and {counts.dtype}"
    if classes.ndim != 1 or counts.shape != classes.shape or means.ndim != 2 or len(means) != len(classes):
        return f"classes [n], means [n, dim] and counts [n] wanted, got {list(classes.shape)}, {list(means.shape)} and {list(counts.shape)}"
    if not bool((classes.diff() > 0).all()):
        return f"classes must rise, none twice, got {classes.tolist()}"
    if not set(classes.tolist()) <= set(classes_seen):
        return f"classes {classes.tolist()} are not all among the classes seen, {sorted(classes_seen)}"
    if not bool(torch.isfinite(means).all()):
        return "NaN or infinity in means"
    if not bool((counts > 0).all()):
        return f"counts must be above 0, got {counts.tolist()}"
    return None


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle after checking its card, sizes and hashes.

    Raises:
        BundleError: when anything does not hold; the message names the file.
    """
    card = read_card(folder)
    tensors = {}
    for part in (part for part in (*PARTS, PROTOTYPES) if part in card.files):
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
    if PROTOTYPES in tensors and (reason := unsound_prototypes(tensors[PROTOTYPES], card.classes_seen)):
        raise BundleError(f"{folder / PROTOTYPES}.safetensors is of another make: {reason}")
    return Bundle(card=card, tensors=tensors)
