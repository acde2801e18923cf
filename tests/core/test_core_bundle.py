"""Bundles: what was written is read back, and nothing else is."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from nmoe.core.bundle import FORMAT, PARTS, PROTOTYPES, Bundle, ModelSpec, Provenance, fingerprint, read_bundle, read_card, write_bundle
from nmoe.core.errors import BadFile, BundleError, NmoeError

CARD = {
    "node": "node-1",
    "experts": ("node-0", "node-1", "node-2"),
    "neighbours": ("node-0", "node-2"),
    "classes_seen": (3, 4),
    "num_classes": 10,
    "k": 2,
    "mix": "probabilities",
    "image_shape": (8, 8, 1),
    "extractor": ModelSpec(kind="conv", arguments={"in_channels": 1, "feature_dim": 8}),
    "expert": ModelSpec(kind="mlp", arguments={"feature_dim": 8, "hidden_dim": 4, "num_classes": 10}),
    "gate": ModelSpec(kind="top_k", arguments={"feature_dim": 8, "num_experts": 3, "trunk_dim": 0, "noisy": False}),
    "provenance": Provenance(recipe="test", seed=7, data="digits", git_revision="abc"),
}


def some_tensors() -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return {
        "extractor": {
            "conv.weight": torch.randn(4, 1, 3, 3, generator=generator),
            "half": torch.randn(5, generator=generator).to(torch.bfloat16),
            "count": torch.tensor(3),
            "turned": torch.randn(3, 2, generator=generator).T,
        },
        "expert": {"output.weight": torch.randn(10, 4, generator=generator), "output.bias": torch.zeros(10)},
        "gate": {"output.weight": torch.randn(3, 8, generator=generator, requires_grad=True)},
    }


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "node-1"
    write_bundle(folder, some_tensors(), **CARD)
    return folder


@pytest.fixture
def bundle(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "node-1"))


def same_tensors(bundle: Bundle) -> bool:
    wanted = some_tensors()
    return bundle.tensors.keys() == wanted.keys() and all(
        bundle.tensors[part].keys() == wanted[part].keys()
        and all(torch.equal(bundle.tensors[part][name], tensor) for name, tensor in wanted[part].items())
        and all(bundle.tensors[part][name].dtype == tensor.dtype for name, tensor in wanted[part].items())
        for part in PARTS
    )


def refused(folder: Path, *words: str) -> str:
    """Return the one line a bundle is refused with, after checking that it holds the words."""
    with pytest.raises(BundleError) as caught:
        read_bundle(folder)
    line = str(caught.value)
    assert "\n" not in line
    assert isinstance(caught.value, BadFile)
    assert isinstance(caught.value, NmoeError)
    for word in words:
        assert word in line
    return line


def edit_card(folder: Path, change: Callable[[dict], object]) -> None:
    card = json.loads((folder / "card.json").read_text())
    change(card)
    (folder / "card.json").write_text(json.dumps(card))


def test_round_trip(pristine):
    bundle = read_bundle(pristine)
    assert same_tensors(bundle)
    assert {name: value for name, value in msgspec.structs.asdict(bundle.card).items() if name in CARD} == CARD
    assert bundle.card.format == FORMAT
    assert bundle.card.extractor_fingerprint == fingerprint(some_tensors()["extractor"])
    assert read_card(pristine) == bundle.card
    assert sorted(path.name for path in pristine.iterdir()) == ["card.json", *sorted(f"{part}.safetensors" for part in PARTS)]


def test_written_files_are_plain_json_and_safetensors(pristine):
    card = json.loads((pristine / "card.json").read_text())
    assert card["files"]["gate"]["bytes"] == (pristine / "gate.safetensors").stat().st_size
    assert torch.equal(load_file(pristine / "expert.safetensors")["output.weight"], some_tensors()["expert"]["output.weight"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.sampled_from(PARTS), place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_flipped_byte_of_a_file_is_found(bundle, part, place, flip):
    path = bundle / f"{part}.safetensors"
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[int(place * len(whole))] ^= flip
    path.write_bytes(changed)
    try:
        refused(bundle, path.name, "SHA-256")
    finally:
        path.write_bytes(whole)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_flipped_byte_of_the_card_never_changes_a_tensor(bundle, place, flip):
    """A card holds no hash of itself: a flip inside a word may pass, but then the tensors are still the right ones."""
    path = bundle / "card.json"
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[int(place * len(whole))] ^= flip
    path.write_bytes(changed)
    try:
        with contextlib.suppress(BundleError):
            assert same_tensors(read_bundle(bundle))
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kept", [0, 1, -1])
def test_truncated_file_is_found(bundle, part, kept):
    path = bundle / f"{part}.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(bundle, path.name, "bytes wanted")


@pytest.mark.parametrize("part", PARTS)
def test_grown_file_is_found(bundle, part):
    path = bundle / f"{part}.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    refused(bundle, path.name, "bytes wanted")


@pytest.mark.parametrize("part", PARTS)
def test_missing_file_is_found(bundle, part):
    (bundle / f"{part}.safetensors").unlink()
    refused(bundle, f"lacks {part}.safetensors")


def test_files_of_two_bundles_do_not_mix(bundle, tmp_path):
    tensors = some_tensors()
    tensors["expert"]["output.bias"] = torch.ones(10)
    write_bundle(tmp_path / "other", tensors, **CARD)
    shutil.copy(tmp_path / "other" / "expert.safetensors", bundle)
    refused(bundle, "expert.safetensors", "SHA-256")


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"{}", b'{"format": 1}', b"\xff", b'{"format": "\xff"}', b"{" * 10_000, b"[" * 10_000, b"\x80\x04K\x01."],
    ids=["empty", "list", "null", "bare", "almost-bare", "not-utf8", "not-utf8-inside", "braces", "brackets", "pickle"],
)
def test_foreign_card_is_refused(bundle, content):
    (bundle / "card.json").write_bytes(content)
    refused(bundle, "card.json")


def test_half_written_card_is_refused(bundle):
    path = bundle / "card.json"
    path.write_bytes(path.read_bytes()[:-10])
    refused(bundle, "card.json")


@pytest.mark.parametrize("version", [0, FORMAT + 1, -1])
def test_other_format_version_is_refused(bundle, version):
    edit_card(bundle, lambda card: card.update(format=version))
    refused(bundle, "card.json", f"format {version}", f"format {FORMAT}")


CONTRADICTIONS = {
    "node-is-no-expert": lambda card: card.update(node="node-9"),
    "neighbour-is-no-expert": lambda card: card.update(neighbours=["node-9"]),
    "own-neighbour": lambda card: card.update(neighbours=["node-0", "node-1"]),
    "expert-twice": lambda card: card.update(experts=["node-0", "node-1", "node-2", "node-0"]),
    "neighbour-twice": lambda card: card.update(neighbours=["node-0", "node-0"]),
    "k-zero": lambda card: card.update(k=0),
    "class-seen-out-of-range": lambda card: card.update(classes_seen=[3, 10]),
    "class-seen-negative": lambda card: card.update(classes_seen=[-1]),
    "no-hash-of-the-gate": lambda card: card["files"].pop("gate"),
    "a-file-too-many": lambda card: card["files"].update(other=card["files"]["gate"]),
    "a-file-elsewhere": lambda card: card["files"].update({"../gate": card["files"].pop("gate")}),
}


@pytest.mark.parametrize("change", CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_contradiction_in_the_card_is_refused(bundle, change):
    edit_card(bundle, change)
    refused(bundle, "card.json", "contradicts itself")


MISFITS = {
    "unknown-field": lambda card: card.update(surprise=1),
    "no-k": lambda card: card.pop("k"),
    "k-a-word": lambda card: card.update(k="2"),
    "other-mix": lambda card: card.update(mix="votes"),
    "two-dimensions": lambda card: card.update(image_shape=[8, 8]),
    "argument-a-list": lambda card: card["expert"]["arguments"].update(hidden_dim=[4]),
    "size-negative-word": lambda card: card["files"]["gate"].update(bytes="many"),
}


@pytest.mark.parametrize("change", MISFITS.values(), ids=MISFITS.keys())
def test_card_of_another_make_is_refused(bundle, change):
    edit_card(bundle, change)
    refused(bundle, "card.json", "damaged or of another format")


def test_wrong_fingerprint_is_refused(bundle):
    edit_card(bundle, lambda card: card.update(extractor_fingerprint="0" * 64))
    refused(bundle, "node-1", "fingerprint")


def test_file_with_the_right_hash_that_is_no_safetensors_is_refused(bundle):
    data = b"not tensors at all"
    (bundle / "gate.safetensors").write_bytes(data)
    edit_card(bundle, lambda card: card["files"].update(gate={"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}))
    refused(bundle, "gate.safetensors", "not a safetensors file")


def test_folder_without_card_is_no_bundle(bundle, tmp_path):
    (bundle / "card.json").unlink()
    refused(bundle, "no card.json")
    refused(tmp_path / "nowhere", "no card.json")


@pytest.mark.parametrize("broken_part", [*PARTS, "card"])
def test_a_write_that_fails_midway_leaves_nothing_that_reads_as_a_bundle(tmp_path, monkeypatch, broken_part):
    from nmoe.core import bundle as module

    write = module.write_bytes

    def failing(path: Path, data: bytes) -> None:
        if path.stem == broken_part:
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(module, "write_bytes", failing)
    with pytest.raises(OSError, match="No space"):
        write_bundle(tmp_path / "half", some_tensors(), **CARD)
    assert not (tmp_path / "half" / "card.json").exists()
    refused(tmp_path / "half", "no card.json")


@pytest.mark.parametrize("wrong", [("expert",), ("expert", "gate"), (*PARTS, "head")])
def test_other_parts_are_the_callers_mistake(tmp_path, wrong):
    with pytest.raises(ValueError, match="parts extractor, expert, gate"):
        write_bundle(tmp_path / "x", {part: {} for part in wrong}, **CARD)
    assert not (tmp_path / "x").exists()


def some_prototypes() -> dict[str, torch.Tensor]:
    means = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    return {"classes": torch.tensor([3, 4]), "means": means, "counts": torch.tensor([20, 1])}


@pytest.fixture
def announcing(tmp_path) -> Path:
    """A bundle with prototypes."""
    write_bundle(tmp_path / "announcing", some_tensors() | {PROTOTYPES: some_prototypes()}, **CARD)
    return tmp_path / "announcing"


def test_prototypes_round_trip(announcing, pristine):
    bundle = read_bundle(announcing)
    assert bundle.tensors.keys() == {*PARTS, PROTOTYPES}
    for name, tensor in some_prototypes().items():
        assert torch.equal(bundle.tensors[PROTOTYPES][name], tensor)
        assert bundle.tensors[PROTOTYPES][name].dtype == tensor.dtype
    without = read_bundle(pristine)
    assert PROTOTYPES not in without.tensors
    assert {name: bundle.card.files[name] for name in PARTS} == without.card.files


def test_damaged_prototypes_are_found(announcing):
    path = announcing / "prototypes.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(announcing, path.name, "SHA-256")
    path.write_bytes(whole[:-1])
    refused(announcing, path.name, "bytes wanted")
    path.unlink()
    refused(announcing, "lacks prototypes.safetensors")


def test_prototypes_the_card_does_not_name_are_not_read(bundle, announcing):
    """An older card beside a newer file, or a stranger's file: only what the card vouches for is opened."""
    (bundle / "prototypes.safetensors").write_bytes((announcing / "prototypes.safetensors").read_bytes())
    assert PROTOTYPES not in read_bundle(bundle).tensors


