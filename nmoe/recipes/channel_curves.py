"""Curves of channel-aware gating: what trained mixtures answer at each mean SNR, and whom they choose."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nmoe.channel.base import Fading, Transmission
from nmoe.channel.knowledge import Knowledge
from nmoe.core.seeds import torch_generator
from nmoe.core.units import from_db, to_db
from nmoe.learn.channel_gating import LinkedMixture
from nmoe.moe import gate_entropy, importance

CHUNK = 1000  # images answered at once
PATTERNS = ("unequal", "equal")


class MeanLinks(NamedTuple):
    """The links that a test set is answered over.

    Attributes:
        pattern: one of ``PATTERNS``.
        mean_db: mean over the links of a sample, in dB.
        spread_db: unequal links lie at most so far from the mean, evenly spaced, in an order drawn per sample.
        fading: how they fade.
    """

    pattern: str
    mean_db: float
    spread_db: float
    fading: Fading

    def draw(self, samples: int, links: int, *, seed: int) -> "DrawnLinks":
        """Draw one block per sample and link: the same for every mixture.

        Raises:
            ValueError: when the pattern is unknown.
        """
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern must be one of {', '.join(PATTERNS)}, got {self.pattern!r}")
        generator = torch_generator(seed, "links", self.pattern, f"{self.mean_db:g}")
        offsets = torch.zeros(samples, links)
        if self.pattern == "unequal":
            steps = torch.linspace(-self.spread_db, self.spread_db, links)
            offsets = steps[torch.rand(samples, links, generator=generator).argsort(dim=1)]
        means = from_db(self.mean_db + offsets)
        return DrawnLinks(means, means * self.fading.gains((samples, links), generator=generator))


class DrawnLinks(NamedTuple):
    """SNRs (ratios) of a test set's links: over many blocks, and in the one that each image gets."""

    means: Float[Tensor, "sample link"]
    snr: Float[Tensor, "sample link"]

    def first(self, count: int) -> "DrawnLinks":
        """Return those of the first images."""
        return DrawnLinks(self.means[:count], self.snr[:count])


class LinkedAnswers(NamedTuple):
    """What a mixture answered.

    Attributes:
        accuracy: share of right labels.
        rank_shares: share of choices that fell on the link of each rank, best SNR first; they add up to 1.
        entropy: of the mean gate over all images, in nats, as a share of the largest there can be: 0 for a gate that has collapsed.
    """

    accuracy: float
    rank_shares: Float[Tensor, " expert"]
    entropy: float


@torch.inference_mode()
def answer(
    mixture: LinkedMixture,
    images: Float[Tensor, "sample channel height width"],
    labels: Int[Tensor, " sample"],
    links: DrawnLinks,
    transmission: Transmission,
    knowledge: Knowledge,
    *,
    seed: int,
) -> LinkedAnswers:
    """Let a mixture answer a test set over given links.

    Args:
        mixture: in evaluation mode.
        images: in [0, 1].
        labels: their classes.
        links: of every image and expert.
        transmission: how features cross.
        knowledge: what the gate is told of them.
        seed: of noise and errors.
    """
    device = next(mixture.parameters()).device
    generator = torch_generator(seed, "noise", device=device)
    snr = links.snr
    told_db = to_db(knowledge.tell(snr, links.means, generator=torch_generator(seed, "told")))
    experts = snr.shape[1]
    right, counts, weights = 0, torch.zeros(experts), torch.zeros(1, experts)
    ranks = snr.argsort(dim=1, descending=True).argsort(dim=1)  # [sample, expert]: 0 for the best link
    for start in range(0, len(images), CHUNK):
        rows = slice(start, start + CHUNK)
        output = mixture(
            images[rows].to(device), snr[rows].to(device), transmission=transmission, generator=generator, told_db=told_db[rows].to(device)
        )
        right += int((output.probabilities.argmax(dim=1).cpu() == labels[rows]).sum())
        counts += ranks[rows].gather(1, output.routing.experts.cpu()).flatten().bincount(minlength=experts)
        weights += importance(output.routing.dense(experts)).cpu()
    entropy = float(gate_entropy(weights / len(images))) / math.log(experts)
    return LinkedAnswers(accuracy=right / len(images), rank_shares=counts / counts.sum(), entropy=entropy)


def nested(cells: Mapping[tuple[str, str, float], float]) -> dict[str, dict[str, dict[str, float]]]:
    """Return numbers as ``{method: {transmission: {snr_db: number}}}``."""
    curves: dict[str, dict[str, dict[str, float]]] = {}
    for (method, transmission, mean_db), value in cells.items():
        curves.setdefault(method, {}).setdefault(transmission, {})[f"{mean_db:g}"] = value
    return curves


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (over n - 1; 0 for a single value)."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return float(tensor.mean()), float(tensor.std()) if len(values) > 1 else 0.0
