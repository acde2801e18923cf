"""Extractors: the reference's sizes, Fixup's start, no batch statistics, constants inside."""

import itertools
import math

import pytest
import torch
from torch import nn

from nmoe.learn import ProjectionHead
from nmoe.moe import CONSTANTS, ConvExtractor, FixupResNet
from nmoe.moe.fixup import FixupBlock


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def fixup_count(widen: int, channels: int) -> int:
    """Count by hand: stem, two scalar biases, and per block two convolutions, four biases and a scale."""
    widths = [16 * widen, 32 * widen, 64 * widen]
    total = 9 * channels * widths[0] + 2
    entering = widths[0]
    for width in widths:
        for _ in range(3):
            total += 9 * entering * width + 9 * width * width + 5
            entering = width
    return total


def test_fixup_resnet_has_the_references_number_of_parameters():
    extractor = FixupResNet(in_channels=3, widen=8, generator=generator())
    head = ProjectionHead(feature_dim=512, embedding_dim=512, generator=generator())
    assert num_parameters(extractor) == 17_108_399 == fixup_count(8, 3)
    assert extractor.feature_dim == 512
    assert num_parameters(head) == (512 * 1024 + 1024) + (1024 * 512 + 512)
    assert (num_parameters(extractor) + num_parameters(head)) / 1e6 == pytest.approx(18.16, abs=0.005)


@pytest.mark.parametrize(("widen", "channels"), [(1, 1), (2, 3)])
def test_fixup_resnet_size_by_hand(widen, channels):
    assert num_parameters(FixupResNet(in_channels=channels, widen=widen, generator=generator())) == fixup_count(widen, channels)


EXTRACTORS = {
    "conv": lambda channels: ConvExtractor(in_channels=channels, feature_dim=16, generator=generator()),
    "fixup": lambda channels: FixupResNet(in_channels=channels, widen=1, generator=generator()),
}
each_extractor = pytest.mark.parametrize("make", EXTRACTORS.values(), ids=EXTRACTORS.keys())


@each_extractor
@pytest.mark.parametrize(("side", "channels"), [(8, 1), (28, 1), (32, 3), (7, 1)])
def test_features_have_one_shape_for_every_image_size(make, side, channels):
    extractor = make(channels)
    images = torch.rand(3, channels, side, side, generator=generator())
    features = extractor(images)
    assert features.shape == (3, extractor.feature_dim)
    assert features.isfinite().all()
    assert features.std(dim=0).max() > 0, "features do not depend on the image"


