"""Image models: totals and outputs are the published ones, and those of the shared table of layers."""

import csv
from pathlib import Path

import pytest

from nmoe.core.image_models import INPUT_NUMBERS, LayerWork, image_model_blocks

TABLE = Path(__file__).resolve().parents[3] / "shared" / "data" / "models" / "layer_profiles.csv"
PUBLISHED = {  # parameters and multiply-accumulates with the stride in the 3x3 convolutions
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet34": (21_797_672, 3_663_761_408),
    "resnet50": (25_557_032, 4_089_184_256),
    "resnet152": (60_192_808, 11_513_626_624),
    "vgg16": (138_357_544, 15_470_264_320),
    "vit_b_16": (86_567_656, 17_563_828_224),
    "vit_l_16": (304_326_632, 61_554_712_576),
    "alexnet": (61_100_840, 714_188_480),
    "mobilenet_v2": (3_504_872, 300_774_272),
}
BLOCK_ENDS = {  # names in the table of the layers that end a block, the head last
    "vgg16": "conv0 pool2 conv3 pool5 conv6 conv7 pool9 conv10 conv11 pool13 conv14 conv15 pool17 fc1 fc2 fc3".split(),
    "resnet50": ["maxpool", *(f"layer{s}.{b}.conv3" for s, n in enumerate((3, 4, 6, 3), 1) for b in range(n)), "fc"],
    "mobilenet_v2": ["conv0", *(f"block{number}.project" for number in range(1, 18)), "avgpool", "fc"],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_totals_are_the_published_ones(name: str):
    blocks = image_model_blocks(stride_in_3x3=True)[name]
    assert (sum(block.params for block in blocks), sum(block.macs for block in blocks)) == PUBLISHED[name]
    assert blocks[-1].outputs == 1000
    assert min(block.outputs for block in blocks) > 0


def test_alexnet_layer_by_layer():
    """The second form of AlexNet, computed by hand."""
    assert image_model_blocks()["alexnet"] == [
        LayerWork(23_296, 70_276_800, 46_656),
        LayerWork(307_392, 223_948_800, 32_448),
        LayerWork(663_936, 112_140_288, 64_896),
        LayerWork(884_992, 149_520_384, 43_264),
        LayerWork(590_080, 99_680_256, 9_216),
        LayerWork(37_752_832, 37_748_736, 4_096),
        LayerWork(16_781_312, 16_777_216, 4_096),
        LayerWork(4_097_000, 4_096_000, 1_000),
    ]
    assert INPUT_NUMBERS == 150_528


def test_the_stride_moves_work_and_nothing_else():
    before, after = image_model_blocks(), image_model_blocks(stride_in_3x3=True)
    for name in PUBLISHED:
        assert [(one.params, one.outputs) for one in before[name]] == [(one.params, one.outputs) for one in after[name]]
        assert (before[name] == after[name]) == (name not in ("resnet50", "resnet152"))


@pytest.mark.skipif(not TABLE.is_file(), reason="the shared table of layers is not here")
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg16", "mobilenet_v2", "vit_b_16"])
def test_the_shared_table_agrees(name: str):
    with TABLE.open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == name]
    blocks = image_model_blocks(stride_in_3x3=True)[name]
    assert sum(block.params for block in blocks) == sum(int(row["params"]) for row in rows)
    macs = sum(int(row["macs"]) for row in rows)
    assert sum(block.macs for block in blocks) == macs
    if name not in BLOCK_ENDS:
        return
    elements = {row["layer"]: int(row["out_elems"]) for row in rows}
    expected = [elements[layer] for layer in BLOCK_ENDS[name]]
    if name in ("resnet50", "mobilenet_v2"):  # the last block ends with the mean over the map
        expected[-2] = elements["avgpool"]
    assert [block.outputs for block in blocks] == expected
