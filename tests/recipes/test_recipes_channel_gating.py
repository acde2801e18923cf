"""The reproduction of channel-aware gating, small: every number is there, links are drawn as said, and bad input is refused."""

import json
import math
from pathlib import Path

import pytest
import torch

from nmoe.channel.analog import Analog
from nmoe.channel.fading import Awgn, Rayleigh
from nmoe.channel.knowledge import Exact
from nmoe.core.errors import EngineError
from nmoe.core.seeds import torch_generator
from nmoe.core.units import to_db
from nmoe.data import load_digits
from nmoe.learn.channel_gating import LinkedMixture
from nmoe.moe import ConvExtractor, Mix, MlpExpert, build
from nmoe.recipes.channel_curves import DrawnLinks, MeanLinks, answer, mean_and_std, nested
from nmoe.recipes.channel_gating import CPU, METHODS, PAPER, PAPER_VIT, TOLD, parts_of, quick, sized
from nmoe.recipes.reproduction import reproduce_channel_gating


class Silent:
    def stage(self, name: str, done: int, total: int) -> None:
        assert 1 <= done <= total


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("reproduce") / "run"
    found = reproduce_channel_gating(
        scale="cpu",
        data="digits",
        data_dir=None,
        test=None,
        backbone=None,
        cut=None,
        expert_dim=None,
        seeds=2,
        brief=True,
        out=out,
        force=False,
        command="nmoe reproduce",
        progress=Silent(),
    )
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(found))
    assert (out / "figures" / "curves.png").stat().st_size > 10_000
    assert (out / "figures" / "selection.png").stat().st_size > 5_000
    table = (out / "results.md").read_text()
    assert "| channel-aware, additive |" in table
    assert f"± {100 * found['spreads']['naive']['analog']['0']:.1f}" in table
    return found


def test_results_have_what_is_promised(results):
    assert {"name", "scale", "seeds", "command", "hardware", "rows", "curves", "spreads", "selection", "gate_entropy", "settings"} <= set(
        results
    )
    assert set(results["curves"]) == {*METHODS, *TOLD}
    for method in METHODS:
        for transmission in ("analog", "analog_equal", "digital"):
            assert set(results["curves"][method][transmission]) == {"-10", "0", "10", "30"}
    assert "digital_repetition" in results["curves"]["aware"]
    assert len(results["rows"]) == sum(len(curve) for by in results["curves"].values() for curve in by.values())
    for row in results["rows"]:
        assert 0 <= row["mean"] <= 1
        assert row["n"] == 2
    for shares in results["selection"].values():
        assert sum(shares) == pytest.approx(1)


def test_gates_choose_what_they_can_see(results):
    assert results["selection"]["snr_only"][:2] == pytest.approx([0.5, 0.5], abs=0.05)
    assert results["selection"]["random"] == pytest.approx([0.2] * 5, abs=0.06)
    assert sum(results["selection"]["aware"][:2]) > 0.6 > 0.55 > sum(results["selection"]["naive"][:2])
    for method in ("aware", "aware_joint"):
        assert results["gate_entropy"][method] > 0.8, "the gate has not collapsed onto few experts"
    curves = results["curves"]
    assert curves["aware"]["analog"]["0"] > curves["naive"]["analog"]["0"] > curves["random"]["analog"]["0"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scale": "huge"}, "scale must be one of cpu, paper"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"backbone": "alexnet"}, "backbone must be one of conv, lenet, fixup_resnet, vit, got 'alexnet'"),
        ({"cut": "pool9"}, "lenet can be cut at pool1, pool2, fc1, got 'pool9'"),
        ({"backbone": "conv", "cut": "pool1"}, "conv can be cut at end, got 'pool1'"),
        ({"scale": "paper-vit", "cut": "5"}, "vit can be cut at 0, 1, 2, cls, got '5'"),
        ({"backbone": "lenet"}, "image_size must be at least 12, got 8"),
        ({"expert_dim": 0}, "an expert dim of at least 1 wanted, got 0"),
        ({"backbone": "vit", "cut": "7"}, "vit can be cut at 0, 1, 2, cls, got '7'"),
        ({"expert_dim": -1}, "expert dim must be at least 0, got -1"),
    ],
)
def test_bad_input_writes_nothing(tmp_path: Path, changes: dict, said: str):
    given = {
        "scale": "cpu",
        "data": "digits",
        "data_dir": None,
        "test": None,
        "backbone": None,
        "cut": None,
        "expert_dim": None,
        "seeds": 1,
        "brief": True,
        "out": tmp_path / "run",
        "force": False,
    }
    with pytest.raises(ValueError, match=said):
        reproduce_channel_gating(**given | changes, command="", progress=Silent())
    assert not (tmp_path / "run").exists()


def test_missing_codes_are_told_before_anything_is_trained(tmp_path: Path, monkeypatch):
    def absent() -> None:
        raise EngineError("channel codes need the extra radio: pip install nmoe[radio]")

    monkeypatch.setattr("nmoe.channel.coding.require_sionna", absent)
    given = {
        "scale": "cpu",
        "data": "digits",
        "data_dir": None,
        "test": None,
        "backbone": None,
        "cut": None,
        "expert_dim": None,
        "seeds": 1,
    }
    with pytest.raises(EngineError, match="need the extra radio"):
        reproduce_channel_gating(**given, brief=False, out=tmp_path / "run", force=False, command="", progress=Silent())
    assert not (tmp_path / "run").exists()


