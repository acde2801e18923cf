"""Profiles: totals equal the published ones, tables of layers are read as they are, and bad tables are one clear error."""

from pathlib import Path

import pytest

from nmoe.core.errors import BadFile
from nmoe.deliver.profiles import LayerWork, image_model_works, image_models, merged, read_profiles

SPEC = {  # parameters in millions (weights alone), 1e9 multiply-accumulates, blocks: the spec's section 1.4
    "resnet18": (11.7, 1.81, 10),
    "resnet34": (21.8, 3.66, 18),
    "resnet50": (25.5, 3.86, 18),
    "resnet152": (60.0, 11.28, 52),
    "vgg16": (138.3, 15.47, 16),
    "vit_b_16": (86.3, 17.56, 14),
    "vit_l_16": (303.8, 61.55, 26),
}
PUBLISHED_PARAMS = {  # with norms and biases, as the models' weights come
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet152": 60_192_808,
    "vgg16": 138_357_544,
    "vit_b_16": 86_567_656,
    "vit_l_16": 304_326_632,
}
TABLE = """model,index,layer,params,macs
one,0,pool,0,5
one,1,conv,100,1000
one,2,pool,0,7
one,3,linear,10,10
two,0,linear,3,2
"""


def total(works: list[LayerWork]) -> tuple[int, int]:
    return sum(work.params for work in works), sum(work.macs for work in works)


@pytest.mark.parametrize("name", SPEC)
def test_totals_are_the_published_ones(name: str):
    params, macs = total(image_model_works()[name])
    millions, billions, blocks = SPEC[name]
    assert params == PUBLISHED_PARAMS[name]
    assert params / 1e6 == pytest.approx(millions, rel=0.004)
    assert macs / 1e9 == pytest.approx(billions, abs=0.005)
    assert len(image_model_works()[name]) == blocks


def test_where_a_stage_halves_the_image_changes_the_work_alone():
    before, after = image_model_works(), image_model_works(stride_in_3x3=True)
    assert total(after["resnet50"])[1] == 4_089_184_256  # as the layer table of the shared data has it
    assert total(after["resnet152"])[1] / 1e9 == pytest.approx(11.51, abs=0.005)
    for name in SPEC:
        assert total(before[name])[0] == total(after[name])[0]
        if name not in ("resnet50", "resnet152"):
            assert before[name] == after[name]


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("fp16", 2), ("int8", 1)])
def test_precision_scales_bytes_and_not_work(precision: str, size: int):
    models = image_models(precision=precision)
    for name, params in PUBLISHED_PARAMS.items():
        assert sum(models[name].layer_bytes) == size * params
        assert sum(models[name].layer_flops) == 2 * total(image_model_works()[name])[1]


def test_layers_without_parameters_join_the_one_before(tmp_path: Path):
    (tmp_path / "layers.csv").write_text(TABLE)
    found = read_profiles(tmp_path / "layers.csv", precision="fp32")
    assert list(found) == ["one", "two"]
    assert found["one"].layer_bytes == (400.0, 40.0)
    assert found["one"].layer_flops == (2 * (5 + 1000 + 7), 20.0)
    assert merged([LayerWork(1, 2), LayerWork(0, 3), LayerWork(4, 0)]) == [LayerWork(1, 5), LayerWork(4, 0)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model,params\nx,1\n", "it lacks macs"),
        ("model,params,macs\nx,-1,1\n", "line 2: params should be a number in"),
        ("model,params,macs\nx,nan,1\n", "line 2: params should be a number in"),
        ("model,params,macs\nx,1,much\n", "line 2: macs should be a number"),
        ("model,params,macs\nx,0,1\n", "model 'x' has no layer with parameters"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, text: str, said: str):
    (tmp_path / "layers.csv").write_text(text)
    with pytest.raises(BadFile, match=said):
        read_profiles(tmp_path / "layers.csv")


def test_unknown_precision_and_missing_table_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="precision must be one of fp32, fp16, int8, got 'fp8'"):
        image_models(precision="fp8")
    with pytest.raises(BadFile, match="cannot read"):
        read_profiles(tmp_path / "none.csv")
