"""Gate links: training a gate over radio links, while the experts that answer stay frozen on other nodes.

Source: channel-aware gating (Song, Jing, Zhang, Zhang and Huang, arXiv 2504.00819): first the ordinary mixture with perfect channels, then
simulated ones, with features that carry each link's noise, SNRs that the gate sees, and a regulariser against gating collapse.

| paper | here | unit |
|---|---|---|
| gamma_i | snr | ratio; of one sample's link to expert i, in one version |
| z_i = z + n_i | radio.send | what reaches expert i |
| Q_i(z_i) | noisy_logits | |
| lambda | balance | weight of the importance's squared coefficient of variation |

Departures: the paper trains in one place; here nobody sees another node's expert. Experts are frozen in this stage, so a link's noise need
not be drawn anew in every step: the asking node draws SNRs for ``versions`` blocks of every sample and link, and each neighbour answers
every version once. A training step takes one version of each sample at random. Features travel once whatever the number of versions: the
noise of a link is added where it ends (in a receiver that is where it arises), by a generator that belongs to the link.

Which link is perfect must say nothing about the sample. A node's data are of its own expert's classes; were its own link the perfect one in
training, as it is in the mesh, the gate would learn that perfect links lead to the right expert (digits, two classes a node: accuracy 0.49
instead of 0.94). So in training the own expert stands behind a noisy link like any other, and in each version of each sample one expert,
drawn at random, has a perfect link.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from nmoe.channel.radio import Radio
from nmoe.core.units import to_db
from nmoe.learn import predict
from nmoe.moe import Expert


class Blocks(NamedTuple):
    """The links of every version of every sample.

    Attributes:
        snr: ratios.
        perfect: one link of each version of a sample, whose SNR is infinite instead.
    """

    snr: Float[Tensor, "version sample link"]
    perfect: Bool[Tensor, "version sample link"]


class KnownLogits(NamedTuple):
    """What a node knows of the experts on its own samples; version 0 is over perfect links.

    Attributes:
        logits: zero where none came.
        snr_db: of the links; infinity for a perfect one, NaN for experts out of reach; None where all links are perfect.
        mask: experts that answered.
    """

    logits: Float[Tensor, "version sample expert class"]
    snr_db: Float[Tensor, "version sample expert"] | None
    mask: Bool[Tensor, " expert"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLinks:
    """The radio links of a gate's training.

    Attributes:
        radio: how features cross a link.
        versions: blocks drawn per sample and link, at least 1.
        clean_rounds: rounds of perfect channels that come first, at least 0.
        balance: weight of the balance term in the rounds after them.
    """

    radio: Radio
    versions: int
    clean_rounds: int
    balance: float

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: when one is out of range.
        """
        if self.versions < 1 or self.clean_rounds < 0 or not 0 <= self.balance < math.inf:
            given = f"{self.versions}, {self.clean_rounds} and {self.balance}"
            raise ValueError(f"at least 1 version, 0 clean rounds and a balance of 0 are wanted, got {given}")

    def noisy(self, round: int) -> bool:
        """Say whether a round trains over noisy links."""
        return round >= self.clean_rounds

    def draw(self, samples: int, links: int, *, generator: torch.Generator) -> Blocks:
        """Draw every version's links: each a block of its own, with a mean SNR of its own.

        Args:
            samples: how many.
            links: of each sample, at least 1.
            generator: of the draws.
        """
        means = self.radio.draw_means(self.versions * samples, links, generator=generator)
        snr = self.radio.fade(means, generator=generator).reshape(self.versions, samples, links)
        perfect = torch.randint(links, (self.versions, samples), generator=generator)
        return Blocks(snr, functional.one_hot(perfect, links).bool())

    def noisy_logits(
        self, expert: Expert, features: Float[Tensor, "sample dim"], snr: Float[Tensor, "version sample"], *, generator: torch.Generator
    ) -> Float[Tensor, "version sample class"]:
        """Return what an expert answers over one link: version 0 without noise, then to every version's features.

        Args:
            expert: at the link's end.
            features: as sent.
            snr: of the link (ratios), in all versions but version 0.
            generator: of the noise.
        """
        send = self.radio.transmission.send
        arrived = (features, *(send(features, one, generator=generator) for one in snr))
        return torch.stack([predict(expert, version) for version in arrived])  # Q_i(z_i)


def known_logits(kept: Mapping[str, Tensor], *, own: int, reach: Sequence[int], num_nodes: int, blocks: Blocks | None) -> KnownLogits:
    """Put together what a node knows.

    Args:
        kept: logits by the number of the expert: [sample, class] over perfect links, [version, sample, class] over noisy ones; the own
            expert's among them. Others of another shape, or not finite, count as no answer.
        own: the node's number.
        reach: experts it can ask, itself among them.
        num_nodes: number of experts.
        blocks: links to the experts in ``reach``, in its order; None for perfect ones.
    """
    wanted = kept[str(own)].shape
    samples, classes = wanted[-2:]
    versions = 1 if blocks is None else 1 + len(blocks.snr)
    logits = torch.zeros(versions, samples, num_nodes, classes)
    mask = torch.zeros(num_nodes, dtype=torch.bool)
    for name, tensor in kept.items():
        if tensor.shape == wanted and torch.isfinite(tensor).all():
            logits[:, :, int(name)] = tensor
            mask[int(name)] = True
    if blocks is None:
        return KnownLogits(logits, None, mask)
    snr_db = torch.full((versions, samples, num_nodes), math.nan)
    snr_db[0, :, reach] = math.inf
    snr_db[1:, :, reach] = to_db(blocks.snr).masked_fill(blocks.perfect, math.inf)
    perfect = (snr_db == math.inf).unsqueeze(3)
    return KnownLogits(torch.where(perfect, logits[:1], logits), snr_db, mask)
