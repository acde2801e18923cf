"""Wireless: what the operating system says of this machine's wireless interface, read again when it is asked for and a second old."""

import threading
from pathlib import Path
from typing import final

from nmoe.channel.estimate import LinkEstimate, LinkState, Source, WirelessReport, parse_wireless
from nmoe.core.errors import BadFile

REPORT = Path("/proc/net/wireless")  # of Linux; other systems have none that could be read so
EVERY_S = 1.0


@final
class Wireless:
    """The state of every link that leaves by the wireless interface; the strongest one, where there are several.

    Safe to use from any thread.

    Args:
        path: the report.
        bandwidth_hz: of the interface's channel.

    Raises:
        BadFile: when there is no report, or no wireless interface in it.
    """

    def __init__(self, path: Path = REPORT, *, bandwidth_hz: float) -> None:
        self._path = path
        self._bandwidth_hz = bandwidth_hz
        self._lock = threading.Lock()
        self._estimate = LinkEstimate(Source.WIRELESS)
        self._read_s: float | None = None
        _strongest(path)

    def state(self, now_s: float) -> LinkState:
        """Return the state, smoothed over what was read; unmeasured once the report has been gone for a while."""
        with self._lock:
            if self._read_s is None or now_s - self._read_s >= EVERY_S:
                self._read_s = now_s
                self._observe(now_s)
            return self._estimate.state(now_s)

    def _observe(self, now_s: float) -> None:
        try:
            report = _strongest(self._path)
        except BadFile:  # an interface may go down; then the estimate grows old, which says so
            return
        self._estimate.observe(now_s, snr_db=report.snr_db(bandwidth_hz=self._bandwidth_hz))


def _strongest(path: Path) -> WirelessReport:
    try:
        reports = parse_wireless(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise BadFile(f"this system has no wireless report: cannot read {path}: {error.strerror}") from error
    if not reports:
        raise BadFile(f"no wireless interface is connected: {path} lists none that is")
    return max(reports.values(), key=lambda report: report.level_dbm)
