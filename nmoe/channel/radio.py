"""Radio: the links from one node to many experts, as training and simulation draw them, and what arrives over each.

Source: channel-aware gating (arXiv 2504.00819): various SNRs are drawn for each expert's link, and the features sent to that expert carry
noise accordingly. gamma_i = |h_i|^2 * gbar_i.

| paper | here | unit |
|---|---|---|
| gbar_i | mean_snr_db | dB; drawn uniformly per sample and link from [low_db, high_db] |
| abs(h_i)^2 | fading | ratio, mean 1 |
| gamma_i | snr | ratio |

Departures: range and law of the SNRs are not known; U[-10, 20] dB per sample and link is ours (spec).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nmoe.channel.base import Fading, Transmission
from nmoe.core.units import from_db


@dataclass(frozen=True, slots=True, kw_only=True)
class Radio:
    """Links of independent quality.

    Attributes:
        fading: how they fade.
        transmission: how features cross them.
        low_db, high_db: range of a link's mean SNR, in dB.
    """

    fading: Fading
    transmission: Transmission
    low_db: float
    high_db: float

    def __post_init__(self) -> None:
        """Check the range.

        Raises:
            ValueError: when it is empty or not finite.
        """
        if not -200 <= self.low_db <= self.high_db <= 200:
            raise ValueError(f"a range of SNRs within -200:200 dB wanted, lowest first, got {self.low_db:g}:{self.high_db:g}")

    def draw_means(self, batch: int, links: int, *, generator: torch.Generator) -> Float[Tensor, "batch link"]:
        """Draw mean SNRs (ratios), uniform in dB, independent over samples and links."""
        share = torch.rand((batch, links), generator=generator, device=generator.device)
        return from_db(self.low_db + (self.high_db - self.low_db) * share)

    def fade(self, means: Float[Tensor, "batch link"], *, generator: torch.Generator) -> Float[Tensor, "batch link"]:
        """Return the SNRs of one block each."""
        return means * self.fading.gains(means.shape, generator=generator)  # gamma_i = |h_i|^2 gbar_i

    def send(
        self, features: Float[Tensor, "batch dim"], snr: Float[Tensor, "batch link"], *, generator: torch.Generator
    ) -> Float[Tensor, "batch link dim"]:
        """Return what arrives of every sample's features over every link.

        Raises:
            ValueError: when features and SNRs are not of one batch, or an SNR is negative or NaN.
        """
        if features.ndim != 2 or snr.ndim != 2 or len(features) != len(snr):
            raise ValueError(
                f"features [batch, dim] and SNRs [batch, link] of one batch wanted, got {list(features.shape)} and {list(snr.shape)}"
            )
        links = snr.shape[1]
        rows = features.unsqueeze(1).expand(-1, links, -1).flatten(0, 1)  # [batch * link, dim]
        arrived = self.transmission.send(rows, snr.reshape(-1), generator=generator)
        return arrived.reshape(len(snr), links, features.shape[1])
