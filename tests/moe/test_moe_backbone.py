"""Backbones cut in two: front and tail together against the whole network written out, at every cut; published sizes."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nmoe.core.bundle import ModelSpec
from nmoe.moe import BACKBONES, CONSTANTS, Expert, Extractor, build, cuts, restore, split

State = dict[str, Tensor]
VIT = {"patch_size": 4, "width": 8, "depth": 3, "heads": 2}
TINY_VIT = {"patch_size": 16, "width": 192, "depth": 12, "heads": 3}
CLASSES = 10


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lenet(weights: State, pixels: Tensor) -> Tensor:
    hidden = functional.pad(pixels, (2, 2, 2, 2)) if pixels.shape[3] < 32 else pixels
    for stage in ("pool1", "pool2"):
        convolved = functional.conv2d(hidden, weights[f"stages.{stage}.0.weight"], weights[f"stages.{stage}.0.bias"])
        hidden = convolved.clamp_min(0).unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
    hidden = hidden.flatten(1)
    for layer in ("stages.fc1.1", "fc2"):
        hidden = (hidden @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]).clamp_min(0)
    return hidden @ weights["head.output.weight"].T + weights["head.output.bias"]


def fixup(weights: State, pixels: Tensor) -> Tensor:
    hidden = (functional.conv2d(pixels, weights["stem.weight"], padding=1) + weights["stem_bias"]).clamp_min(0)
    for number in range(9):
        block = {name: weights[f"blocks.{number}.{name}"] for name in "bias1a bias1b bias2a bias2b scale conv1.weight conv2.weight".split()}
        stride = 2 if number in (3, 6) else 1
        shifted = hidden + block["bias1a"]
        inner = (functional.conv2d(shifted, block["conv1.weight"], stride=stride, padding=1) + block["bias1b"]).clamp_min(0)
        inner = functional.conv2d(inner + block["bias2a"], block["conv2.weight"], padding=1) * block["scale"] + block["bias2b"]
        if stride == 2:
            hidden = torch.cat((shifted[:, :, ::2, ::2], 0 * shifted[:, :, ::2, ::2]), dim=1)
        hidden = (hidden + inner).clamp_min(0)
    pooled = hidden.mean(dim=(2, 3)) + weights["output_bias"]
    return pooled @ weights["head.output.weight"].T + weights["head.output.bias"]


def vit(weights: State, pixels: Tensor) -> Tensor:
    """Patches by reshaping, blocks by PyTorch's own transformer layer."""
    size, width, side = VIT["patch_size"], VIT["width"], pixels.shape[3] // VIT["patch_size"]
    batch, channels = pixels.shape[:2]
    patches = pixels.reshape(batch, channels, side, size, side, size).permute(0, 2, 4, 1, 3, 5).reshape(batch, side * side, -1)
    tokens = patches @ weights["patches.weight"].reshape(width, -1).T + weights["patches.bias"]
    tokens = torch.cat((weights["class_token"].expand(batch, 1, width), tokens), dim=1) + weights["positions"]
    names = {
        "self_attn.in_proj_weight": "query_key_value.weight",
        "self_attn.in_proj_bias": "query_key_value.bias",
        "self_attn.out_proj.weight": "projection.weight",
        "self_attn.out_proj.bias": "projection.bias",
        "linear1.weight": "widen.weight",
        "linear1.bias": "widen.bias",
        "linear2.weight": "narrow.weight",
        "linear2.bias": "narrow.bias",
    } | {name: name for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")}
    for number in range(VIT["depth"]):
        layer = nn.TransformerEncoderLayer(
            width, VIT["heads"], 4 * width, dropout=0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        layer.load_state_dict({theirs: weights[f"blocks.{number}.{ours}"] for theirs, ours in names.items()})
        tokens = layer(tokens)
    first = functional.layer_norm(tokens[:, 0], (width,), weights["norm.weight"], weights["norm.bias"], eps=1e-6)
    return first @ weights["head.output.weight"].T + weights["head.output.bias"]


class Network(NamedTuple):
    """A backbone to test: its sizes, and the whole of it written out."""

    sizes: dict[str, int]
    whole: Callable[[State, Tensor], Tensor]


NETWORKS = {"lenet": Network({}, lenet), "fixup_resnet": Network({"widen": 1}, fixup), "vit": Network(VIT, vit)}
CUTS = [(name, cut) for name, network in NETWORKS.items() for cut in cuts(name, network.sizes)]
each_cut = pytest.mark.parametrize(("name", "cut"), CUTS)
each_image = pytest.mark.parametrize(("side", "channels"), [(28, 1), (32, 3)])


def both(name: str, cut: int | str, *, side: int, channels: int, sizes: dict[str, int] | None = None) -> tuple[Extractor, Expert]:
    sizes = NETWORKS[name].sizes if sizes is None else sizes
    specs = split(name, cut, in_channels=channels, image_size=side, num_classes=CLASSES, sizes=sizes)
    front, tail = (build(spec, generator=generator()) for spec in specs)
    assert isinstance(front, Extractor)
    assert isinstance(tail, Expert)
    return front, tail


def parameters(*modules: nn.Module) -> State:
    found = [item for module in modules for item in module.named_parameters()]
    assert len(dict(found)) == len(found), "no weight is on both sides of the cut"
    return dict(found)


def num_parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for parameter in parameters(*modules).values())


@torch.no_grad()
def drawn_anew(*modules: nn.Module) -> None:
    """Leave no weight at zero: what a weight does must show."""
    for index, (_, parameter) in enumerate(sorted(parameters(*modules).items())):
        a_matrix = parameter.ndim > 1 and parameter.shape[0] > 1
        parameter.normal_(std=(parameter[0].numel() / 2) ** -0.5 if a_matrix else 0.3, generator=generator(index))


@each_cut
@each_image
def test_front_and_tail_are_the_whole_network(name, cut, side, channels):
    front, tail = both(name, cut, side=side, channels=channels)
    drawn_anew(front, tail)
    images = torch.rand(5, channels, side, side, generator=generator())
    with torch.no_grad():
        features = front(images)
        assert features.shape == (5, front.feature_dim) == (5, tail.feature_dim)
        wanted = NETWORKS[name].whole(parameters(front, tail), (images - 0.5) / 0.5)
        assert float(wanted.std(dim=0).min()) > 1e-4, "the answer must depend on the image"
        torch.testing.assert_close(tail(features), wanted, rtol=1e-4, atol=1e-4)


@each_cut
def test_wherever_the_cut_lies_the_weights_are_the_same_ones(name, cut):
    """So that a network trained with one cut can be taken apart at another."""
    first = cuts(name, NETWORKS[name].sizes)[0]
    one, other = (parameters(*both(name, place, side=28, channels=1)) for place in (first, cut))
    assert {key: tensor.shape for key, tensor in one.items()} == {key: tensor.shape for key, tensor in other.items()}


@each_cut
def test_every_weight_gets_a_gradient_through_the_cut(name, cut):
    front, tail = both(name, cut, side=28, channels=1)
    drawn_anew(front, tail)
    tail(front(torch.rand(8, 1, 28, 28, generator=generator()))).square().sum().backward()
    idle = [key for key, parameter in parameters(front, tail).items() if parameter.grad is None or not parameter.grad.any()]
    assert idle == []


@each_cut
def test_samples_of_a_batch_do_not_see_each_other_and_training_mode_changes_nothing(name, cut):
    front, tail = both(name, cut, side=28, channels=1)
    drawn_anew(front, tail)
    images = torch.rand(4, 1, 28, 28, generator=generator())
    with torch.no_grad():
        together = tail.train()(front.train()(images))
        alone = torch.cat([tail.eval()(front.eval()(image.unsqueeze(0))) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert tail(front(images[:0])).shape == (0, CLASSES)


@each_cut
def test_both_parts_come_back_from_their_specs_and_tensors(name, cut):
    specs = split(name, cut, in_channels=3, image_size=32, num_classes=CLASSES, sizes=NETWORKS[name].sizes)
    for spec in specs:
        module = build(spec, generator=generator(3))
        again = restore(spec, module.state_dict())
        assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in module.state_dict().items())


@each_cut
def test_constants_of_features_lie_before_the_cut(name, cut):
    front, tail = both(name, cut, side=28, channels=1)
    assert {key for key, _ in front.named_buffers()} == CONSTANTS
    assert not list(tail.named_buffers())
    images = torch.rand(6, 1, 28, 28, generator=generator())
    plain = front(images).detach()
    front.feature_mean.copy_(plain.mean(dim=0))
    front.feature_std.fill_(2.0)
    torch.testing.assert_close(front(images), (plain - front.feature_mean) / 2)


@pytest.mark.parametrize(("side", "channels", "published"), [(32, 1, 61_706), (28, 1, 61_706), (32, 3, 62_006)])
@pytest.mark.parametrize("cut", cuts("lenet", {}))
def test_lenet_has_the_published_number_of_parameters(side, channels, published, cut):
    """Of 3 x 32 x 32 it is the network of PyTorch's CIFAR-10 tutorial."""
    assert num_parameters(*both("lenet", cut, side=side, channels=channels)) == published


@pytest.mark.parametrize(
    ("cut", "side", "dim"), [("pool1", 32, 6 * 14 * 14), ("pool2", 32, 16 * 5 * 5), ("pool2", 28, 400), ("fc1", 28, 120)]
)
def test_lenet_maps_have_the_sizes_of_the_paper(cut, side, dim):
    assert both("lenet", cut, side=side, channels=1)[0].feature_dim == dim


@pytest.mark.parametrize(
    ("cut", "side", "dim"), [("stage1", 32, 16 * 32 * 32), ("stage2", 28, 32 * 14 * 14), ("stage2", 7, 32 * 16), ("stage3", 7, 64)]
)
def test_fixup_maps_shrink_by_half_rounded_up(cut, side, dim):
    front, tail = both("fixup_resnet", cut, side=side, channels=1)
    assert front.feature_dim == dim
    assert tail(front(torch.rand(2, 1, side, side, generator=generator()))).shape == (2, CLASSES)


def vit_count(*, channels: int, side: int, patch_size: int, width: int, depth: int, heads: int, classes: int) -> int:
    """Count by hand: patches, class token, positions; per block four projections, a perceptron, two normalisations; norm and head."""
    tokens = (side // patch_size) ** 2 + 1
    entry = patch_size**2 * channels * width + width + width + tokens * width
    block = 4 * (width**2 + width) + 2 * 4 * width**2 + 5 * width + 4 * width
    return entry + depth * block + 2 * width + width * classes + classes


def test_vit_has_the_published_numbers_of_parameters():
    """Of the tiny, small and base models for 224 x 224 images, patches of 16 and 1000 classes."""
    large = {"channels": 3, "side": 224, "patch_size": 16, "depth": 12, "classes": 1000}
    assert [vit_count(width=64 * heads, heads=heads, **large) for heads in (3, 6, 12)] == [5_717_416, 22_050_664, 86_567_656]
    specs = split("vit", 6, in_channels=3, image_size=224, num_classes=1000, sizes=TINY_VIT)
    assert num_parameters(*(build(spec, generator=generator()) for spec in specs)) == 5_717_416


@pytest.mark.parametrize("cut", cuts("vit", VIT))
@each_image
def test_vit_size_by_hand(cut, side, channels):
    assert num_parameters(*both("vit", cut, side=side, channels=channels)) == vit_count(
        channels=channels, side=side, classes=CLASSES, **VIT
    )


def test_cuts_are_told_from_the_beginning_to_the_end():
    assert cuts("vit", VIT) == (0, 1, 2, 3, "cls")
    assert cuts("lenet", {}) == ("pool1", "pool2", "fc1")
    assert cuts("fixup_resnet", {"widen": 2}) == ("stage1", "stage2", "stage3")
    assert set(BACKBONES) == set(NETWORKS)


@pytest.mark.parametrize(
    ("name", "listed"), [("lenet", "pool1, pool2, fc1"), ("fixup_resnet", "stage1, stage2, stage3"), ("vit", "0, 1, 2, 3, cls")]
)
@pytest.mark.parametrize("cut", ["nowhere", 7, -1])
def test_an_unknown_cut_is_refused_with_the_list(name, listed, cut):
    with pytest.raises(ValueError, match=f"^cut must be one of {listed}, got {cut!r}$"):
        split(name, cut, in_channels=1, image_size=28, num_classes=CLASSES, sizes=NETWORKS[name].sizes)
    place = cuts(name, NETWORKS[name].sizes)[0]
    for spec in split(name, place, in_channels=1, image_size=28, num_classes=CLASSES, sizes=NETWORKS[name].sizes):
        with pytest.raises(ValueError, match=f"cut must be one of {listed}, got 'nowhere'"):
            build(ModelSpec(kind=spec.kind, arguments=spec.arguments | {"cut": "nowhere"}), generator=generator())


def test_unknown_backbones_and_sizes_are_refused():
    with pytest.raises(ValueError, match="backbone must be one of lenet, fixup_resnet, vit, got 'resnet'"):
        cuts("resnet", {})
    with pytest.raises(ValueError, match="sizes of lenet are none, got widen"):
        cuts("lenet", {"widen": 2})
    with pytest.raises(ValueError, match="sizes of vit are patch_size, width, depth, heads, got depth"):
        cuts("vit", {"depth": 2})


WRONG_NUMBERS = {
    "lenet-small": ("image_size must be at least 12, got 11", "lenet", "pool2", 11, {}),
    "fixup-no-size": ("image_size must be at least 1 for a cut at stage2, got 0", "fixup_resnet", "stage2", 0, {"widen": 1}),
    "fixup-narrow": ("widen must be at least 1, got 0", "fixup_resnet", "stage3", 28, {"widen": 0}),
    "vit-patches": ("image_size must be a multiple of patch_size, got 30 and 4", "vit", 1, 30, VIT),
    "vit-heads": ("heads must be at least 1 and divide width 8, got 3", "vit", 1, 28, VIT | {"heads": 3}),
    "vit-no-heads": ("heads must be at least 1 and divide width 8, got 0", "vit", 1, 28, VIT | {"heads": 0}),
    "vit-shallow": ("must be at least 1, got 28, 4, 8 and 0", "vit", 0, 28, VIT | {"depth": 0}),
}


@pytest.mark.parametrize(("words", "name", "cut", "side", "sizes"), WRONG_NUMBERS.values(), ids=WRONG_NUMBERS.keys())
def test_numbers_that_do_not_fit_are_refused(words, name, cut, side, sizes):
    with pytest.raises(ValueError, match=words):
        both(name, cut, side=side, channels=1, sizes=sizes)


@each_cut
def test_images_of_another_size_are_refused(name, cut):
    front, _ = both(name, cut, side=28, channels=1)
    with pytest.raises(ValueError, match="images of 28 x 28 wanted, got 32 x 28"):
        front(torch.zeros(1, 1, 32, 28))


@pytest.mark.parametrize("name", NETWORKS)
def test_experts_of_one_mixture_do_not_start_alike(name):
    """Each must be drawn apart, or all would learn the same."""
    last = cuts(name, NETWORKS[name].sizes)[-1]
    spec = split(name, last, in_channels=1, image_size=28, num_classes=CLASSES, sizes=NETWORKS[name].sizes)[1]
    one, other = (build(spec, generator=generator(seed)) for seed in (1, 2))
    features = torch.randn(3, one.feature_dim, generator=generator())
    assert float((one(features) - other(features)).detach().abs().max()) > 0.1


def test_the_class_token_sees_every_patch_and_its_place():
    front, _ = both("vit", "cls", side=28, channels=1)
    drawn_anew(front)
    images = torch.rand(1, 1, 28, 28, generator=generator())
    with torch.no_grad():
        base = front(images)
        for row in range(0, 28, 4):
            for column in range(0, 28, 4):
                changed = images.clone()
                changed[:, :, row, column] += 1
                assert not torch.equal(front(changed), base)
        turned = images.roll(4, dims=3)  # the same patches in other places
        assert not torch.allclose(front(turned), base, atol=1e-4)
    assert math.prod(base.shape) == VIT["width"]
