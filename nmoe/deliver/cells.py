"""Cells: who asks for models in one radio cell: drawn users, measured links, or the base stations and users of a city.

Source: G. Qu, T. Li, Q. Chen, X. Chen, S. Zhou, arXiv 2512.20946 (SLIDE): one base station, users with deadlines and energy budgets.

| paper | here | unit |
|---|---|---|
| B | bandwidth_hz | Hz |
| R_k | efficiencies | bit/s/Hz, log2(1 + P g_k / (N0 B)) |
| K | num_users | |
| T_k^max | deadline_s | s |
| E_k^max | energy_j | J |
| b_k | batch | samples |
| f_k / kappa_k | device_flops | FLOP/s at full clock |
| eps_k | power_w | W at full clock |
| V_1 | layer_overhead_s | s per layer |
| I_k | choices | how many models a user accepts |

Departures: the paper's values are not known; all of these are ours (spec, section 1.4). Users stand uniformly on a disc of 35 to 250 m
around the station, path loss 128.1 + 37.6 log10(d / km) dB, Rayleigh fading constant over one delivery, 43 dBm over the whole band, thermal
noise without a noise figure. Each user accepts ``choices`` of the models, drawn at random. Measured rates are those of one device that had
a carrier to itself: ``carrier_hz`` turns them into efficiencies, and the carrier's width is our assumption, no part of the measurement.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from nmoe.channel import LinkBudget, LinkTrace, Rayleigh, UrbanMacro, local_metres, shannon_rate
from nmoe.channel.rate import CQI_TABLE
from nmoe.deliver.scenario import ModelProfile, Receiver, Scenario

RADIUS_M, NEAREST_M, POWER_DBM = 250.0, 35.0, 43.0
LOWEST_EFFICIENCY = 1e-6  # bit/s/Hz of a link that carried nothing: nobody is served over it
DRAWS = 4  # of a user, beside the models: batch, speed, power, energy
Range = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRanges:
    """What users want and can do; ranges are drawn from uniformly, both ends included.

    Attributes:
        deadline_s: from the request to the answer, of every user.
        energy_j: range of energy budgets.
        batch: range of samples per task, whole numbers.
        device_flops: range of speeds at full clock, FLOP/s.
        power_w: range of powers at full clock.
        layer_overhead_s: per layer, whatever the clock.
        choices: how many of the models a user accepts.
    """

    deadline_s: float = 1.0
    energy_j: Range = (10.0, 40.0)
    batch: tuple[int, int] = (8, 32)
    device_flops: Range = (0.12e12, 0.6e12)
    power_w: Range = (10.0, 30.0)
    layer_overhead_s: float = 1e-3
    choices: int = 1

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: when one is empty, not finite or not above 0.
        """
        for name in ("energy_j", "batch", "device_flops", "power_w"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"a range of {name} above 0 wanted, lowest first, got {low:g} to {high:g}")
        if not 0 < self.deadline_s < math.inf or not 0 <= self.layer_overhead_s < math.inf:
            raise ValueError(
                f"a deadline above 0 s and an overhead of at least 0 s wanted, got {self.deadline_s:g} s and {self.layer_overhead_s:g} s"
            )
        if self.choices < 1:
            raise ValueError(f"choices must be at least 1, got {self.choices}")


def draw_scenario(
    efficiencies: Float[Tensor, " user"],
    models: Mapping[str, ModelProfile],
    tasks: TaskRanges,
    *,
    bandwidth_hz: float,
    generator: torch.Generator,
) -> Scenario:
    """Draw the users' tasks and devices. More users are the same ones and more; another range scales the same draws.

    Args:
        efficiencies: bit/s/Hz of every user's link, above 0.
        models: that there are to choose from.
        tasks: what users want and can do.
        bandwidth_hz: of the cell, above 0.
        generator: of the draws.

    Raises:
        ValueError: when users are to accept more models than there are, or a number is out of range.
    """
    if tasks.choices > len(models):
        raise ValueError(f"users cannot accept {tasks.choices} models, there are {len(models)}")
    names = list(models)
    draws = torch.rand((len(efficiencies), DRAWS + len(models)), generator=generator, dtype=torch.float64)  # user by user
    low, high = tasks.batch
    users = []
    for number, (efficiency, row) in enumerate(zip(efficiencies.tolist(), draws.tolist(), strict=True)):
        accepted = np.argsort(row[DRAWS:])[: tasks.choices]
        users.append(
            Receiver(
                id=f"user{number:02d}",
                spectral_efficiency=efficiency,
                deadline_s=tasks.deadline_s,
                batch=low + int(row[0] * (high - low + 1)),
                device_flops=_within(tasks.device_flops, row[1]),
                power_w=_within(tasks.power_w, row[2]),
                energy_j=_within(tasks.energy_j, row[3]),
                layer_overhead_s=tasks.layer_overhead_s,
                models=tuple(names[model] for model in accepted),
            )
        )
    return Scenario(bandwidth_hz=bandwidth_hz, models=models, users=tuple(users))


def _within(bounds: Range, share: float) -> float:
    return bounds[0] + share * (bounds[1] - bounds[0])