@pytest.mark.parametrize("some", [torch.tensor([3]), torch.tensor([], dtype=torch.int64)], ids=["one", "none"])
def test_prototypes_of_fewer_classes_are_sound(tmp_path, some):
    fewer = {"classes": some, "means": torch.zeros(len(some), 8), "counts": torch.ones(len(some), dtype=torch.int64)}
    write_bundle(tmp_path / "node-1", some_tensors() | {PROTOTYPES: fewer}, **CARD)
    assert torch.equal(read_bundle(tmp_path / "node-1").tensors[PROTOTYPES]["classes"], some)


UNSOUND = {
    "nan": ("NaN or infinity", lambda p: p["means"].__setitem__((0, 3), float("nan"))),
    "infinity": ("NaN or infinity", lambda p: p["means"].__setitem__((1, 0), float("inf"))),
    "no-counts": ("tensors classes, counts, means wanted, got classes, means", lambda p: p.pop("counts")),
    "a-tensor-too-many": ("got classes, counts, means, more", lambda p: p.update(more=torch.zeros(1))),
    "half-means": ("float32 and counts int64 wanted, got torch.int64, torch.float16", lambda p: p.update(means=p["means"].half())),
    "float-classes": ("classes int64", lambda p: p.update(classes=p["classes"].float())),
    "int-counts": ("counts int64 wanted", lambda p: p.update(counts=p["counts"].int())),
    "a-mean-too-few": ("[2], [1, 8] and [2]", lambda p: p.update(means=p["means"][:1])),
    "flat-means": ("means [n, dim]", lambda p: p.update(means=p["means"].flatten())),
    "a-count-too-many": ("[2], [2, 8] and [3]", lambda p: p.update(counts=torch.ones(3, dtype=torch.int64))),
    "square-classes": ("[2, 1], [2, 8] and [2, 1]", lambda p: p.update(classes=p["classes"].view(2, 1), counts=p["counts"].view(2, 1))),
    "class-twice": ("must rise, none twice, got [3, 3]", lambda p: p.update(classes=torch.tensor([3, 3]))),
    "classes-fall": ("must rise", lambda p: p.update(classes=torch.tensor([4, 3]))),
    "class-out-of-range": ("among the classes seen, [3, 4]", lambda p: p.update(classes=torch.tensor([3, 10]))),
    "class-negative": ("among the classes seen", lambda p: p.update(classes=torch.tensor([-1, 3]))),
    "class-unseen": ("[3, 5] are not all among the classes seen", lambda p: p.update(classes=torch.tensor([3, 5]))),
    "count-zero": ("above 0, got [20, 0]", lambda p: p.update(counts=torch.tensor([20, 0]))),
}


