"""Link quality: what a gate that looks at links is told of them, and what is shown of them.

A radio link adds noise to features; a digital one delivers exactly what was sent, but what can be sent in time is rounded. The bridge:
b bits per number leave an SNR of about 6.02 b dB, and a gate trained with noise weighs a link that bears 4 bits as it weighs a noisy one.

    told_j = the SNR that rounding leaves in the format that the link to j bears within the deadline (``plan.choose_format``), at most
             40 dB; -20 dB where not even the leanest arrives in time; what the system's wireless report says where no message has
             measured the link yet; NaN, taken as average, where there is none either
    over a simulated radio the two noises add:  1 / told_j = 1 / radio_j + 1 / rounding_j

The own expert's is infinite. What rounding costs is measured on the features themselves, the first ``MEASURED_ROWS`` of them; before, the
textbook's 4 L^2 of numbers spread evenly is believed. float32 and float16 lose nothing that would count here.

Nothing of this is computed where the gate does not look at links and no radio is simulated.
"""

import math
import threading
import time
from typing import final

import numpy as np
from jaxtyping import Float32

from nmoe.channel.estimate import LinkState, measured_state
from nmoe.core.units import HIGHEST_GATE_SNR_DB, LOWEST_GATE_SNR_DB, from_db, to_db
from nmoe.node.links import Link
from nmoe.node.messages import TensorFormat
from nmoe.node.messages.formats import LARGEST_CODE, dequantise, quantise
from nmoe.node.plan import choose_format
from nmoe.node.protocol import Origin
from nmoe.node.radio import Air
from nmoe.node.wireless import Wireless

MEASURED_ROWS = 256


@final
class Rounding:
    """The SNR that each format leaves of this extractor's features; not for several threads at once."""

    def __init__(self) -> None:
        self._rows = 0
        self._signal = 0.0
        self._errors = dict.fromkeys(LARGEST_CODE, 0.0)
        self._snr_db = {form: to_db(4.0 * largest**2) for form, largest in LARGEST_CODE.items()}

    def measure(self, features: Float32[np.ndarray, "rows dim"]) -> None:
        """Learn from features, as long as too few were seen; finite rows."""
        if self._rows >= MEASURED_ROWS:
            return
        rows = features[: MEASURED_ROWS - self._rows]
        self._rows += len(rows)
        self._signal += float(np.square(rows, dtype=np.float64).sum())
        for form in LARGEST_CODE:
            error = rows - dequantise(*quantise(rows, form, strict=False)).astype(np.float64)
            self._errors[form] += float(np.square(error).sum())
            if self._signal > 0:
                self._snr_db[form] = to_db(self._signal / self._errors[form]) if self._errors[form] > 0 else math.inf

    def snr_db(self, form: TensorFormat) -> float:
        """Return what a format leaves, in dB; infinity where it loses nothing that counts."""
        return self._snr_db.get(form, math.inf)


@final
class LinkQuality:
    """What one node knows of its links; safe to use from any thread.

    Args:
        origin: its links and decisions.
        lock: the origin's.
        air: simulated radio links; None without.
        wireless: the operating system's report; None where it is not asked.
        bandwidth_hz: that links are taken to have where a rate is shown as an SNR.
    """

    def __init__(self, origin: Origin, lock: threading.Lock, *, air: Air | None, wireless: Wireless | None, bandwidth_hz: float) -> None:
        self.air = air
        self._origin = origin
        self._lock = lock
        self._wireless = wireless
        self._bandwidth_hz = bandwidth_hz
        self._rounding = Rounding()

    def block(self) -> dict[str, float] | None:
        """Draw the block that a flight's messages cross, in dB by neighbour; None without a simulated radio."""
        if self.air is None:
            return None
        with self._lock:
            peers = [link.peer for link in self._origin.links.values() if link.usable]
        return self.air.block(peers, time.monotonic())

    def told(
        self, features: Float32[np.ndarray, "rows dim"], block: dict[str, float] | None, *, k: int | None, deadline_s: float
    ) -> list[float]:
        """Return the SNR in dB of the way to every expert, for ``Newcomers.scores``.

        Args:
            features: that are about to be scored, finite.
            block: what ``block`` drew for them.
            k: experts per sample; None for the node's own number.
            deadline_s: when answers must be there, on the monotonic clock.
        """
        now_s = time.monotonic()
        with self._lock:
            self._rounding.measure(features)
            origin = self._origin
            share = max(1, len(features) * (origin.rules.k if k is None else k) // max(1, len(origin.servers)))
            return [
                math.inf if expert == origin.rules.own else self._best_db(expert, block, share, deadline_s - now_s, now_s)
                for expert in range(len(origin.experts))
            ]

    def _best_db(self, expert: int, block: dict[str, float] | None, rows: int, left_s: float, now_s: float) -> float:
        links = [link for peer in self._origin.servers.get(expert, ()) if (link := self._origin.links[peer]).usable]
        found = [self._link_db(link, block, rows, left_s, now_s) for link in links]
        return max((snr_db for snr_db in found if not math.isnan(snr_db)), default=math.nan)

    def _link_db(self, link: Link, block: dict[str, float] | None, rows: int, left_s: float, now_s: float) -> float:
        rules = self._origin.rules
        form = choose_format(link, rules.formats, rows=rows, in_dim=rules.in_dim, out_dim=rules.out_dim, left_s=left_s, now_s=now_s)
        predicted_s = link.predict_s(rows, self._origin.reach.size(rows, form), now_s)
        if predicted_s is not None and predicted_s > left_s:
            return LOWEST_GATE_SNR_DB
        rounding_db = self._rounding.snr_db(form)
        if block is None:
            return self._reported_db(now_s) if predicted_s is None else min(HIGHEST_GATE_SNR_DB, rounding_db)
        radio_db = block.get(link.peer, math.nan)
        if math.isinf(rounding_db) or math.isnan(radio_db):
            return radio_db
        return -to_db(from_db(-radio_db) + from_db(-rounding_db))

    def _reported_db(self, now_s: float) -> float:
        snr_db = None if self._wireless is None else self._wireless.state(now_s).snr_db
        return math.nan if snr_db is None else snr_db

    def state(self, link: Link, now_s: float) -> LinkState:
        """Return what is known of a link: from the radio where one is simulated, else the system's report, else the goodput."""
        if self.air is not None:
            return self.air.state(link.peer, now_s)
        if self._wireless is not None:
            return self._wireless.state(now_s)
        rate_bps = None if link.goodput_bytes_s is None else 8 * link.goodput_bytes_s
        return measured_state(rate_bps, now_s - link.goodput_at_s, bandwidth_hz=self._bandwidth_hz)
