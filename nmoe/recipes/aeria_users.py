"""Users of the AERIA reproduction: what they want and have, drawn or measured, and what a session is worth to them.

Source: S. Li, J. Hu, G. Min, H. Huang, J. Huang, arXiv 2503.04521. Its valuations are not known to this project: ranges and formula are
those of its own specification, sections 2.2 and 2.6.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from nmoe.channel import read_positions, read_trace
from nmoe.core.errors import BadFile
from nmoe.core.seeds import numpy_generator, torch_generator
from nmoe.core.table import read_table
from nmoe.deliver.cells import city_efficiencies, trace_efficiencies
from nmoe.market.auction import FAMILIES
from nmoe.market.auction.needs import EdgeDemand, Needs, edge_demand
from nmoe.market.auction.workloads import Workload

AFFINE = "affine"  # values that follow needs
PLACE = "aeria"  # of all seeds
MEASURED = {
    "traces": "phones' measured speeds, measured rates (3G, 4G, 5G, fixed lines)",
    "melbourne": "phones' measured speeds, links to a station of Melbourne",
}
SCORE = "cpu_f_ai_score"
MEDIAN_DEVICE_FLOPS = 20e9  # of the phones: the benchmark's scores say how phones compare, not what they compute
SLOWEST_BPS = 1e3  # a link that stands still in a trace
CITY_HZ = 5e6  # a user's band in Melbourne
TRACE_WINDOW_S = 5.0
BASE_ACCURACY, BASE_LATENCY_S, NOISE = 0.2, 0.1, 0.25  # of values that follow needs: A_0, L_0, deviation of the logarithm
LATENCY_S, TASKS = (0.05, 0.5), (1.0, 3.0)
DEVICE_FLOPS, UPLINK_BPS = (5e9, 50e9), (5e6, 50e6)


class Session(NamedTuple):
    """Users who came.

    Attributes:
        needs: theirs.
        edge: what the needs come to.
        value: what a session is worth to each.
    """

    needs: Needs
    edge: EdgeDemand
    value: Float[ndarray, " user"]


class Devices(NamedTuple):
    """What users have."""

    flops: Float[ndarray, " user"]
    uplink_bps: Float[ndarray, " user"]


Population = Callable[[int, int], Devices]  # number of users and seed -> what they have
Links = Callable[[int, int], Float[ndarray, " user"]]  # likewise -> uplinks in bit/s


def population_of(setting: str, data_dir: Path | None) -> Population:
    """Return how devices and links of a setting are drawn; its files are read at once.

    Args:
        setting: ``needs``, or one of ``MEASURED``.
        data_dir: folder with phones_ai_benchmark.csv and throughput.csv.gz (traces) or eua_servers_melbcbd.csv and eua_users_melbcbd.csv
            (melbourne).

    Raises:
        ValueError: when the setting needs a folder and there is none.
        BadFile: when a file cannot be read.
    """
    if setting == "needs":
        return _drawn_devices
    if data_dir is None:
        raise ValueError(f"setting {setting} needs --data-dir, the folder with its measurements")
    speeds = _phone_flops(data_dir / "phones_ai_benchmark.csv")
    links = _trace_links(data_dir) if setting == "traces" else _city_links(data_dir)

    def devices(users: int, seed: int) -> Devices:
        chosen = numpy_generator(seed, PLACE, setting, "phones").integers(len(speeds), size=users)
        return Devices(speeds[chosen], links(users, seed))

    return devices


def _phone_flops(path: Path) -> Float[ndarray, " phone"]:
    """Return the speeds of phones, as their scores in floating point compare."""
    table = read_table(path)
    if SCORE not in table.columns:
        raise BadFile(f"{path} should have a column {SCORE}, it has {', '.join(table.columns)}")
    scores = table.numbers(SCORE, low=0.0, high=1e9, missing=True)
    scores = scores[scores > 0]
    if not len(scores):
        raise BadFile(f"{path} should have a score above 0 in column {SCORE}")
    speeds: Float[ndarray, " phone"] = MEDIAN_DEVICE_FLOPS * scores / np.median(scores)
    return speeds


def _trace_links(data_dir: Path) -> Links:
    traces = read_trace(data_dir / "throughput.csv.gz")

    def links(users: int, seed: int) -> Float[ndarray, " user"]:
        generator = torch_generator(seed, PLACE, "traces")  # of 1 Hz, so that bit/s/Hz are bit/s
        rates = trace_efficiencies(traces, users, carrier_hz=1.0, window_s=TRACE_WINDOW_S, generator=generator)
        bps: Float[ndarray, " user"] = np.maximum(SLOWEST_BPS, rates.numpy())
        return bps

    return links


def _city_links(data_dir: Path) -> Links:
    stations_deg, users_deg = (read_positions(data_dir / f"eua_{what}_melbcbd.csv") for what in ("servers", "users"))

    def links(users: int, seed: int) -> Float[ndarray, " user"]:
        generator = torch_generator(seed, PLACE, "melbourne")
        efficiencies = city_efficiencies(stations_deg, users_deg, users, bandwidth_hz=CITY_HZ, generator=generator)
        return np.asarray(CITY_HZ * efficiencies.numpy())

    return links


def _drawn_devices(users: int, seed: int) -> Devices:
    """Draw devices of 5 to 50 GFLOP/s and uplinks of 5 to 50 Mbit/s."""
    draws = numpy_generator(seed, PLACE, "devices")
    return Devices(draws.uniform(*DEVICE_FLOPS, users), draws.uniform(*UPLINK_BPS, users))


def draw_session(population: Population, workloads: Mapping[str, Workload], count: int, *, family: str, wanted: str, seed: int) -> Session:
    """Draw users, their needs and values.

    Args:
        population: what they have.
        workloads: by name.
        count: of users.
        family: of their values, ``AFFINE`` or one of ``nmoe.market.auction.FAMILIES``.
        wanted: workload that all want; empty for one of all, drawn.
        seed: the same one has the same users whatever the family.
    """
    draws = numpy_generator(seed, PLACE, "needs")
    names = list(workloads)
    which = draws.integers(len(names), size=count)
    chosen = tuple(wanted or names[number] for number in which)
    ranks = draws.random(count)
    accuracy = np.array([_exit_accuracy(workloads[name], rank) for name, rank in zip(chosen, ranks, strict=True)])
    latency_s, tasks = draws.uniform(*LATENCY_S, count), draws.uniform(*TASKS, count)
    devices = population(count, seed)
    needs = Needs(
        workloads=chosen, accuracy=accuracy, latency_s=latency_s, tasks=tasks, device_flops=devices.flops, uplink_bps=devices.uplink_bps
    )
    edge = edge_demand(needs, workloads)
    return Session(needs, edge, values_of(needs, edge, family, numpy_generator(seed, PLACE, "values", family)))


def _exit_accuracy(workload: Workload, rank: float) -> float:
    return workload.exits[int(rank * len(workload.exits))].accuracy


def values_of(needs: Needs, edge: EdgeDemand, family: str, draws: Generator) -> Float[ndarray, " user"]:
    """Return what a session is worth to each user.

    Args:
        needs: of the users.
        edge: what the needs come to.
        family: ``AFFINE``: tasks times (weights times how much accuracy and haste are wanted) with lognormal noise; else the value of a
            GFLOP/s as of that family, times what is demanded.
        draws: of weights, noise and families.
    """
    if family == AFFINE:
        weights = draws.random((2, len(needs)))
        wish = weights[0] * np.maximum(0.0, needs.accuracy - BASE_ACCURACY) / (1 - BASE_ACCURACY)
        haste = weights[1] * BASE_LATENCY_S / needs.latency_s
        return np.asarray(needs.tasks * (wish + haste) * draws.lognormal(0.0, NOISE, len(needs)))
    entering = np.isfinite(edge.demand) & (edge.demand > 0)
    value = np.ones(len(needs))  # of no account where nothing is demanded
    value[entering] = FAMILIES[family](int(entering.sum()), draws) * edge.demand[entering] / 1e9
    return value
