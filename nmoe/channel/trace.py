"""Traces of links: what a modem or a logger reported of a link's quality, time after time.

A trace file is a CSV table, plain or gzipped, with one row per report. Its columns, in small or capital letters:

| column | names understood | meaning |
|---|---|---|
| time | time_s, t_s | seconds from any origin; reports are put in order of time |
| link | link, run, trace | which link or drive the row belongs to; without it the whole file is one link, named as the file |
| SNR | snr_db | dB |
| rate | rate_bps, dl_kbps, mbps | what the link carried |
| CQI | cqi | 0..15, see ``nmoe.channel.rate`` |

Time and at least one of SNR, rate and CQI must be there; other columns are ignored and an empty field is a missing value. A rate is what an
application moved, so 0 may mean that it had nothing to move.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float64, Int64

from nmoe.core.errors import BadFile
from nmoe.core.table import Table, read_table

TIMES = ("time_s", "t_s")
LINKS = ("link", "run", "trace")
SNR = "snr_db"
RATES_BPS = {"rate_bps": 1.0, "dl_kbps": 1e3, "mbps": 1e6}  # name -> bit/s per unit
CQI = "cqi"
MAX_SNR_DB = 200.0
MAX_RATE_BPS = 1e15
MAX_TIME_S = 1e12


class LinkSample(NamedTuple):
    """What a trace says of its link at some time.

    Attributes:
        snr_db: signal-to-noise ratio; None where the report has none.
        rate_bps: what the link carried; None where the report has none.
        age_s: seconds since that report; infinity before the first one.
        cqi: channel quality indicator, 0..15; None where the report has none.
    """

    snr_db: float | None
    rate_bps: float | None
    age_s: float
    cqi: int | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinkTrace:
    """The reports of one link.

    Attributes:
        times_s: when each was made; not falling.
        snr_db: signal-to-noise ratios; NaN where a report has none.
        rate_bps: rates carried; NaN where a report has none.
        cqi: channel quality indicators; NaN where a report has none.
    """

    times_s: Float64[np.ndarray, " report"]
    snr_db: Float64[np.ndarray, " report"]
    rate_bps: Float64[np.ndarray, " report"]
    cqi: Float64[np.ndarray, " report"]

    def __post_init__(self) -> None:
        """Check that the fields hold together.

        Raises:
            ValueError: when there is no report, lengths differ, or times fall or are not finite.
        """
        lengths = {len(column) for column in (self.times_s, self.snr_db, self.rate_bps, self.cqi)}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError(f"one time, SNR, rate and CQI per report wanted, at least one report, got lengths {sorted(lengths)}")
        if not (np.isfinite(self.times_s).all() and (np.diff(self.times_s) >= 0).all()):
            raise ValueError("times of a trace must be finite and must not fall")

    def __len__(self) -> int:
        """Return the number of reports."""
        return len(self.times_s)

    @property
    def duration_s(self) -> float:
        """Time from the first report to the last."""
        return float(self.times_s[-1] - self.times_s[0])

    def at(self, time_s: float) -> LinkSample:
        """Return what the latest report at or before a time says; of several at one time the last.

        Args:
            time_s: on the trace's own clock (see ``times_s``).

        Raises:
            ValueError: when the time is NaN.
        """
        if math.isnan(time_s):
            raise ValueError("a time in seconds wanted, got nan")
        report = int(np.searchsorted(self.times_s, time_s, side="right")) - 1
        if report < 0:
            return LinkSample(snr_db=None, rate_bps=None, age_s=math.inf)
        cqi = _known(self.cqi[report])
        return LinkSample(
            snr_db=_known(self.snr_db[report]),
            rate_bps=_known(self.rate_bps[report]),
            age_s=time_s - float(self.times_s[report]),
            cqi=None if cqi is None else int(cqi),
        )


def read_trace(path: Path) -> Mapping[str, LinkTrace]:
    """Read a trace file.

    Args:
        path: a ``.csv`` or ``.csv.gz`` file with the columns said above.

    Returns:
        The links by name, in the order in which the file first names them.

    Raises:
        BadFile: when the file cannot be read, lacks a column, or a row holds something else than numbers in their range.
    """
    table = read_table(path)
    time_name, link_name = table.first_of(TIMES), table.first_of(LINKS)
    measured = [name for name in (SNR, *RATES_BPS, CQI) if name in table.columns]
    if time_name is None or not measured:
        wanted = f"a column of times ({', '.join(TIMES)}) and one of {', '.join((SNR, *RATES_BPS, CQI))}"
        raise BadFile(f"trace {path} should have {wanted}, its columns are: {', '.join(table.columns)}")
    times_s = table.numbers(time_name, low=-MAX_TIME_S, high=MAX_TIME_S, missing=False)
    snr_db, rate_bps, cqi = _snr_db(table), _rate_bps(table), _cqi(table)
    links: dict[str, LinkTrace] = {}
    for name, rows in _rows_by_link(table, link_name).items():
        order = rows[np.argsort(times_s[rows], kind="stable")]
        links[name] = LinkTrace(times_s=times_s[order], snr_db=snr_db[order], rate_bps=rate_bps[order], cqi=cqi[order])
    return links


def _rows_by_link(table: Table, name: str | None) -> dict[str, Int64[np.ndarray, " report"]]:
    if name is None:
        return {table.path.name.split(".")[0]: np.arange(len(table.lines))}
    rows: dict[str, list[int]] = {}
    for row, link in enumerate(table.columns[name]):
        rows.setdefault(link.strip(), []).append(row)
    return {link: np.array(of_link) for link, of_link in rows.items()}


def _snr_db(table: Table) -> Float64[np.ndarray, " row"]:
    if SNR not in table.columns:
        return np.full(len(table.lines), math.nan)
    return table.numbers(SNR, low=-MAX_SNR_DB, high=MAX_SNR_DB, missing=True)


def _rate_bps(table: Table) -> Float64[np.ndarray, " row"]:
    name = table.first_of(tuple(RATES_BPS))
    if name is None:
        return np.full(len(table.lines), math.nan)
    return RATES_BPS[name] * table.numbers(name, low=0.0, high=MAX_RATE_BPS / RATES_BPS[name], missing=True)


def _cqi(table: Table) -> Float64[np.ndarray, " row"]:
    if CQI not in table.columns:
        return np.full(len(table.lines), math.nan)
    cqi = table.numbers(CQI, low=0.0, high=15.0, missing=True)
    odd = np.flatnonzero(np.isfinite(cqi) & (cqi != np.round(cqi)))
    if len(odd):
        raise BadFile(f"{table.path}, line {table.lines[odd[0]]}: cqi should be a whole number, it is {cqi[odd[0]]:g}")
    return cqi


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
