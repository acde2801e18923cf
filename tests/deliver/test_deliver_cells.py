"""Cells: users stand and draw as said, measured links become efficiencies, and one seed gives one scenario."""

import math

import numpy as np
import pytest
import torch

from nmoe.channel import LinkTrace
from nmoe.channel.rate import CQI_TABLE
from nmoe.core.seeds import torch_generator
from nmoe.deliver.cells import (
    LOWEST_EFFICIENCY,
    TaskRanges,
    cell_efficiencies,
    city_efficiencies,
    draw_scenario,
    efficiencies_at,
    trace_efficiencies,
)
from nmoe.deliver.profiles import image_models

MODELS = image_models()


def generator(*path: str | int) -> torch.Generator:
    return torch_generator(0, "cells", *path)


def trace(rates_bps: list[float], cqi: list[float] | None = None) -> LinkTrace:
    nothing = np.full(len(rates_bps), math.nan)
    return LinkTrace(
        times_s=np.arange(len(rates_bps), dtype=np.float64),
        snr_db=nothing,
        rate_bps=np.array(rates_bps),
        cqi=nothing if cqi is None else np.array(cqi),
    )


def test_users_stand_uniformly_on_the_disc():
    efficiency = cell_efficiencies(20_000, bandwidth_hz=2e8, generator=generator("disc"))
    # the same law by another way: integrate over squared distance and over the exponential gain
    squared = np.linspace(35**2, 250**2, 2001)
    loss_db = 128.1 + 37.6 * np.log10(np.sqrt(squared) / 1000)
    mean_snr = 10 ** ((43 - loss_db + 174 - 10 * math.log10(2e8)) / 10)
    shares = (np.arange(2000) + 0.5) / 2000
    gains = -np.log1p(-shares)
    wanted = np.log2(1 + mean_snr[:, None] * gains).mean()
    assert float(efficiency.mean()) == pytest.approx(wanted, rel=0.01)


def test_one_seed_one_scenario_and_more_users_are_the_same_and_more():
    def draw(users: int, tasks: TaskRanges):
        efficiencies = torch.linspace(1, 5, 40, dtype=torch.float64)[:users]
        return draw_scenario(efficiencies, MODELS, tasks, bandwidth_hz=1e8, generator=generator("tasks"))

    few, many = draw(10, TaskRanges(choices=3)), draw(40, TaskRanges(choices=3))
    assert few.users == many.users[:10]
    assert draw(40, TaskRanges(choices=3)) == many
    doubled = draw(40, TaskRanges(choices=3, energy_j=(20.0, 80.0)))
    for one, other in zip(many.users, doubled.users, strict=True):
        assert other.energy_j == pytest.approx(2 * one.energy_j)
        assert other.batch == one.batch
        assert other.models == one.models


def test_tasks_lie_in_their_ranges_and_reach_their_ends():
    efficiencies = torch.ones(4000, dtype=torch.float64)
    scenario = draw_scenario(efficiencies, MODELS, TaskRanges(batch=(8, 11), choices=2), bandwidth_hz=1e8, generator=generator("ranges"))
    batches = [user.batch for user in scenario.users]
    assert sorted(set(batches)) == [8, 9, 10, 11]
    assert min(batches.count(size) for size in set(batches)) > 900
    assert all(10 <= user.energy_j <= 40 and 10 <= user.power_w <= 30 for user in scenario.users)
    assert all(0.12e12 <= user.device_flops <= 0.6e12 for user in scenario.users)
    counts = [sum(name in user.models for user in scenario.users) for name in MODELS]
    assert sum(counts) == 2 * 4000
    assert min(counts) > 0.9 * max(counts)


def test_a_citys_cell_is_one_station_and_the_users_nearest_to_it():
    stations = np.array([[0.0, 0.0]])
    metre = 180 / (math.pi * 6_371_008.8)  # degrees
    users = np.array([[500 * metre, 0.0], [0.0, 100 * metre], [20 * metre, 0.0]])
    found = city_efficiencies(stations, users, 2, bandwidth_hz=1e8, generator=generator("city"))
    draws = generator("city")
    torch.randint(1, (1,), generator=draws)
    near = torch.tensor([[35.0, 0.0], [100.0, 0.0]], dtype=torch.float64)  # 20 m counts as 35 m
    wanted = efficiencies_at(near, torch.zeros((1, 2), dtype=torch.float64), bandwidth_hz=1e8, generator=draws)
    assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-6)
    with pytest.raises(ValueError, match="1 to 3 users of the city wanted, got 4"):
        city_efficiencies(stations, users, 4, bandwidth_hz=1e8, generator=generator("city"))


def test_measured_rates_become_efficiencies_of_their_carrier():
    steady = {"a": trace([2e8] * 10)}
    found = trace_efficiencies(steady, 5, carrier_hz=4e8, window_s=2.0, generator=generator("steady"))
    assert found.tolist() == [0.5] * 5
    stepping = {"b": trace([0.0, 100.0, 200.0, 300.0])}
    found = trace_efficiencies(stepping, 200, carrier_hz=1.0, window_s=1.0, generator=generator("steps"))
    assert set(found.tolist()) == {50.0, 150.0}  # windows begin between reports 0 and 1 or 1 and 2, and see the next one too
    silent = trace_efficiencies({"c": trace([0.0] * 4)}, 2, carrier_hz=1.0, window_s=1.0, generator=generator("silent"))
    assert silent.tolist() == [LOWEST_EFFICIENCY] * 2


def test_quality_indicators_count_by_their_table():
    found = trace_efficiencies({"a": trace([1.0] * 4, [15.0] * 4)}, 3, carrier_hz=1e6, window_s=1.0, generator=generator("cqi"))
    assert found.tolist() == pytest.approx([CQI_TABLE[-1].efficiency] * 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"energy_j": (0.0, 1.0)}, "a range of energy_j above 0 wanted"),
        ({"batch": (9, 8)}, "a range of batch above 0 wanted, lowest first, got 9 to 8"),
        ({"power_w": (1.0, math.nan)}, "a range of power_w above 0 wanted"),
        ({"deadline_s": math.inf}, "a deadline above 0 s"),
        ({"choices": 0}, "choices must be at least 1, got 0"),
    ],
)
def test_bad_tasks_are_refused(changes: dict, said: str):
    with pytest.raises(ValueError, match=said):
        TaskRanges(**changes)


def test_bad_cells_are_refused():
    with pytest.raises(ValueError, match="users cannot accept 8 models, there are 7"):
        draw_scenario(torch.ones(1), MODELS, TaskRanges(choices=8), bandwidth_hz=1e8, generator=generator("bad"))
    with pytest.raises(ValueError, match="at least one user wanted, got 0"):
        cell_efficiencies(0, bandwidth_hz=1e8, generator=generator("bad"))
    with pytest.raises(ValueError, match="got 0 traces"):
        trace_efficiencies({}, 1, carrier_hz=1e6, window_s=1.0, generator=generator("bad"))
    with pytest.raises(ValueError, match="neither rates nor channel quality indicators"):
        trace_efficiencies({"a": trace([math.nan])}, 1, carrier_hz=1e6, window_s=1.0, generator=generator("bad"))