def cell_efficiencies(num_users: int, *, bandwidth_hz: float, generator: torch.Generator) -> Float64[Tensor, " user"]:
    """Draw users on the disc around a station and the efficiencies of their links, in bit/s/Hz.

    Raises:
        ValueError: when there is no user, or the bandwidth is not above 0.
    """
    if num_users < 1:
        raise ValueError(f"at least one user wanted, got {num_users}")
    draws = torch.rand((num_users, 2), generator=generator, dtype=torch.float64)
    distance_m = (NEAREST_M**2 + draws[:, 0] * (RADIUS_M**2 - NEAREST_M**2)).sqrt()  # uniform over the area
    angle = 2 * math.pi * draws[:, 1]
    users_m = torch.stack([distance_m * angle.cos(), distance_m * angle.sin()], dim=1)
    return efficiencies_at(users_m, torch.zeros((1, 2), dtype=torch.float64), bandwidth_hz=bandwidth_hz, generator=generator)


def efficiencies_at(
    users_m: Float[Tensor, "user axis"], station_m: Float[Tensor, "1 axis"], *, bandwidth_hz: float, generator: torch.Generator
) -> Float64[Tensor, " user"]:
    """Draw the fading of links from a station and return their efficiencies, in bit/s/Hz.

    Raises:
        ValueError: when the bandwidth is not above 0, or a user is farther than the path loss allows.
    """
    budget = LinkBudget(power_dbm=POWER_DBM, bandwidth_hz=bandwidth_hz, noise_figure_db=0.0, path_loss=UrbanMacro(), nearest_m=NEAREST_M)
    mean_snr = budget.mean_snr(users_m.double(), station_m.double(), generator=generator)[:, 0]  # [user]
    gains = Rayleigh().gains((len(users_m),), generator=generator)
    return shannon_rate(mean_snr * gains, bandwidth_hz=1.0)  # R_k


def city_efficiencies(
    stations_deg: Float64[np.ndarray, "station 2"],
    users_deg: Float64[np.ndarray, "place 2"],
    num_users: int,
    *,
    bandwidth_hz: float,
    generator: torch.Generator,
) -> Float64[Tensor, " user"]:
    """Draw one of a city's stations and return the efficiencies of its links to the users nearest to it, nearest first, in bit/s/Hz.

    Args:
        stations_deg: latitudes and longitudes.
        users_deg: latitudes and longitudes.
        num_users: 1 to as many as there are.
        bandwidth_hz: above 0.
        generator: of the station and the fading.

    Raises:
        ValueError: when there are not so many users, or a number is out of range.
    """
    if not 1 <= num_users <= len(users_deg):
        raise ValueError(f"1 to {len(users_deg)} users of the city wanted, got {num_users}")
    station_deg = stations_deg[int(torch.randint(len(stations_deg), (1,), generator=generator))]
    users_m = local_metres(users_deg, origin_deg=(float(station_deg[0]), float(station_deg[1])))
    nearest = users_m.norm(dim=1).argsort()[:num_users]
    return efficiencies_at(users_m[nearest], torch.zeros((1, 2), dtype=torch.float64), bandwidth_hz=bandwidth_hz, generator=generator)


def trace_efficiencies(
    traces: Mapping[str, LinkTrace], num_users: int, *, carrier_hz: float, window_s: float, generator: torch.Generator
) -> Float64[Tensor, " user"]:
    """Give every user a trace and a moment in it, and return the mean efficiency from then on, in bit/s/Hz.

    A trace with channel quality indicators counts by their table (TS 38.214), one without by its rates.

    Args:
        traces: links by name, at least one.
        num_users: at least 1.
        carrier_hz: on which rates were measured, above 0.
        window_s: over which the mean is taken, above 0.
        generator: of traces and moments.

    Returns:
        At least ``LOWEST_EFFICIENCY``.

    Raises:
        ValueError: when a number is out of range, there is no trace, or one has neither rates nor indicators.
    """
    if not traces or num_users < 1 or not 0 < carrier_hz < math.inf or not 0 < window_s < math.inf:
        raise ValueError(
            f"traces, users, a carrier and a window above 0 wanted, got {len(traces)} traces, {num_users} users, {carrier_hz:g} Hz "
            f"and {window_s:g} s"
        )
    links = list(traces.items())
    table = np.array([0.0, *(entry.efficiency for entry in CQI_TABLE)])
    found = []
    for which, when in torch.rand((num_users, 2), generator=generator, dtype=torch.float64).tolist():
        name, trace = links[int(which * len(links))]
        has_cqi = bool(np.isfinite(trace.cqi).any())
        known = np.isfinite(trace.cqi if has_cqi else trace.rate_bps)
        if not known.any():
            raise ValueError(f"trace {name!r} has neither rates nor channel quality indicators")
        values = table[trace.cqi[known].astype(np.int64)] if has_cqi else trace.rate_bps[known] / carrier_hz
        times_s = trace.times_s[known]
        begin_s = times_s[0] + when * max(0.0, float(times_s[-1] - times_s[0]) - window_s)
        first = int(np.searchsorted(times_s, begin_s, side="right")) - 1  # the report that holds when the window begins
        last = max(first + 1, int(np.searchsorted(times_s, begin_s + window_s, side="left")))
        found.append(max(LOWEST_EFFICIENCY, float(values[first:last].mean())))
    return torch.tensor(found, dtype=torch.float64)
