"""Radio: simulated links between a running node and its neighbours. Features get the noise of their link before they leave as messages.

Source: channel-aware gating (arXiv 2504.00819): the features sent to an expert carry noise by the SNR of its link, which the gate is told.

| paper | here | unit |
|---|---|---|
| gbar_i | mean SNR | dB; one per directed pair of nodes, drawn from the range, given, or as a trace says it is now |
| abs(h_i)^2 | fading | ratio, mean 1; one per flight and neighbour |
| gamma_i | what ``block`` returns | dB |

Departures: a block is a flight, so what flies together to one neighbour has one SNR; training draws one per sample. Replies carry no
noise, and the own expert is asked over no link. A trace begins again when it is over; where a report says nothing of the SNR or is older
than ``STALE_S`` the link is not measured: the gate is told so, and features cross as they are.
"""

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from jaxtyping import Float32

from nmoe.channel.estimate import BANDWIDTH_HZ, STALE_S, UNMEASURED, LinkEstimate, LinkState, Source, sample_snr_db
from nmoe.channel.radio import Radio
from nmoe.channel.trace import LinkTrace
from nmoe.core.seeds import derive_seed, torch_generator
from nmoe.core.units import from_db, to_db

MAX_SNR_DB = 200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RadioLinks:
    """What the links of a mesh are like; the same for all its nodes.

    Attributes:
        radio: how links fade, how features cross them, and the range of their mean SNRs.
        seed: of the means, and with the node's name of fading and noise.
        mean_snr_db: means that are given instead of drawn, in dB by neighbour.
        traces: links that were measured, by name; a neighbour takes the one of its name, else any. Empty for drawn means.
        bandwidth_hz: of a trace's links, where it reports rates alone.
    """

    radio: Radio
    seed: int = 0
    mean_snr_db: Mapping[str, float] = field(default_factory=dict)
    traces: Mapping[str, LinkTrace] = field(default_factory=dict)
    bandwidth_hz: float = BANDWIDTH_HZ

    def __post_init__(self) -> None:
        """Check seed, means and bandwidth.

        Raises:
            ValueError: when one is out of range.
        """
        if self.seed < 0:
            raise ValueError(f"the channel's seed must be at least 0, got {self.seed}")
        for peer, mean_db in self.mean_snr_db.items():
            if not -MAX_SNR_DB <= mean_db <= MAX_SNR_DB:
                raise ValueError(f"a mean SNR within +-{MAX_SNR_DB:g} dB wanted for {peer}, got {mean_db} dB")
        if not 0 < self.bandwidth_hz < math.inf:
            raise ValueError(f"a bandwidth above 0 Hz wanted, got {self.bandwidth_hz} Hz")


@final
class Air:
    """The links of one node, as it goes on; safe to use from any thread.

    Args:
        links: what they are like.
        node: whose they are.
        started_s: when traces begin.
    """

    def __init__(self, links: RadioLinks, *, node: str, started_s: float) -> None:
        self._links = links
        self._node = node
        self._started_s = started_s
        self._lock = threading.Lock()
        self._generator = torch_generator(links.seed, "air", node)
        self._means_db: dict[str, float] = dict(links.mean_snr_db)
        self._estimates: dict[str, LinkEstimate] = {}

    def block(self, peers: Iterable[str], now_s: float) -> dict[str, float]:
        """Draw one block of every neighbour's link.

        Returns:
            SNRs in dB; NaN for a link that is not measured.
        """
        means = {peer: self._mean_db(peer, now_s) for peer in peers}
        with self._lock:
            gains_db = to_db(self._links.radio.fading.gains((len(means),), generator=self._generator)).tolist()
            snrs = {peer: mean_db + gain_db for (peer, mean_db), gain_db in zip(means.items(), gains_db, strict=True)}
            for peer, snr_db in snrs.items():
                if not math.isnan(snr_db):
                    self._estimate(peer).observe(now_s, snr_db=snr_db)
        return snrs

    def send(self, features: Float32[np.ndarray, "rows dim"], snr_db: float) -> Float32[np.ndarray, "rows dim"]:
        """Return what arrives of features over a link.

        Args:
            features: finite rows.
            snr_db: of the block; NaN for a link that is not measured.
        """
        if math.isnan(snr_db):
            return features
        snr = torch.full((len(features),), from_db(snr_db))
        with self._lock, torch.no_grad():
            arrived = self._links.radio.transmission.send(torch.from_numpy(features), snr, generator=self._generator)
        noisy: np.ndarray = arrived.numpy()
        return noisy

    def state(self, peer: str, now_s: float) -> LinkState:
        """Return what this node knows of a neighbour's link, smoothed over its blocks."""
        with self._lock:
            estimate = self._estimates.get(peer)
            return UNMEASURED if estimate is None else estimate.state(now_s)

    def _estimate(self, peer: str) -> LinkEstimate:
        source = Source.TRACE if self._links.traces else Source.SIMULATED
        return self._estimates.setdefault(peer, LinkEstimate(source))

    def _mean_db(self, peer: str, now_s: float) -> float:
        links = self._links
        if links.traces:
            return self._traced_db(peer, now_s)
        mean_db = self._means_db.get(peer)
        if mean_db is None:
            generator = torch_generator(links.seed, "link", self._node, peer)
            mean_db = self._means_db[peer] = float(to_db(links.radio.draw_means(1, 1, generator=generator)))
        return mean_db

    def _traced_db(self, peer: str, now_s: float) -> float:
        traces = self._links.traces
        name = peer if peer in traces else sorted(traces)[derive_seed(self._links.seed, "trace", self._node, peer) % len(traces)]
        trace = traces[name]
        elapsed_s = now_s - self._started_s
        sample = trace.at(float(trace.times_s[0]) + (elapsed_s % trace.duration_s if trace.duration_s > 0 else 0.0))
        snr_db = sample_snr_db(sample, bandwidth_hz=self._links.bandwidth_hz)
        return math.nan if snr_db is None or sample.age_s > STALE_S else snr_db
