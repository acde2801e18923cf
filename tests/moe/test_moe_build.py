"""From specs and bundles to modules: a contract for every kind, and what is refused."""

import inspect
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import nmoe.moe
from nmoe.core.bundle import ModelSpec, Provenance, read_bundle, write_bundle
from nmoe.core.errors import BundleError
from nmoe.moe import Expert, Extractor, Gate, Mix, build, fresh_extractor, node_model, restore, split
from nmoe.moe.build import KINDS

ARGUMENTS = {
    "conv": {"in_channels": 1, "feature_dim": 8},
    "lenet": {"in_channels": 1, "image_size": 12, "cut": "pool2"},
    "fixup_resnet": {"in_channels": 1, "widen": 1},
    "vit": {"in_channels": 1, "image_size": 8, "patch_size": 4, "width": 4, "depth": 2, "heads": 2, "cut": 1},
    "mlp": {"feature_dim": 8, "hidden_dim": 4, "num_classes": 10},
    "lenet_tail": {"image_size": 12, "cut": "pool2", "num_classes": 10},
    "fixup_tail": {"widen": 1, "image_size": 2, "cut": "stage2", "num_classes": 10},
    "vit_tail": {"image_size": 8, "patch_size": 4, "width": 4, "depth": 2, "heads": 2, "cut": 1, "num_classes": 10},
    "linear": {"feature_dim": 8, "num_classes": 10},
    "top_k": {"feature_dim": 8, "num_experts": 3, "trunk_dim": 5, "noisy": True},
    "channel_aware": {"feature_dim": 8, "num_experts": 3, "trunk_dim": 5, "hidden_dim": 4, "joint": True},
    "snr": {"hidden_dim": 4, "feature_dim": 8, "num_experts": 3},
}
SPECS = {kind: ModelSpec(kind=kind, arguments=arguments) for kind, arguments in ARGUMENTS.items()}
each_kind = pytest.mark.parametrize("kind", sorted(KINDS))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_final_module_that_the_family_exports_can_be_built_from_disk():
    """But for those that are made of others."""
    exported = {value for value in vars(nmoe.moe).values() if inspect.isclass(value) and issubclass(value, nn.Module)}
    final = {kind for kind in exported if not inspect.isabstract(kind)} - {
        nmoe.moe.StackedExperts,
        nmoe.moe.SeparateExperts,
        nmoe.moe.Mixture,
    }
    assert final == set(KINDS.values())
    assert len(set(KINDS.values())) == len(KINDS)
    assert set(KINDS) == set(ARGUMENTS), "a new kind needs arguments here, so that the contract below covers it"


