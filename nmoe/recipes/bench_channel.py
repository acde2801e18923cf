"""Benchmark of the channel: how many links' SNRs a core draws in a second, by law of fading, from places, and over time.

A link sample is one SNR of one link in one block. One thread; systems take turns, and the median over all turns is reported.
"""

import json
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from nmoe.channel.analog import Analog
from nmoe.channel.base import Fading
from nmoe.channel.fading import Awgn, Rayleigh, Rician
from nmoe.channel.link_budget import LinkBudget
from nmoe.channel.mobility import Moving
from nmoe.channel.path_loss import UrbanMicro
from nmoe.channel.radio import Radio
from nmoe.channel.shadowing import Shadowing
from nmoe.core.seeds import torch_generator

SAMPLES = 1_000_000
LINKS, BLOCKS, SITES = 5, 100, 100  # of a sample in training; of a series; that a user hears
CITY_M = 2000.0

Draw = Callable[[], torch.Tensor]


def bench_channel(*, turns: int, as_json: bool, say: Callable[[str], None], samples: int = SAMPLES) -> None:
    """Measure all systems in turn and print the table, or JSON with ``name, machine, rows``.

    Args:
        turns: how often each system draws, at least 1.
        as_json: JSON instead of a table.
        say: prints a line.
        samples: drawn at a time, at least 1000; a tenth of them where shadowing is correlated.

    Raises:
        ValueError: when ``turns`` or ``samples`` is too small.
    """
    if turns < 1 or samples < SITES * 10:
        raise ValueError(f"turns must be at least 1 and samples at least {SITES * 10}, got {turns} and {samples}")
    torch.set_num_threads(1)
    systems = _systems(samples)
    for draw in systems.values():
        draw()  # memory and code are warm
    rates_hz: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(turns):
        for name, draw in systems.items():
            began_s = time.perf_counter()
            drawn = draw().numel()
            rates_hz[name].append(drawn / (time.perf_counter() - began_s))
    rows = as_rows(rates_hz)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    if as_json:
        say(json.dumps({"name": "channel", "machine": machine, "rows": rows}))
        return
    say(f"{'system':<40}{'case':<52}{'link samples':>16}")
    for row in rows:
        say(f"{row['system']:<40}{row['case']:<52}{row['value'] / 1e6:>9.1f} M 1/s")


def as_rows(rates_hz: Mapping[tuple[str, str], Sequence[float]]) -> list[dict[str, Any]]:
    """Return benchmark rows, one per system and case."""
    return [
        {"system": system, "case": case, "metric": "median link samples per second", "value": statistics.median(rates), "unit": "1/s"}
        for (system, case), rates in rates_hz.items()
    ]


def _systems(samples: int) -> dict[tuple[str, str], Draw]:
    """Return what is measured, by system and case; a call draws ``samples`` SNRs, or a tenth where shadowing is correlated."""
    fadings: dict[str, Fading] = {"AWGN": Awgn(), "Rayleigh": Rayleigh(), "Rician, K = 4": Rician(k_factor=4.0)}
    systems = {(name, "SNRs of one block each"): _fade(fading, samples) for name, fading in fadings.items()}
    batch = samples // LINKS
    for name, fading in fadings.items():
        radio = Radio(fading=fading, transmission=Analog(), low_db=-10.0, high_db=20.0)
        systems[f"Radio.fade, {name}", f"{batch:,} samples, {LINKS} links"] = _radio(radio, batch)
        systems[f"Radio.draw_means + fade, {name}", f"{batch:,} samples, {LINKS} links"] = _training(radio, batch)
    users, few = samples // SITES, samples // SITES // 10
    systems["urban micro, no sight", f"path loss, shadowing, {users:,} users"] = _places(0.0, users)
    systems["urban micro, no sight", f"path loss, correlated shadowing, {few:,} users"] = _places(13.0, few)
    systems["moving, 30 m/s, 3.5 GHz", f"{BLOCKS} blocks of 1 ms, {samples // BLOCKS:,} links"] = _moving(samples // BLOCKS)
    return systems


def _fade(fading: Fading, samples: int) -> Draw:
    generator, mean_snr = torch_generator(0, "bench", "fading"), torch.full((samples,), 10.0)
    return lambda: mean_snr * fading.gains((samples,), generator=generator)


def _radio(radio: Radio, batch: int) -> Draw:
    generator = torch_generator(0, "bench", "radio")
    means = radio.draw_means(batch, LINKS, generator=generator)
    return lambda: radio.fade(means, generator=generator)


def _training(radio: Radio, batch: int) -> Draw:
    """Return what training draws per sample: means anew, then a block of each."""
    generator = torch_generator(0, "bench", "training")
    return lambda: radio.fade(radio.draw_means(batch, LINKS, generator=generator), generator=generator)


def _places(correlation_m: float, users: int) -> Draw:
    generator = torch_generator(0, "bench", "places")
    shadowing = Shadowing(sigma_db=7.82, correlation_m=correlation_m)
    micro = UrbanMicro(carrier_hz=3.5e9, line_of_sight=False)
    budget = LinkBudget(power_dbm=33.0, bandwidth_hz=20e6, noise_figure_db=9.0, path_loss=micro, shadowing=shadowing)
    users_m, sites_m = (CITY_M * torch.rand((places, 2), generator=generator) for places in (users, SITES))
    return lambda: budget.mean_snr(users_m, sites_m, generator=generator)


def _moving(links: int) -> Draw:
    generator = torch_generator(0, "bench", "moving")
    motion = Moving(speed_m_s=30.0, carrier_hz=3.5e9, block_s=1e-3)
    return lambda: motion.gains(BLOCKS, links, generator=generator)