@pytest.mark.parametrize(("words", "change"), UNSOUND.values(), ids=UNSOUND.keys())
def test_unsound_prototypes_are_neither_written_nor_read(announcing, tmp_path, words, change):
    prototypes = some_prototypes()
    change(prototypes)
    with pytest.raises(ValueError, match="prototypes of a bundle: ") as caught:
        write_bundle(tmp_path / "other", some_tensors() | {PROTOTYPES: prototypes}, **CARD)
    assert words in str(caught.value)
    assert not (tmp_path / "other").exists()
    data = save({name: tensor.contiguous().clone() for name, tensor in prototypes.items()})
    (announcing / "prototypes.safetensors").write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_card(announcing, lambda card: card["files"].update(prototypes=entry))
    refused(announcing, "prototypes.safetensors is of another make", words)


named = st.dictionaries(st.text("abc.", min_size=1, max_size=4), st.lists(st.floats(-5, 5, width=32), max_size=4), max_size=5)


@given(named, st.randoms(use_true_random=False))
def test_fingerprint_ignores_insertion_order(values, random):
    tensors = {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}
    order = list(tensors)
    random.shuffle(order)
    assert fingerprint(tensors) == fingerprint({name: tensors[name] for name in order})


def test_fingerprint_sees_names_dtypes_shapes_and_every_value():
    base = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.zeros(4)},
        {"a": torch.zeros(2, 3), "c": torch.zeros(4)},
        {"a": torch.zeros(2, 3)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.int32)},
        {"a": torch.zeros(2, 3), "b": -torch.zeros(4)},
    ]
    others += [{"a": torch.zeros(2, 3), "b": torch.eye(4)[place] * 1e-30} for place in range(4)]
    found = [fingerprint(tensors) for tensors in [base, *others]]
    assert len(set(found)) == len(found)
    assert fingerprint(base) == fingerprint({"a": torch.zeros(3, 2).T, "b": torch.zeros(8)[::2]})


def test_fingerprint_survives_the_disk(tmp_path):
    tensors = some_tensors()["extractor"]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "x.safetensors")
    assert fingerprint(load_file(tmp_path / "x.safetensors")) == fingerprint(tensors)
