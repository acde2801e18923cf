"""``nmoe deliver plan``: a plan that breaks its own check is nmoe's fault, and a folder that cannot be made is said before planning."""

from dataclasses import replace

import pytest

from nmoe.deliver.allocate import plan
from nmoe.deliver.scenario import ModelProfile, Receiver, Scenario
from nmoe.recipes import deliver_plan as recipe

SCENARIO = Scenario(
    bandwidth_hz=1e8,
    models={"m": ModelProfile(name="m", layer_bytes=(1e6,), layer_flops=(1e9,))},
    users=(
        Receiver(
            id="anna",
            spectral_efficiency=4.0,
            deadline_s=1.0,
            energy_j=20.0,
            batch=1,
            device_flops=1e11,
            power_w=10.0,
            layer_overhead_s=0.0,
            models=("m",),
        ),
    ),
)


def test_a_plan_that_breaks_its_own_check_is_called_a_bug(monkeypatch):
    def broken(*args, **options):
        found = plan(*args, **options)
        return replace(found, allocations=(replace(found.allocations[0], finish_s=0.5),))

    assert recipe.checked_plan(SCENARIO, "slide", spare="keep", seed=0).served == 1
    monkeypatch.setattr(recipe, "plan", broken)
    with pytest.raises(
        RuntimeError, match="slide broke its own check, which is a bug of nmoe and not of the scenario: user 'anna': finish_s"
    ):
        recipe.checked_plan(SCENARIO, "slide", spare="keep", seed=0)


def test_callers_mistakes_stay_theirs():
    with pytest.raises(ValueError, match="a method out of"):
        recipe.checked_plan(SCENARIO, "fastest", spare="keep", seed=0)


@pytest.mark.parametrize("inside", ["", "plans"])
def test_a_file_where_the_folder_should_be_is_named(tmp_path, inside):
    file = tmp_path / "afile"
    file.write_text("mine")
    with pytest.raises(ValueError, match=r"^out: a folder wanted, .*afile is a file$"):
        recipe.deliver_plan(
            tmp_path / "none.toml",
            method="slide",
            spare="keep",
            compare=False,
            seed=0,
            as_json=True,
            out=file / inside,
            say=print,
            show=print,
        )
    assert file.read_text() == "mine"