@each_extractor
def test_samples_of_a_batch_do_not_see_each_other(make):
    extractor = make(1).train()
    images = torch.rand(4, 1, 8, 8, generator=generator())
    one_by_one = torch.cat([extractor(image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(extractor(images), one_by_one, rtol=1e-5, atol=1e-6)


@each_extractor
def test_no_normalisation_layer_anywhere(make):
    kinds = {type(module).__name__ for module in make(3).modules()}
    assert not [kind for kind in kinds if "Norm" in kind or "Dropout" in kind]


@each_extractor
def test_training_mode_changes_nothing(make):
    extractor = make(1)
    images = torch.rand(4, 1, 8, 8, generator=generator())
    assert torch.equal(extractor.train()(images), extractor.eval()(images))


def test_fixup_blocks_start_as_the_identity():
    extractor = FixupResNet(in_channels=1, widen=1, generator=generator())
    assert len(extractor.blocks) == 9
    for block in extractor.blocks:
        assert isinstance(block, FixupBlock)
        assert not block.conv2.weight.any()
        inputs = torch.rand(2, block.conv1.in_channels, 6, 6, generator=generator())  # not negative, as behind a ReLU
        wanted = inputs
        if block.widens:
            wanted = torch.cat((inputs[:, :, ::2, ::2], torch.zeros(2, block.conv1.in_channels, 3, 3)), dim=1)
        assert torch.equal(block(inputs), wanted)
    assert [block.stride for block in extractor.blocks] == [1, 1, 1, 2, 1, 1, 2, 1, 1]


def test_fixup_block_is_its_formula():
    block = FixupBlock(in_width=2, out_width=4, stride=2, num_blocks=9, generator=generator())
    with torch.no_grad():
        for index, parameter in enumerate(block.parameters()):
            parameter.normal_(generator=generator(index))
    inputs = torch.randn(3, 2, 6, 6, generator=generator(99))
    shifted = inputs + block.bias1a
    hidden = nn.functional.conv2d(shifted, block.conv1.weight, stride=2, padding=1) + block.bias1b
    hidden = nn.functional.conv2d(hidden.clamp_min(0) + block.bias2a, block.conv2.weight, padding=1) * block.scale + block.bias2b
    identity = shifted[:, :, ::2, ::2]
    wanted = (hidden + torch.cat((identity, torch.zeros_like(identity)), dim=1)).clamp_min(0)
    torch.testing.assert_close(block(inputs), wanted)


def test_fixup_initialisation_has_the_source_scale():
    extractor = FixupResNet(in_channels=3, widen=4, generator=generator())
    for block in extractor.blocks:
        out = block.conv1.out_channels
        assert float(block.conv1.weight.detach().std()) == pytest.approx(math.sqrt(2 / (out * 9)) / 3, rel=0.03)  # L^-1/2 with L = 9


@each_extractor
def test_weights_come_from_the_generator_alone(make):
    torch.manual_seed(1)
    first = make(1).state_dict()
    torch.manual_seed(2)
    second = make(1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@each_extractor
def test_constants_standardise_pixels_and_features(make):
    extractor = make(3)
    images = torch.rand(5, 3, 8, 8, generator=generator())
    plain = extractor.embed((images - 0.5) / 0.5)
    torch.testing.assert_close(extractor(images), plain)
    mean, deviation = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 2.0, 1.0])
    extractor.pixel_mean.copy_(mean)
    extractor.pixel_std.copy_(deviation)
    embedded = extractor.embed((images - mean.view(1, 3, 1, 1)) / deviation.view(1, 3, 1, 1))
    extractor.feature_mean.copy_(embedded.detach().mean(dim=0))
    extractor.feature_std.fill_(4.0)
    torch.testing.assert_close(extractor(images), (embedded - extractor.feature_mean) / 4)
    assert {name for name, _ in extractor.named_buffers()} == CONSTANTS
    assert not CONSTANTS & {name.rsplit(".", 1)[-1] for name, _ in extractor.named_parameters()}


@pytest.mark.parametrize("channels", [0, 2, 4])
@each_extractor
def test_wrong_channels_are_refused(make, channels):
    with pytest.raises(ValueError, match="in_channels must be 1 or 3"):
        make(channels)


@pytest.mark.parametrize("feature_dim", [-4, 0, 2, 6])
def test_wrong_feature_dim_is_refused(feature_dim):
    with pytest.raises(ValueError, match="multiple of 4"):
        ConvExtractor(in_channels=1, feature_dim=feature_dim, generator=generator())


@pytest.mark.parametrize("widen", [0, -1])
def test_wrong_widen_is_refused(widen):
    with pytest.raises(ValueError, match="widen must be at least 1"):
        FixupResNet(in_channels=1, widen=widen, generator=generator())


def test_every_parameter_gets_a_gradient_once_fixup_has_left_its_start():
    extractor = FixupResNet(in_channels=1, widen=1, generator=generator())
    with torch.no_grad():
        for block, seed in zip(extractor.blocks, itertools.count(), strict=False):
            block.conv2.weight.normal_(std=0.1, generator=generator(seed))
    extractor(torch.rand(4, 1, 8, 8, generator=generator())).square().sum().backward()
    assert [name for name, parameter in extractor.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []
