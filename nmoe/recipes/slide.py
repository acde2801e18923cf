"""The SLIDE reproduction: users served and latency against bandwidth, deadline, users, energy and batch, for every method of planning.

Source: G. Qu, T. Li, Q. Chen, X. Chen, S. Zhou, arXiv 2512.20946. The paper's values and settings are not known to this project: cells,
devices and tasks are those of ``nmoe.deliver.cells``, models those of ``nmoe.deliver.profiles``, and every number is this project's.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nmoe.channel import read_positions, read_trace
from nmoe.core.seeds import numpy_generator, torch_generator
from nmoe.deliver.allocate import METHODS, Allocation, least_shares, plan
from nmoe.deliver.cells import TaskRanges, cell_efficiencies, city_efficiencies, draw_scenario, trace_efficiencies
from nmoe.deliver.forward import check_plan, simulate
from nmoe.deliver.scenario import ModelProfile, Receiver, Scenario
from nmoe.recipes.channel_curves import mean_and_std
from nmoe.recipes.watch import Progress

NAME = "slide"
COMPARED = [name for name in METHODS if name != "slide-weighted"]  # users weigh the same here
OVERLAPPED = "dai-overlapped"
NEEDS_OF = ("slide", "slide-uniform-clock", "slide-full-clock", "dai")
CARRIER_HZ = 400e6  # assumed of the 5G traces: four carriers of 100 MHz; the data set does not say
TRACES_5G = "5g_trace"  # how the names of the 5G traces begin
SETTINGS = {
    "cell": "drawn cell, 250 m",
    "traces": "measured 5G rates (Lumos5G)",
    "cqi": "measured 5G quality reports (UCC)",
    "melbourne": "stations and users of Melbourne",
}
RATIOS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of the time to compute to the time to download
POINTS = 101  # of a law of needed bandwidth that are kept
SPECIFICATION = {  # users served by SLIDE and by downloading first, by bandwidth in MHz and deadline in s: its own check, section 1.4
    (400.0, 1.0): (13.6, 9.9),
    (400.0, 2.0): (19.6, 16.8),
    (400.0, 4.0): (25.6, 22.6),
    (100.0, 1.0): (5.9, 4.6),
    (100.0, 2.0): (9.9, 8.4),
    (100.0, 4.0): (15.6, 14.2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A point of operation: what is varied one at a time.

    Attributes:
        bandwidth_hz: of the cell.
        users: in the cell.
        tasks: what they want and can do.
    """

    bandwidth_hz: float = 400e6
    users: int = 40
    tasks: TaskRanges = field(default_factory=lambda: TaskRanges(choices=3))


SCALES: Mapping[str, Mapping[str, Sequence[float]]] = {  # values of everything that is varied
    "cpu": {
        "bandwidth_mhz": (50, 100, 200, 300, 400),
        "deadline_s": (0.5, 0.75, 1, 1.5, 2, 4),
        "users": (10, 20, 40, 60, 80),
        "energy_j": (1, 2, 5, 10, 25),
        "batch": (5, 10, 15, 20, 25),
    },
    "paper": {
        "bandwidth_mhz": (25, 50, 100, 150, 200, 250, 300, 350, 400, 600, 800),
        "deadline_s": (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4, 6),
        "users": (5, 10, 20, 30, 40, 60, 80, 120, 160),
        "energy_j": (0.5, 1, 2, 3, 5, 7.5, 10, 15, 25, 40),
        "batch": (5, 10, 15, 20, 25, 30, 40),
    },
}
QUICK: Mapping[str, Sequence[float]] = {
    "bandwidth_mhz": (100, 400),
    "deadline_s": (0.5, 1, 2),
    "users": (20, 40),
    "energy_j": (2, 25),
    "batch": (10, 20),
}
QUICK_SEEDS = 3

Links = Callable[[Operation, torch.Generator], Tensor]  # efficiencies in bit/s/Hz of as many users as a reproduction ever has


class Cell(NamedTuple):
    """One number of a reproduction: whose, where, under which value of what, and which."""

    method: str
    setting: str
    sweep: str
    value: float
    metric: str


def varied(sweep: str, value: float, base: Operation) -> Operation:
    """Return the point of operation at which one thing has another value; energy and batch are means of ranges of 0.4 to 1.6 times."""
    tasks = base.tasks
    match sweep:
        case "bandwidth_mhz":
            return replace(base, bandwidth_hz=1e6 * value)
        case "deadline_s":
            return replace(base, tasks=replace(tasks, deadline_s=value))
        case "users":
            return replace(base, users=int(value))
        case "energy_j":
            return replace(base, tasks=replace(tasks, energy_j=(0.4 * value, 1.6 * value)))
        case _:
            assert sweep == "batch"
            return replace(base, tasks=replace(tasks, batch=(round(0.4 * value), round(1.6 * value))))


def links_of(setting: str, data_dir: Path | None, most_users: int) -> Links:
    """Return how the links of a setting are drawn; its files are read at once.

    Args:
        setting: one of ``SETTINGS``.
        data_dir: folder with throughput.csv.gz (traces), ucc5g.csv.gz (cqi), eua_servers_melbcbd.csv and eua_users_melbcbd.csv (melbourne).
        most_users: that a cell ever has.

    Raises:
        ValueError: when the setting is unknown, needs a folder and there is none, or the city has too few users.
        BadFile: when a file cannot be read.
    """
    if setting not in SETTINGS:
        raise ValueError(f"setting must be one of {', '.join(SETTINGS)}, got {setting!r}")
    if setting == "cell":
        return lambda at, draws: cell_efficiencies(most_users, bandwidth_hz=at.bandwidth_hz, generator=draws)
    if data_dir is None:
        raise ValueError(f"setting {setting} needs --data-dir, the folder with its measurements")
    if setting == "melbourne":
        stations_deg, users_deg = (read_positions(data_dir / f"eua_{what}_melbcbd.csv") for what in ("servers", "users"))
        if len(users_deg) < most_users:
            raise ValueError(f"a city of at least {most_users} users wanted, got {len(users_deg)}")
        return lambda at, draws: city_efficiencies(stations_deg, users_deg, most_users, bandwidth_hz=at.bandwidth_hz, generator=draws)
    if setting == "traces":
        traces = {name: one for name, one in read_trace(data_dir / "throughput.csv.gz").items() if name.startswith(TRACES_5G)}
    else:
        traces = {name: one for name, one in read_trace(data_dir / "ucc5g.csv.gz").items() if np.isfinite(one.cqi).any()}
    return lambda at, draws: trace_efficiencies(traces, most_users, carrier_hz=CARRIER_HZ, window_s=at.tasks.deadline_s, generator=draws)


def draw(setting: str, links: Links, models: Mapping[str, ModelProfile], at: Operation, *, seed: int) -> Scenario:
    """Draw a scenario; one seed has the same users at every point of operation."""
    efficiencies = links(at, torch_generator(seed, NAME, setting, "links"))[: at.users]
    tasks = torch_generator(seed, NAME, setting, "tasks")
    return draw_scenario(efficiencies, models, at.tasks, bandwidth_hz=at.bandwidth_hz, generator=tasks)


def measure(scenario: Scenario, method: str, *, seed: int) -> dict[tuple[str, str], float]:
    """Plan, check, and let the devices of those served run as fast as their energy lets them.

    Returns:
        By method and metric: ``served``, and ``latency_s``, the mean of those served. Of ``dai`` also what its users would see who compute
        during the download, all else equal (``OVERLAPPED``): ``latency_s``, ``cut``, the mean share saved, and ``ratio``, the median of
        their time to compute over that to download.
    """
    found = plan(scenario, method, spare="share", generator=numpy_generator(seed, NAME, method))
    check_plan(scenario, found)
    numbers = {(method, "served"): float(found.served)}
    if not found.served:
        return numbers
    users = {user.id: user for user in scenario.users}
    whole = METHODS[method].whole
    fast = [hurried(users[one.id], scenario, one) for one in found.allocations if one.served]
    planned_s = np.array([one.finish_s for one in found.allocations if one.served], dtype=float)
    hurried_s = np.array([simulate(scenario, one, whole=whole).finish_s for one in fast])
    numbers[method, "latency_s"] = float(np.minimum(hurried_s, planned_s).mean())  # clocks that differ may win where energy is scarce
    if method == "dai":
        timelines = [simulate(scenario, one) for one in fast]
        overlapped_s = np.array([one.finish_s for one in timelines])
        download_s = np.array([one.downloaded_s[-1] for one in timelines])
        numbers[OVERLAPPED, "latency_s"] = float(np.minimum(overlapped_s, planned_s).mean())
        numbers[OVERLAPPED, "cut"] = float((1 - overlapped_s / hurried_s).mean())
        numbers[OVERLAPPED, "ratio"] = float(np.median(hurried_s / download_s - 1))
    return numbers


def hurried(user: Receiver, scenario: Scenario, allocation: Allocation) -> Allocation:
    """Return an allocation with one clock, the fastest that the energy budget allows; a plan's own clocks are as slow as the deadline is.

    Static and receiving power must be 0, as they are of the users drawn here.
    """
    assert allocation.model is not None
    work = scenario.models[allocation.model].layer_flops
    full_clock_j = user.power_w * user.batch * sum(work) / user.device_flops
    return replace(allocation, clocks=(min(1.0, math.sqrt(user.energy_j / full_clock_j)),) * len(work))


def overlaps(models: Mapping[str, ModelProfile], tasks: TaskRanges) -> list[dict[str, Any]]:
    """Return what overlapping saves each model on a middling device at full clock, at links that make given ratios of the two times."""
    batch, flops = round(sum(tasks.batch) / 2), sum(tasks.device_flops) / 2
    rows = []
    for name, model in models.items():
        compute_s = sum(tasks.layer_overhead_s + batch * work / flops for work in model.layer_flops)
        for ratio in RATIOS:
            user = Receiver(
                id="user",
                spectral_efficiency=1.0,
                deadline_s=10 * compute_s * (1 + 1 / ratio),
                energy_j=np.inf,
                batch=batch,
                device_flops=flops,
                power_w=1.0,
                layer_overhead_s=tasks.layer_overhead_s,
                models=(name,),
            )
            bandwidth_hz = 8 * sum(model.layer_bytes) * ratio / compute_s
            scenario = Scenario(bandwidth_hz=bandwidth_hz, models={name: model}, users=(user,))
            (allocation,) = plan(scenario, "slide-full-clock", spare="share").allocations
            whole_s, overlapped_s = (simulate(scenario, allocation, whole=whole).finish_s for whole in (True, False))
            rows.append({"model": name, "layers": len(model.layer_bytes), "ratio": ratio, "cut": 1 - overlapped_s / whole_s})
    return rows


def sweep_all(
    settings: Mapping[str, Links],
    models: Mapping[str, ModelProfile],
    values: Mapping[str, Sequence[float]],
    *,
    seeds: int,
    progress: Progress,
) -> dict[Cell, list[float]]:
    """Plan everything: every setting, everything that is varied, every method, every seed."""
    cells: dict[Cell, list[float]] = {}
    for setting, links in settings.items():
        for seed in range(seeds):
            for sweep, points in values.items():
                for value in points:
                    scenario = draw(setting, links, models, varied(sweep, value, Operation()), seed=seed)
                    for method in COMPARED:
                        for (name, metric), number in measure(scenario, method, seed=seed).items():
                            cells.setdefault(Cell(name, setting, sweep, value, metric), []).append(number)
            progress.stage(f"{setting}: plans", seed + 1, seeds)
    return cells


def check(links: Links, models: Mapping[str, ModelProfile], *, seeds: int) -> list[dict[str, Any]]:
    """Repeat the specification's own check: drawn cells, one model per user."""
    rows: list[dict[str, Any]] = []
    for (bandwidth_mhz, deadline_s), said in SPECIFICATION.items():
        at = Operation(bandwidth_hz=1e6 * bandwidth_mhz, tasks=TaskRanges(deadline_s=deadline_s, choices=1))
        row: dict[str, Any] = {"bandwidth_mhz": bandwidth_mhz, "deadline_s": deadline_s, "specification": list(said)}
        scenarios = [draw("cell", links, models, at, seed=seed) for seed in range(seeds)]
        for method in ("slide", "dai"):
            mean, std = mean_and_std([float(plan(scenario, method).served) for scenario in scenarios])
            row[method] = {"mean": mean, "std": std}
        rows.append(row)
    return rows


def needs_of(setting: str, links: Links, models: Mapping[str, ModelProfile], *, seeds: int) -> dict[str, list[float | None]]:
    """Return quantiles of the needed shares over all users and seeds, from 0 to 1 in ``POINTS`` steps; None for a need beyond any link."""
    scenarios = [draw(setting, links, models, Operation(), seed=seed) for seed in range(seeds)]
    laws: dict[str, list[float | None]] = {}
    for method in NEEDS_OF:
        needs = np.sort([need for scenario in scenarios for need in least_shares(scenario, method).min(axis=1)])
        kept = needs[np.linspace(0, len(needs) - 1, POINTS).round().astype(int)]
        laws[method] = [float(f"{need:.6g}") if np.isfinite(need) else None for need in kept]
    return laws