@each_kind
def test_build_draws_every_weight_from_the_generator(kind):
    torch.manual_seed(1)
    first = build(SPECS[kind], generator=generator(3)).state_dict()
    torch.manual_seed(2)
    second = build(SPECS[kind], generator=generator(3)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build(SPECS[kind], generator=generator(4)).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


@each_kind
def test_restore_rebuilds_the_module_frozen(kind):
    module = build(SPECS[kind], generator=generator())
    with torch.no_grad():
        for index, tensor in enumerate(module.state_dict().values()):
            tensor.copy_(torch.rand(tensor.shape, generator=generator(index)) + 0.5)
    rebuilt = restore(SPECS[kind], module.state_dict())
    assert type(rebuilt) is KINDS[kind]
    assert not rebuilt.training
    assert not any(parameter.requires_grad for parameter in rebuilt.parameters())
    assert all(torch.equal(rebuilt.state_dict()[name], tensor) for name, tensor in module.state_dict().items())
    size = ARGUMENTS[kind].get("image_size", 8)
    dim = module.feature_dim if isinstance(module, Expert) else 8
    inputs = (
        torch.rand(2, 1, size, size, generator=generator()) if isinstance(module, Extractor) else torch.randn(2, dim, generator=generator())
    )
    call = {}
    if isinstance(module, Gate):
        call = {"k": 2, "mask": torch.ones(3, dtype=torch.bool), "snr_db": 20 * torch.randn(2, 3, generator=generator())}
    one, other = module(inputs, **call), rebuilt(inputs, **call)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@each_kind
def test_restored_module_is_a_copy(kind):
    tensors = build(SPECS[kind], generator=generator()).state_dict()
    rebuilt = restore(SPECS[kind], tensors)
    before = {name: tensor.clone() for name, tensor in rebuilt.state_dict().items()}
    for tensor in tensors.values():
        tensor.add_(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in rebuilt.state_dict().items())


@each_kind
def test_tensors_that_do_not_fit_are_refused_by_name(kind):
    tensors = build(SPECS[kind], generator=generator()).state_dict()
    first = sorted(tensors)[0]
    with pytest.raises(ValueError, match=f"'{first}' of '{kind}'.*None found"):
        restore(SPECS[kind], {name: tensor for name, tensor in tensors.items() if name != first})
    with pytest.raises(ValueError, match=f"'surprise' of '{kind}'.*None wanted"):
        restore(SPECS[kind], tensors | {"surprise": torch.zeros(1)})
    with pytest.raises(ValueError, match=f"'{first}' of '{kind}'"):
        restore(SPECS[kind], tensors | {first: tensors[first].unsqueeze(0)})


@each_kind
@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_arguments_that_do_not_fit_are_refused(kind, change):
    arguments = dict(ARGUMENTS[kind])
    if change == "missing":
        arguments.popitem()
    else:
        arguments["surprise"] = 1
    with pytest.raises(ValueError, match=f"arguments of '{kind}' do not fit"):
        build(ModelSpec(kind=kind, arguments=arguments), generator=generator())


@each_kind
def test_negative_sizes_are_refused(kind):
    arguments = ARGUMENTS[kind]
    for name in [name for name, value in arguments.items() if not isinstance(value, bool)]:
        with pytest.raises(ValueError, match=f"{name}|arguments of '{kind}' do not fit"):
            build(ModelSpec(kind=kind, arguments=arguments | {name: -8}), generator=generator())


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=f"must be one of {', '.join(KINDS)}, got 'transformer'"):
        build(ModelSpec(kind="transformer", arguments={}), generator=generator())


def test_fresh_extractor_holds_the_pixel_constants():
    extractor = fresh_extractor(SPECS["conv"], pixel_mean=(0.25,), pixel_std=(0.125,), generator=generator())
    assert extractor.pixel_mean.tolist() == [0.25]
    assert extractor.pixel_std.tolist() == [0.125]
    with pytest.raises(ValueError, match="an extractor is wanted, got kind 'mlp'"):
        fresh_extractor(SPECS["mlp"], pixel_mean=(0.5,), pixel_std=(0.5,), generator=generator())


def write(folder: Path, *, image_shape: tuple[int, int, int] = (8, 8, 1), num_classes: int = 10, **specs: ModelSpec) -> Path:
    """Write a bundle of node-0 among three, with some of its parts exchanged."""
    chosen = {"extractor": SPECS["conv"], "expert": SPECS["mlp"], "gate": SPECS["top_k"]} | specs
    tensors = {part: build(spec, generator=generator()).state_dict() for part, spec in chosen.items()}
    write_bundle(
        folder,
        tensors,
        node="node-0",
        experts=("node-0", "node-1", "node-2"),
        neighbours=("node-1",),
        classes_seen=(0, 1),
        num_classes=num_classes,
        k=2,
        mix="logits",
        image_shape=image_shape,
        provenance=Provenance(recipe="test", seed=0, data="none", git_revision="none"),
        **chosen,
    )
    return folder


def test_node_model_of_a_sound_bundle(tmp_path):
    model = node_model(read_bundle(write(tmp_path / "node-0")))
    assert isinstance(model.expert, Expert)
    assert model.mix is Mix.LOGITS
    features = model.extractor(torch.rand(2, 1, 8, 8, generator=generator()))
    routing = model.gate(features, k=2, mask=torch.tensor([True, True, False]))
    assert model.expert(features).shape == (2, 10)
    assert routing.experts.max() <= 1


def spec(kind: str, **changes: int) -> ModelSpec:
    return ModelSpec(kind=kind, arguments=ARGUMENTS[kind] | changes)


def cut_in_two(name: str, cut: int | str, **sizes: int) -> dict[str, ModelSpec]:
    extractor, expert = split(name, cut, in_channels=1, image_size=12, num_classes=10, sizes=sizes)
    dim = build(expert, generator=generator()).feature_dim
    return {"extractor": extractor, "expert": expert, "gate": spec("channel_aware", feature_dim=dim)}


