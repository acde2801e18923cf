"""Scenarios: read from TOML, and every bad number named with its user or model and its field."""

import math
import re
from dataclasses import replace

import pytest

from nmoe.core.errors import BadFile
from nmoe.deliver.scenario import ModelProfile, Receiver, Scenario, parse_receiver, parse_scenario, read_scenario

TEXT = """
bandwidth_hz = 100e6

[[models]]
name = "resnet"
layer_bytes = [1000, 2000.5]
layer_flops = [0, 5e9]

[[users]]
id = "anna"
spectral_efficiency = 3.5
deadline_s = 1
energy_j = 20.0
batch = 8
device_flops = 5e11
power_w = 15.0
layer_overhead_s = 0.001
models = ["resnet"]
"""
MODEL = {"name": "m", "layer_bytes": (1.0, 2.0), "layer_flops": (3.0, 4.0)}
USER = {
    "id": "anna", "spectral_efficiency": 3.5, "deadline_s": 1.0, "energy_j": 20.0, "batch": 8, "device_flops": 5e11, "power_w": 15.0,
    "layer_overhead_s": 0.001, "models": ("m",),
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write_file(text: str):
        path = tmp_path / "scenario.toml"
        path.write_text(text)
        return path

    return write_file


def test_a_file_is_read_with_its_defaults(write):
    found = read_scenario(write(TEXT))
    assert found.bandwidth_hz == 100e6
    assert found.models == {"resnet": ModelProfile(name="resnet", layer_bytes=(1000, 2000.5), layer_flops=(0, 5e9))}
    (anna,) = found.users
    assert anna == Receiver(**{**USER, "models": ("resnet",)})
    assert (anna.min_clock, anna.static_power_w, anna.receive_power_w, anna.weight, anna.fixed_power) == (0, 0, 0, 1, False)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("bandwidth_hz = 100e6", "bandwidth_hz = -1", "scenario: bandwidth_hz must be a number above 0 and finite, got -1"),
        ("bandwidth_hz = 100e6", "", "scenario: bandwidth_hz is missing"),
        ("bandwidth_hz = 100e6", "bandwidth_hz = 1\nnoise = 2", "scenario: noise is no field, known are bandwidth_hz, models, users"),
        ("[1000, 2000.5]", "[1000]", "model 'resnet': layer_bytes and layer_flops of one length wanted, got 1 and 2"),
        ("[1000, 2000.5]", "[1000, nan]", r"model 'resnet': layer_bytes\[1\] must be a number of at least 0 and finite, got nan"),
        ("[1000, 2000.5]", "1000", "model 'resnet': layer_bytes must be a list, got 1000"),
        ("[1000, 2000.5]", '["a", "b"]', r"model 'resnet': layer_bytes\[0\] must be a number of at least 0, got 'a'"),
        ("layer_flops = [0, 5e9]", "", "model 'resnet': layer_flops is missing"),
        ("deadline_s = 1", "deadline_s = nan", "user 'anna': deadline_s must be a number above 0 and finite, got nan"),
        ("deadline_s = 1", "deadlines = 1", "user 'anna': deadline_s is missing"),
        ("deadline_s = 1", "deadline_s = 1\nage = 2", "user 'anna': age is no field"),
        ('models = ["resnet"]', 'models = "resnet"', "user 'anna': models must be a list, got 'resnet'"),
        ('models = ["resnet"]', 'models = ["vgg"]', "user 'anna': models names 'vgg', which is not among resnet"),
        ('id = "anna"', "", "user None: id is missing"),
        ('id = "anna"', "id = 3", "user 3: id must be text that is not empty, got 3"),
        ("[[users]]", "[users]", "scenario: users must be a list of tables"),
    ],
)
def test_a_bad_file_says_who_and_what(write, old, new, said):
    assert old in TEXT
    with pytest.raises(ValueError, match=f"^{said}"):
        read_scenario(write(TEXT.replace(old, new)))


def test_a_file_that_is_not_there_or_not_toml_is_a_bad_file(write, tmp_path):
    with pytest.raises(BadFile, match="nowhere"):
        read_scenario(tmp_path / "nowhere.toml")
    with pytest.raises(BadFile, match="not valid TOML"):
        read_scenario(write("bandwidth_hz ="))


