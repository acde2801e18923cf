"""``nmoe deliver plan`` and ``nmoe reproduce slide`` as a user meets them: the contract for scripts, and bad input as one line."""

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest
import torch

from nmoe import cli

SCENARIO = """
bandwidth_hz = 100e6

[[models]]
name = "small"
layer_bytes = [1e6, 2e6, 1e6]
layer_flops = [1e9, 4e9, 2e9]

[[models]]
name = "large"
layer_bytes = [4e6, 8e6]
layer_flops = [2e10, 2e10]

[[users]]
id = "near"
spectral_efficiency = 6.0
deadline_s = 1.0
energy_j = 20.0
batch = 2
device_flops = 2e11
power_w = 15.0
layer_overhead_s = 0.001
models = ["small", "large"]

[[users]]
id = "hurried"
spectral_efficiency = 6.0
deadline_s = 0.01
energy_j = 20.0
batch = 2
device_flops = 2e11
power_w = 15.0
layer_overhead_s = 0.001
models = ["small"]
"""


@pytest.fixture(autouse=True)
def threads():
    """Commands decide how many threads they take; what runs in this process must not keep it."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO)
    return path


def nmoe(*words: object) -> tuple[int, str, str]:
    """Run a command in this process, up to and with its exit; return code, output and errors."""
    out, errors, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["nmoe", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as left:
            cli.main()
    finally:
        sys.argv = argv
    return left.value.code, out.getvalue(), errors.getvalue()


def refused(*words: object) -> str:
    """Run a command that must be refused; return its one line."""
    code, out, errors = nmoe(*words)
    assert (code, out) == (2, ""), errors
    (line,) = errors.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_plan_prints_the_json_that_scripts_are_promised(scenario: Path):
    code, out, errors = nmoe("deliver", "plan", scenario, "--json")
    assert (code, errors) == (0, "")
    plan = json.loads(out)
    assert list(plan) == ["served", "users"]
    assert plan["served"] == 1
    near, hurried = plan["users"]
    assert list(near) == ["id", "served", "model", "bandwidth_share", "clocks", "finish_s", "energy_j", "reason"]
    assert near["id"] == "near"
    assert near["model"] == "small", "it needs less of the bandwidth"
    assert len(near["clocks"]) == 3
    assert near["finish_s"] <= 1.0
    assert (hurried["served"], hurried["model"], hurried["bandwidth_share"], hurried["clocks"]) == (False, None, 0.0, [])
    assert "deadline" in hurried["reason"]


def test_plan_without_json_is_for_people(scenario: Path):
    code, out, _ = nmoe("deliver", "plan", scenario)
    assert code == 0
    assert "1 of 2 users served" in out
    assert "why it is not served" in out
    assert "download, then infer" in out
    assert "download, then infer" not in nmoe("deliver", "plan", scenario, "--no-compare")[1]
    assert nmoe("deliver", "plan", scenario, "--seed", "7")[1] == nmoe("deliver", "plan", scenario, "--seed", "7")[1]


@pytest.mark.parametrize("method", ["dai", "slide-random-order"])
def test_another_method_plans(scenario: Path, method: str):
    code, out, _ = nmoe("deliver", "plan", scenario, "--method", method, "--json", "--spare", "share")
    assert code == 0
    (near, _) = json.loads(out)["users"]
    assert near["bandwidth_share"] == pytest.approx(1.0)


def test_out_holds_the_plan_and_its_figures(scenario: Path, tmp_path: Path):
    out = tmp_path / "plans" / "first"
    code, printed, _ = nmoe("deliver", "plan", scenario, "--json", "--out", out)
    assert code == 0
    assert json.loads((out / "plan.json").read_text()) == json.loads(printed)
    assert sorted(path.name for path in out.iterdir()) == ["limits.png", "plan.json", "schedule.png"]
    assert (out / "schedule.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "small"', "name = small", "is not valid TOML"),
        ("bandwidth_hz = 100e6", "bandwidth_hz = nan", "bandwidth_hz must be a number above 0 and finite, got nan"),
        ("bandwidth_hz = 100e6", "", "bandwidth_hz is missing"),
        ("deadline_s = 1.0", "deadline_s = -1.0", "user 'near': deadline_s must be a number above 0 and finite, got -1"),
        ("energy_j = 20.0", "energy_j = nan", "user 'near': energy_j"),
        ("batch = 2", "batch = 0", "user 'near': batch must be a whole number of at least 1, got 0"),
        ('models = ["small", "large"]', 'models = ["huge"]', "user 'near': models names 'huge', which is not among small, large"),
        ("layer_flops = [1e9, 4e9, 2e9]", "layer_flops = [1e9]", "model 'small': layer_bytes and layer_flops of one length wanted"),
        ("power_w = 15.0", 'power_w = "15"', "user 'near': power_w"),
        ("power_w = 15.0", "power_w = 15.0\nspeed = 1", "user 'near': speed is no field"),
        ('id = "hurried"', 'id = "near"', "user 'near': id is there twice"),
    ],
)
def test_bad_scenarios_are_one_line_and_write_nothing(scenario: Path, tmp_path: Path, old: str, new: str, said: str):
    assert old in SCENARIO
    scenario.write_text(SCENARIO.replace(old, new, 1))
    assert said in refused("deliver", "plan", scenario, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_words_are_one_line_and_write_nothing(scenario: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert "cannot read" in refused("deliver", "plan", tmp_path / "none.toml", "--out", out)
    assert "cannot read" in refused("deliver", "plan", tmp_path, "--out", out)
    assert "a method out of slide, " in refused("deliver", "plan", scenario, "--method", "best", "--out", out)
    assert "spare must be keep or share, got 'give'" in refused("deliver", "plan", scenario, "--spare", "give", "--out", out)
    assert "seed must be at least 0" in refused("deliver", "plan", scenario, "--seed", "-1", "--out", out)
    assert not out.exists()
    out.write_text("a file")
    refused("deliver", "plan", scenario, "--json", "--out", out)
    assert out.read_text() == "a file"
    scenario.write_bytes(b"\xff\xfe")
    assert "is not valid TOML" in refused("deliver", "plan", scenario)


def test_reproduce_slide_writes_a_run_folder_and_refuses_to_overwrite_it(tmp_path: Path):
    out = tmp_path / "run"
    code, printed, _ = nmoe("reproduce", "slide", "--quick", "--seeds", "1", "--out", out)
    assert code == 0
    results = json.loads((out / "results.json").read_text())
    assert {"name", "scale", "seeds", "command", "hardware", "rows"} <= set(results)
    assert (results["name"], results["seeds"], results["quick"]) == ("slide", 1, True)
    assert (out / "results.md").read_text() in printed
    assert "is not empty" in refused("reproduce", "slide", "--quick", "--seeds", "1", "--out", out)
    assert "needs --data-dir" in refused("reproduce", "slide", "--setting", "melbourne", "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()
