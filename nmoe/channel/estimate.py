"""Estimation: what a node knows of the radio link to each neighbour, from reports or from how fast its messages go. Pure.

Sources: C. E. Shannon, Proc. IRE 37 (1949), for rates as SNRs (``nmoe.channel.rate``); Linux' wireless extensions,
include/uapi/linux/wireless.h and net/wireless/wext-proc.c, for the report; thermal noise k T = -174 dBm/Hz at 290 K, any textbook.

| symbol | here | unit |
|---|---|---|
| gamma | snr_db | dB; clamped to [-20, 40], the range that gates see |
| C | rate_bps | bit/s |
| W | bandwidth_hz | Hz; 20 MHz, a WLAN channel, unless said otherwise |
| tau | TIME_CONSTANT_S | s |
| N | noise floor | dBm; k T W F, F = 7 dB |

    report     gamma = level - noise; where the driver knows no noise, N = -174 + 10 log10 W + 7
    goodput    gamma = 2^(C / W) - 1
    smoothed   g <- g + (1 - e^(-dt / tau)) (gamma - g), in dB

Departures: ours all, the papers being silent. tau = 5 s; a state older than ``STALE_S`` = 30 s counts as never measured. An SNR beyond the
range is clamped, and counted where a report said it. Goodput is what was moved over the time it took less the round trip; protocols take
their part of it, so its SNR is a lower bound. The round trip of small messages alone says how far a neighbour is, not how much its link
carries, and gives no SNR.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import final

import torch

from nmoe.channel.link_budget import noise_dbm
from nmoe.channel.rate import shannon_snr, snr_of_cqi
from nmoe.channel.trace import LinkSample
from nmoe.core.errors import BadFile
from nmoe.core.units import HIGHEST_GATE_SNR_DB, LOWEST_GATE_SNR_DB, to_db

BANDWIDTH_HZ = 20e6
TIME_CONSTANT_S, STALE_S = 5.0, 30.0
NOISE_FIGURE_DB = 7.0
UNKNOWN_NOISE_DBM = -256.0  # how a driver says that it does not measure noise
_HEADER_LINES = 2


class Source(StrEnum):
    """Where a link state comes from."""

    TRACE = "trace"
    SIMULATED = "simulated"
    WIRELESS = "wireless"
    GOODPUT = "goodput"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkState:
    """What is known of a link.

    Attributes:
        snr_db: signal-to-noise ratio in dB; None where it was never measured or the measurement is stale, which is not the same as perfect.
        rate_bps: what the link carries; None where that is not known.
        source: who says so.
        age_s: seconds since the last measurement; infinity without one.
        clamped: reports so far whose SNR was beyond the range.
    """

    snr_db: float | None
    rate_bps: float | None
    source: Source
    age_s: float
    clamped: int = 0


UNMEASURED = LinkState(snr_db=None, rate_bps=None, source=Source.NONE, age_s=math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class WirelessReport:
    """What the operating system says of one wireless interface.

    Attributes:
        level_dbm: power received.
        noise_dbm: noise; None where the driver does not measure it.
    """

    level_dbm: float
    noise_dbm: float | None

    def snr_db(self, *, bandwidth_hz: float = BANDWIDTH_HZ) -> float:
        """Return level over noise in dB; over thermal noise in ``bandwidth_hz`` where noise is not measured.

        Raises:
            ValueError: when the bandwidth is not above 0.
        """
        floor_dbm = noise_dbm(bandwidth_hz, noise_figure_db=NOISE_FIGURE_DB)
        return self.level_dbm - (floor_dbm if self.noise_dbm is None else self.noise_dbm)


def parse_wireless(text: str) -> Mapping[str, WirelessReport]:
    """Read the operating system's wireless report, as Linux writes it to ``/proc/net/wireless``.

    Args:
        text: all of it: two lines of headings, then one line per interface.

    Returns:
        The connected interfaces by name; none where the machine has no such one. Of one that is down, or not associated, Linux writes a
        line of zeros.

    Raises:
        BadFile: when a line is not one of such a report.
    """
    reports = {}
    for number, line in enumerate(text.splitlines()[_HEADER_LINES:], start=_HEADER_LINES + 1):
        name, colon, rest = line.partition(":")
        fields = rest.split()
        try:
            quality, level, noise = (float(word.rstrip(".")) for word in fields[1:4])
            status = int(fields[0], 16)
        except ValueError as error:
            raise BadFile(f"line {number} of the wireless report should be 'NAME: status quality level noise ...', got {line!r}") from error
        if not (colon and all(map(math.isfinite, (quality, level, noise)))):
            raise BadFile(f"line {number} of the wireless report should be 'NAME: status quality level noise ...', got {line!r}")
        if not any((status, quality, level, noise)):  # not connected; its 0 dBm would count as 40 dB
            continue
        measured_dbm = None if noise in (0.0, UNKNOWN_NOISE_DBM) else _dbm(noise)
        reports[name.strip()] = WirelessReport(level_dbm=_dbm(level), noise_dbm=measured_dbm)
    return reports


def _dbm(value: float) -> float:
    """Return a power in dBm; old drivers write its lowest eight bits."""
    return value - 256 if value > 0 else value


def effective_snr_db(rate_bps: float, *, bandwidth_hz: float = BANDWIDTH_HZ) -> float:
    """Return the SNR in dB, within the range, that a link needs by Shannon's law to carry a rate.

    Raises:
        ValueError: when the rate is negative or NaN, or the bandwidth is not above 0.
    """
    return min(HIGHEST_GATE_SNR_DB, max(LOWEST_GATE_SNR_DB, to_db(shannon_snr(rate_bps, bandwidth_hz=bandwidth_hz))))


def sample_snr_db(sample: LinkSample, *, bandwidth_hz: float = BANDWIDTH_HZ) -> float | None:
    """Return what one report of a trace says of its link's SNR in dB: its SNR, else what its CQI or else its rate stands for; None without.

    A rate of 0 says nothing: there may have been nothing to move.
    """
    if sample.snr_db is not None:
        return sample.snr_db
    if sample.cqi is not None:
        return float(to_db(snr_of_cqi(torch.tensor(sample.cqi))))
    if sample.rate_bps:
        return effective_snr_db(sample.rate_bps, bandwidth_hz=bandwidth_hz)
    return None


def measured_state(rate_bps: float | None, age_s: float, *, bandwidth_hz: float = BANDWIDTH_HZ) -> LinkState:
    """Return the state of a link whose goodput was measured, or was not.

    Args:
        rate_bps: the goodput, smoothed by who measured it; None for none.
        age_s: since the last measurement.
        bandwidth_hz: the link is taken to have.

    Raises:
        ValueError: when the rate is negative or NaN, or the bandwidth is not above 0.
    """
    if rate_bps is None or age_s > STALE_S:
        return UNMEASURED
    return LinkState(snr_db=effective_snr_db(rate_bps, bandwidth_hz=bandwidth_hz), rate_bps=rate_bps, source=Source.GOODPUT, age_s=age_s)


@final
class LinkEstimate:
    """One link's SNR, smoothed over reports; see the card.

    Args:
        source: of the reports.

    Attributes:
        clamped: reports whose SNR was beyond the range.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.clamped = 0
        self._snr_db: float | None = None
        self._at_s = -math.inf

    def observe(self, now_s: float, *, snr_db: float | None) -> None:
        """Learn from one report.

        Args:
            now_s: when it was made; a time before the last one's counts as that.
            snr_db: signal-to-noise ratio; None where the report has none, which makes no estimate younger.

        Raises:
            ValueError: when a number is not finite.
        """
        if not math.isfinite(now_s) or (snr_db is not None and not math.isfinite(snr_db)):
            raise ValueError(f"a finite time and a finite SNR in dB wanted, got {now_s} s and {snr_db} dB")
        if snr_db is None:
            return
        within_db = min(HIGHEST_GATE_SNR_DB, max(LOWEST_GATE_SNR_DB, snr_db))
        self.clamped += within_db != snr_db
        elapsed_s = max(0.0, now_s - self._at_s)
        if self._snr_db is None or elapsed_s > STALE_S:
            self._snr_db = within_db
        else:
            gain = -math.expm1(-elapsed_s / TIME_CONSTANT_S)
            self._snr_db += gain * (within_db - self._snr_db)
        self._at_s = max(self._at_s, now_s)

    def state(self, now_s: float) -> LinkState:
        """Return what is known of the link now."""
        age_s = max(0.0, now_s - self._at_s)
        if age_s > STALE_S:
            return replace(UNMEASURED, clamped=self.clamped)
        return LinkState(snr_db=self._snr_db, rate_bps=None, source=self.source, age_s=age_s, clamped=self.clamped)
