"""From what a user calls a model to a function that builds it."""

import json

import pytest
from safetensors.torch import load_file
from torch import nn

from nmoe.core.errors import BadFile
from nmoe.deliver.architectures import model_builder, saved_names
from nmoe.deliver.arriving import build_empty, weight_slots

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 8, "num_attention_heads": 2}
CONFIG |= {"num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 20}


def test_a_function_of_a_module_builds_it():
    model = model_builder("torch.nn:Linear", {"in_features": 3, "out_features": 4})()
    assert (model.in_features, model.out_features) == (3, 4)


@pytest.mark.parametrize(
    "name", ["", "torch.nn", "torch.nn:", ":x", "no_such_module_here:x", "torch.nn:NoSuch", "torch:pi", "a b:c", "torch.nn:a.b"]
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=r"model|import|has no"):
        model_builder(name, {})


def test_arguments_that_it_does_not_take_are_refused():
    with pytest.raises(ValueError, match=r"torch.nn:Linear does not take these arguments: got an unexpected keyword argument 'sides'"):
        model_builder("torch.nn:Linear", {"in_features": 3, "out_features": 4, "sides": 2})


def test_a_configuration_builds_its_model_empty(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for name in (tmp_path, tmp_path / "config.json"):
        model = build_empty(model_builder(str(name), {"num_hidden_layers": 2}))
        assert type(model).__name__ == "LlamaForCausalLM"
        assert len(model.model.layers) == 2
        assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(
    "config",
    [
        [],
        {},
        {**CONFIG, "model_type": "no such"},
        {**CONFIG, "architectures": []},
        {**CONFIG, "architectures": ["AutoConfig"]},
        {**CONFIG, "architectures": ["os"]},
        {**CONFIG, "architectures": ["NoSuchModel"]},
        {**CONFIG, "hidden_size": "wide"},
    ],
)
def test_configurations_of_no_known_model_are_refused(tmp_path, config):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadFile, match=r"config\.json"):
        model_builder(str(tmp_path), {})


def test_code_that_comes_with_a_checkpoint_is_not_run(tmp_path):
    pytest.importorskip("transformers")
    config = {**CONFIG, "model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("raise SystemExit('run')")
    with pytest.raises(BadFile, match="is not run"):
        model_builder(str(tmp_path), {})


def test_names_that_transformers_changes_are_known(tmp_path):
    transformers = pytest.importorskip("transformers", minversion="5")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 4, "image_size": 32}
    config = transformers.ViTConfig(**sizes)
    model = transformers.ViTForImageClassification(config)
    model.save_pretrained(tmp_path)
    saved = set(load_file(tmp_path / "model.safetensors"))
    slots = {slot.name: slot.tensor for slot in weight_slots(build_empty(lambda: transformers.ViTForImageClassification(config)))}
    names = saved_names(build_empty(lambda: transformers.ViTForImageClassification(config)), slots)
    assert {names.get(name, name) for name in slots} == saved
    assert saved_names(nn.Linear(1, 1), {}) == {}