@pytest.mark.parametrize("field", ["spectral_efficiency", "deadline_s", "energy_j", "device_flops", "power_w", "weight"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, -math.inf, "1", None, True])
def test_what_must_be_above_zero_is(field, value):
    with pytest.raises(ValueError, match=f"^user 'anna': {field} must be a number above 0"):
        Receiver(**{**USER, field: value})


@pytest.mark.parametrize("field", ["layer_overhead_s", "min_clock", "static_power_w", "receive_power_w"])
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf])
def test_what_must_not_be_negative_is_not(field, value):
    assert Receiver(**{**USER, field: 0}) is not None
    with pytest.raises(ValueError, match=f"^user 'anna': {field} must be a number of at least 0 and finite"):
        Receiver(**{**USER, field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch", 0), ("batch", -3), ("batch", 1.5), ("batch", True), ("batch", 2**70), ("min_clock", 1.1), ("deadline_s", math.inf),
     ("deadline_s", 10**400), ("models", ()), ("models", ("m", "m")), ("models", ("",)), ("id", ""), ("fixed_power", 1)],
)  # fmt: skip
def test_other_bad_fields_of_a_user_are_named(field, value):
    with pytest.raises(ValueError, match=f"user .*{field} "):
        Receiver(**{**USER, field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("deadline_s", 1e-320), ("device_flops", 1e-320), ("power_w", 1e300), ("energy_j", 1e-31), ("layer_overhead_s", 1e31),
     ("receive_power_w", 1e-320), ("min_clock", 1e-320)],
)  # fmt: skip
def test_numbers_beyond_any_quantity_are_named(field, value):
    with pytest.raises(ValueError, match=rf"^user 'anna': {field} must be within 1e-30 and 1e\+30.*, got {re.escape(f'{value:g}')}$"):
        Receiver(**{**USER, field: value})


def test_spectral_efficiency_has_an_end():
    assert Receiver(**{**USER, "spectral_efficiency": 100}) is not None
    with pytest.raises(ValueError, match=r"^user 'anna': spectral_efficiency must be at most 100 bit/s/Hz, got 1100$"):
        Receiver(**{**USER, "spectral_efficiency": 1100})


@pytest.mark.parametrize("weight", [1e300, 1e-300])
def test_weights_may_be_of_any_size(weight):
    assert Receiver(**{**USER, "weight": weight}).weight == weight


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert read_scenario(path).bandwidth_hz == 100e6


def test_energy_may_be_without_limit():
    assert Receiver(**{**USER, "energy_j": math.inf}).energy_j == math.inf


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"layer_bytes": (), "layer_flops": ()}, "at least one layer wanted"),
        ({"layer_bytes": (0.0, 0.0)}, "layer_bytes must not be all 0"),
        ({"layer_flops": (0, 0)}, "layer_flops must not be all 0"),
        ({"layer_flops": (1.0, -1.0)}, r"layer_flops\[1\] must be"),
        ({"layer_flops": (0, 1e-320)}, r"layer_flops\[1\] must be within 1e-30 and 1e\+30 or 0"),
        ({"layer_bytes": (1e308, 1e308)}, r"layer_bytes\[0\] must be within 1e-30 and 1e\+30 or 0"),
        ({"name": ""}, "name must be text"),
    ],
)
def test_bad_models_are_named(changed, said):
    with pytest.raises(ValueError, match=f"^model .*{said}"):
        ModelProfile(**{**MODEL, **changed})


def test_a_scenario_holds_together():
    model, user = ModelProfile(**MODEL), Receiver(**USER)
    scenario = Scenario(bandwidth_hz=1.0, models={"m": model}, users=(user,))
    for changed, said in [
        ({"users": (user, user)}, "user 'anna': id is there twice"),
        ({"models": {}}, "at least one model, got none"),
        ({"models": {"other": model}}, "model 'm': filed under another name, 'other'"),
        ({"models": {"n": replace(model, name="n")}}, "user 'anna': models names 'm'"),
    ]:
        with pytest.raises(ValueError, match=said):
            replace(scenario, **changed)
    assert replace(scenario, users=()).users == ()


def test_models_of_one_name_in_a_file_are_refused():
    tables = {"bandwidth_hz": 1.0, "models": [{**MODEL, "layer_bytes": [1, 1], "layer_flops": [1, 1]}] * 2, "users": []}
    with pytest.raises(ValueError, match="model 'm': name is there twice"):
        parse_scenario(tables)


def test_a_user_comes_from_json_too():
    assert parse_receiver({**USER, "models": ["m"]}) == Receiver(**USER)
