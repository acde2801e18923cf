"""Candidates: pairs in order, sums per layer, padding that changes nothing."""

import numpy as np
import pytest

from nmoe.deliver.allocate import least_shares
from nmoe.deliver.candidates import candidates
from nmoe.deliver.scenario import ModelProfile, Receiver, Scenario

MODELS = {
    "two": ModelProfile(name="two", layer_bytes=(1.0, 2.0), layer_flops=(10.0, 20.0)),
    "three": ModelProfile(name="three", layer_bytes=(4.0, 5.0, 6.0), layer_flops=(40.0, 50.0, 60.0)),
}


def user(name: str, *models: str, **changed: float) -> Receiver:
    values = {"deadline_s": 1.0, "energy_j": 1.0, "batch": 2, "device_flops": 10.0, "power_w": 4.0, "layer_overhead_s": 0.5, **changed}
    return Receiver(id=name, spectral_efficiency=1.0, models=models, **values)


SCENARIO = Scenario(bandwidth_hz=1.0, models=MODELS, users=(user("a", "three", "two"), user("b", "two", static_power_w=1.0, min_clock=0.3)))


def test_sums_over_layers_are_padded_with_layers_of_nothing():
    found = candidates(SCENARIO, whole=False)
    assert (found.user.tolist(), found.slot.tolist()) == ([0, 0, 1], [0, 1, 0])
    assert found.tasks.arrived.T.tolist() == [[4, 9, 15], [1, 3, 3], [1, 3, 3]]
    assert found.tasks.work.T.tolist() == [[8, 10, 12], [2, 4, 0], [2, 4, 0]]
    assert found.tasks.fixed.T.tolist() == [[0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0.5, 0]]
    assert found.tasks.work_left.T.tolist() == [[30, 22, 12], [6, 4, 0], [6, 4, 0]]
    assert found.tasks.fixed_left.T.tolist() == [[1.5, 1, 0.5], [1, 0.5, 0], [1, 0.5, 0]]
    assert found.tasks.total_bytes.tolist() == [15, 3, 3]
    assert found.tasks.lowest.tolist() == pytest.approx(
        [1e-12, 1e-12, 0.5]
    )  # never 0; the clock at which b takes the least energy, (1/8)^(1/3)


def test_download_first_needs_all_bytes_at_once():
    assert candidates(SCENARIO, whole=True).tasks.arrived.T.tolist() == [[15] * 3, [3] * 3, [3] * 3]


def test_tables_and_finding_are_by_user_and_place():
    found = candidates(SCENARIO, whole=False)
    assert found.table(np.array([7.0, 8.0, 9.0]), fill=0.0).tolist() == [[7, 8], [9, 0]]
    assert found.find(np.array([1, 0])).tolist() == [1, 2]


def test_longer_models_beside_it_change_nothing_for_a_user(draw_problem):
    longest = ModelProfile(name="long", layer_bytes=(1.0,) * 50, layer_flops=(1.0,) * 50)
    for seed in range(20):
        alone = draw_problem(np.random.default_rng(seed))
        beside = Scenario(bandwidth_hz=alone.bandwidth_hz, models={"long": longest, **alone.models}, users=alone.users)
        np.testing.assert_allclose(least_shares(beside), least_shares(alone), rtol=1e-9)