SOUND_BUNDLES = {
    "gate-of-features-and-links": {"gate": SPECS["channel_aware"]},
    "gate-of-links": {"gate": SPECS["snr"]},
    "lenet": cut_in_two("lenet", "pool1"),
    "fixup": cut_in_two("fixup_resnet", "stage2", widen=1),
    "vit": cut_in_two("vit", "cls", patch_size=4, width=8, depth=2, heads=2),
}


@pytest.mark.parametrize("parts", SOUND_BUNDLES.values(), ids=SOUND_BUNDLES.keys())
def test_any_gate_and_any_backbone_comes_back_from_disk(tmp_path, parts):
    folder = write(tmp_path / "node-0", image_shape=(12, 12, 1), **parts)
    model = node_model(read_bundle(folder))
    fresh = {part: build(one, generator=generator()) for part, one in parts.items()}
    images, snr_db = torch.rand(3, 1, 12, 12, generator=generator()), torch.tensor([[math.inf, 3.0, math.nan]]).expand(3, -1)
    features = model.extractor(images)
    assert all(
        torch.equal(getattr(model, part).state_dict()[name], tensor) for part in fresh for name, tensor in fresh[part].state_dict().items()
    )
    assert model.expert(features).shape == (3, 10)
    assert model.gate(features, k=2, mask=torch.tensor([True, True, False]), snr_db=snr_db).experts.max() <= 1


WRONG_BUNDLES = {
    "images-of-another-size": {**cut_in_two("lenet", "pool2"), "image_shape": (28, 28, 1)},
    "images-that-are-not-square": {**cut_in_two("lenet", "pool2"), "image_shape": (12, 28, 1)},
    "tail-of-another-cut": {**cut_in_two("lenet", "pool2"), "expert": cut_in_two("lenet", "pool1")["expert"], "image_shape": (12, 12, 1)},
    "extractor-is-an-expert": {"extractor": SPECS["mlp"]},
    "expert-is-a-linear-head": {"expert": SPECS["linear"]},
    "expert-is-a-gate": {"expert": SPECS["top_k"]},
    "gate-is-an-expert": {"gate": SPECS["mlp"]},
    "gate-of-other-experts": {"gate": spec("top_k", num_experts=4)},
    "expert-of-other-classes": {"expert": spec("mlp", num_classes=9)},
    "expert-of-other-features": {"expert": spec("mlp", feature_dim=12)},
    "gate-of-other-features": {"gate": spec("top_k", feature_dim=12)},
    "linear-gate-of-other-features": {"gate": spec("top_k", feature_dim=12, trunk_dim=0)},
    "images-of-other-channels": {"image_shape": (8, 8, 3)},
    "card-of-other-classes": {"num_classes": 9},
}


@pytest.mark.parametrize("wrong", WRONG_BUNDLES.values(), ids=WRONG_BUNDLES.keys())
def test_bundle_whose_parts_do_not_belong_together_is_refused(tmp_path, wrong):
    bundle = read_bundle(write(tmp_path / "node-0", **wrong))
    with pytest.raises(BundleError, match="bundle of node-0: ") as caught:
        node_model(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["extractor", "expert", "gate"])
@pytest.mark.parametrize("change", [{"kind": "unknown"}, {"arguments": {}}, {"arguments": {"feature_dim": -8}}])
def test_bundle_with_a_foreign_spec_is_refused(tmp_path, part, change):
    import msgspec

    bundle = read_bundle(write(tmp_path / "node-0"))
    card = msgspec.structs.replace(bundle.card, **{part: msgspec.structs.replace(bundle.card.expert, **change)})
    with pytest.raises(BundleError, match="bundle of node-0: "):
        node_model(msgspec.structs.replace(bundle, card=card))


def test_tensors_of_another_model_are_refused(tmp_path):
    other = write(tmp_path / "other", expert=spec("mlp", hidden_dim=6))
    folder = write(tmp_path / "node-0")
    shutil.copy(other / "expert.safetensors", folder)
    with pytest.raises(BundleError, match=r"expert\.safetensors"):
        read_bundle(folder)
    bundle, foreign = read_bundle(write(folder)), read_bundle(other)
    bundle.tensors["expert"] = foreign.tensors["expert"]
    with pytest.raises(BundleError, match=r"tensor 'hidden.bias' of 'mlp': torch.float32 \[4\] wanted, torch.float32 \[6\] found"):
        node_model(bundle)