def test_every_test_image_is_used_in_another_order_per_seed():
    data = load_digits()
    some = [parts_of(sized(CPU, backbone="conv", cut=None, expert_dim=4), data, seed=seed) for seed in (0, 1)]
    assert [len(one.test) for one in some] == [359, 359]
    assert not torch.equal(some[0].test_labels, some[1].test_labels)
    assert torch.equal(some[0].test_labels.sort().values, some[1].test_labels.sort().values)


def test_links_are_drawn_as_said():
    unequal = MeanLinks("unequal", 5.0, 10.0, Awgn()).draw(4000, 5, seed=0).snr
    assert torch.allclose(to_db(unequal).sort(dim=1).values, torch.tensor([-5.0, 0.0, 5.0, 10.0, 15.0]).expand(4000, -1), atol=1e-4)
    assert torch.allclose(to_db(unequal).mean(dim=0), torch.full((5,), 5.0), atol=0.5), "no expert has the better links"
    assert torch.allclose(to_db(MeanLinks("equal", -7.0, 10.0, Awgn()).draw(3, 5, seed=0).snr), torch.full((3, 5), -7.0), atol=1e-4)
    faded = MeanLinks("equal", 0.0, 10.0, Rayleigh()).draw(20_000, 5, seed=1).snr
    assert faded.mean() == pytest.approx(1, abs=0.02)
    assert torch.equal(faded, MeanLinks("equal", 0.0, 10.0, Rayleigh()).draw(20_000, 5, seed=1).snr)
    with pytest.raises(ValueError, match="pattern must be one of unequal, equal, got 'odd'"):
        MeanLinks("odd", 0.0, 10.0, Awgn()).draw(1, 5, seed=0)


def test_answers_count_right_labels_and_ranks():
    draws = torch_generator(0, "test")
    experts = [MlpExpert(feature_dim=8, hidden_dim=4, num_classes=10, generator=draws) for _ in range(3)]
    extractor = ConvExtractor(in_channels=1, feature_dim=8, generator=draws)
    mixture = LinkedMixture(extractor=extractor, experts=experts, gate=None, k=1, mix=Mix.LOGITS).eval()
    images = torch.rand(2500, 1, 8, 8, generator=draws)
    links = DrawnLinks(torch.ones(2500, 3), torch.tensor([3.0, 2.0, 1.0]).repeat(2500, 1))
    with torch.no_grad():
        clean = mixture(images, None, transmission=None, generator=torch_generator(0, "noise"))
    perfect = links._replace(snr=torch.full((2500, 3), math.inf))
    found = answer(mixture, images, clean.probabilities.argmax(dim=1), perfect, Analog(), Exact(), seed=0)
    assert 0.2 < found.accuracy <= 1
    assert answer(mixture, images, clean.probabilities.argmax(dim=1), perfect, Analog(), Exact(), seed=0).entropy == pytest.approx(
        1, abs=1e-3
    )
    ranks = answer(mixture, images, torch.zeros(2500, dtype=torch.int64), links, Analog(), Exact(), seed=0).rank_shares
    assert torch.allclose(ranks, torch.full((3,), 1 / 3), atol=0.04)


def test_statistics():
    assert mean_and_std([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_and_std([4.0]) == (4.0, 0.0)
    assert nested({("a", "analog", -10.0): 0.5, ("a", "analog", 0.0): 0.6}) == {"a": {"analog": {"-10": 0.5, "0": 0.6}}}


@pytest.mark.parametrize("scale", [PAPER, PAPER_VIT], ids=["resnet", "vit"])
def test_larger_networks_can_be_cut_for_colour_images(scale):
    data = load_digits()
    colour = data.train.subset(torch.arange(8).numpy())
    images = colour.images.repeat(4, axis=1).repeat(4, axis=2).repeat(3, axis=3)
    larger = type(data)(train=_with_images(colour, images), test=_with_images(colour, images))
    parts = parts_of(quick(scale), larger, seed=0)
    assert parts.extractor.kind == scale.backbone
    assert parts.train.shape == (8, 3, 32, 32)
    narrow = _with_images(colour, images[:, :, :16])
    with pytest.raises(ValueError, match="square images wanted, got 32 x 16"):
        parts_of(quick(CPU), type(data)(train=narrow, test=narrow), seed=0)


@pytest.mark.parametrize(
    ("backbone", "cut", "dim"), [("lenet", "pool1", 6 * 14 * 14), ("fixup_resnet", "stage2", 32 * 14 * 14), ("vit", "1", 48 * 50)]
)
def test_where_the_cut_lies_is_a_parameter(backbone, cut, dim):
    size = sized(CPU, backbone=backbone, cut=cut, expert_dim=0)
    digits = load_digits().train.subset(torch.arange(6).numpy())
    larger = _with_images(digits, digits.images.repeat(4, axis=1)[:, :28].repeat(4, axis=2)[:, :, :28])
    parts = parts_of(size, type(load_digits())(train=larger, test=larger), seed=0)
    assert parts.expert.kind == {"lenet": "lenet_tail", "fixup_resnet": "fixup_tail", "vit": "vit_tail"}[backbone]
    expert = build(parts.expert, generator=torch.Generator())
    assert expert.feature_dim == dim


def _with_images(data, images):
    return type(data).from_arrays(name="colour", images=images, labels=data.labels, num_classes=10)
