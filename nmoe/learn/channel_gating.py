"""Channel-aware training in one place: extractor, experts and gate learn together, first over perfect channels, then over drawn links.

Source: channel-aware gating (Song, Jing, Zhang, Zhang and Huang, arXiv 2504.00819). Stage 1 is an ordinary mixture; in stage 2 SNRs are
drawn for every sample and link, features carry each link's noise to the experts, the gate sees features and SNRs, and a regulariser on the
batch average guards against collapse. Formulas are a reconstruction (ours; the paper's are not known to us).

| paper | here | meaning |
|---|---|---|
| z = F(x) | unit_power(extractor(images)) | scaled to unit average power per sample |
| gamma_i | snr | ratio; of the link to expert i |
| z_i = z + n_i | radio.transmission.send | what reaches expert i |
| g | routing | Softmax(TopK(logits, k)) |
| y' | probabilities | sum_i g_i Q_i(z_i) |
| lambda | balance | weight of the importance's squared coefficient of variation |

    loss = CE(y', y) + lambda * CV^2(sum over the batch of g)

Departures: k, lambda, optimiser and length of training are ours. Everything is trained in stage 2, for every gate alike: noise is
reparametrised, so gradients reach the extractor. Features go to the chosen experts only: an expert that is not asked costs nothing. The SNR
branch learns at a rate of its own, ten times and more the others', and for some epochs alone: experts must first learn to stand in for one
another, or each remains the only one that knows its samples, and no link is bad enough to leave it (LOG.md). A mixture
without a gate asks k experts at random, with equal weights: a control.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from nmoe.channel.base import Transmission
from nmoe.channel.radio import Radio
from nmoe.core.units import to_db
from nmoe.learn.local import batches
from nmoe.moe import ChannelAwareGate, Expert, Extractor, Gate, Mix, MixtureOutput, Routing, combine, importance_cv2, route
from nmoe.moe.gate import check_snr

BRANCH = "gate.branch."  # names of the SNR branch's parameters begin so


def unit_power(features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
    """Scale each sample's features to an average power of 1; zeros stay zeros."""
    power = features.square().mean(dim=1, keepdim=True)  # P = ||z||^2 / d
    return features * (power + torch.finfo(features.dtype).tiny).rsqrt()


class LinkedMixture(nn.Module):
    """A mixture whose experts are reached over links.

    Args:
        extractor: shared extractor.
        experts: in the order of the gate's scores.
        gate: of the node that receives the images; None for k experts at random.
        k: experts asked per sample.
        mix: what is averaged.

    Raises:
        ValueError: when k or the gate does not fit the number of experts.
    """

    def __init__(self, *, extractor: Extractor, experts: Sequence[Expert], gate: Gate | None, k: int, mix: Mix) -> None:
        super().__init__()
        if not 1 <= k <= len(experts):
            raise ValueError(f"k must be between 1 and the {len(experts)} experts, got {k}")
        if gate is not None and gate.num_experts != len(experts):
            raise ValueError(f"the gate scores {gate.num_experts} experts, there are {len(experts)}")
        self.extractor = extractor
        self.experts = nn.ModuleList(experts)
        self.gate = gate
        self.k = k
        self.mix = mix

    def forward(
        self,
        images: Float[Tensor, "batch channel height width"],
        snr: Float[Tensor, "batch expert"] | None,
        *,
        transmission: Transmission | None,
        generator: torch.Generator,
        told_db: Float[Tensor, "batch expert"] | None = None,
    ) -> MixtureOutput:
        """Answer images in [0, 1].

        Args:
            images: the batch.
            snr: of every link (ratios); None for perfect channels, of which the gate is told nothing.
            transmission: how features cross a link; None for perfect channels.
            generator: of noise and random choices.
            told_db: what the gate is told of the links, in dB, where that is not the truth.

        Raises:
            ValueError: when SNRs are not one per sample and expert, or come without a transmission.
        """
        if snr is not None:
            check_snr(snr, batch=len(images), num_experts=len(self.experts))
            if transmission is None:
                raise ValueError("links with SNRs want a transmission, got none")
        features = unit_power(self.extractor(images))
        if told_db is None and snr is not None:
            told_db = to_db(snr)
        routing = self._route(features, told_db, generator)
        parts = []
        for index, expert in enumerate(self.experts):
            rows, slots = (routing.experts == index).nonzero(as_tuple=True)
            arrived = features[rows]
            if snr is not None and transmission is not None:
                arrived = transmission.send(arrived, snr[rows, index], generator=generator)  # z_i = z + n_i
            parts.append((rows, slots, expert(arrived)))
        rows, slots, outputs = (torch.cat(column) for column in zip(*parts, strict=True))
        logits = outputs.new_zeros(*routing.experts.shape, outputs.shape[1]).index_put((rows, slots), outputs)  # [batch, k, class]
        return MixtureOutput(probabilities=combine(logits, routing.weights, mix=self.mix), routing=routing)

    def _route(
        self, features: Float[Tensor, "batch dim"], told_db: Float[Tensor, "batch expert"] | None, generator: torch.Generator
    ) -> Routing:
        mask = torch.ones(len(self.experts), dtype=torch.bool, device=features.device)
        if self.gate is not None:
            return self.gate(features, k=self.k, mask=mask, snr_db=told_db)  # type: ignore[no-any-return]  # nn.Module calls are untyped
        draws = torch.rand(len(features), len(self.experts), generator=generator, device=features.device)
        chosen = route(draws, k=self.k, mask=mask)
        return Routing(experts=chosen.experts, weights=torch.full_like(chosen.weights, 1 / self.k))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelTraining:
    """How a mixture is trained in either stage.

    Attributes:
        epochs: passes over the data.
        batch_size: samples per step.
        lr: Adam's learning rate, falling to 0 by a cosine over all steps.
        branch_lr: of the gate's SNR branch.
        balance: weight of the balance term, at least 0.
        links_first: epochs at the beginning in which a gate that sees links learns from them alone, its feature branch left as it is.
    """

    epochs: int
    batch_size: int = 256
    lr: float = 2e-3
    branch_lr: float = 3e-2
    balance: float = 0.01
    links_first: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: when one is out of range.
        """
        numbers = (self.epochs, self.batch_size, self.lr, self.branch_lr, self.balance)
        if (
            self.epochs < 1
            or self.batch_size < 1
            or not all(0 < rate < math.inf for rate in (self.lr, self.branch_lr))
            or not 0 <= self.balance < math.inf
        ):
            raise ValueError(f"epochs, batch size and learning rates above 0, and a balance of at least 0 wanted, got {numbers}")
        if not 0 <= self.links_first <= self.epochs:
            raise ValueError(f"links_first must be between 0 and the {self.epochs} epochs, got {self.links_first}")

    def run(
        self,
        mixture: LinkedMixture,
        images: Float[Tensor, "sample channel height width"],
        labels: Int[Tensor, " sample"],
        radio: Radio | None,
        *,
        order: torch.Generator,
        links: torch.Generator,
        noise: torch.Generator,
        after_epoch: Callable[[int], None] | None = None,
    ) -> float:
        """Train a mixture in place.

        Args:
            mixture: what is trained, all of it.
            images: in [0, 1].
            labels: their classes.
            radio: the links of stage 2; None for stage 1, perfect channels.
            order: of the samples; on the CPU.
            links: of SNRs; on the mixture's device. Mixtures of as many experts meet the same links, whatever their gates.
            noise: of noise and random choices; on the mixture's device.
            after_epoch: told how many epochs have ended.

        Returns:
            The mean loss of the last epoch.
        """
        optimiser = torch.optim.Adam(self._groups(mixture), lr=self.lr)
        steps = self.epochs * math.ceil(len(images) / self.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        mixture.train()
        losses: list[Tensor] = []
        for epoch in range(self.epochs):
            losses.clear()
            self._hold_features(mixture.gate, hold=epoch < self.links_first)
            for batch in batches(len(images), self.batch_size, order):
                loss = self.loss(mixture, images[batch], labels[batch], radio, links=links, noise=noise)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
                losses.append(loss.detach())
            if after_epoch:
                after_epoch(epoch + 1)
        self._hold_features(mixture.gate, hold=False)
        mixture.eval()
        return float(torch.stack(losses).mean())

    def loss(
        self,
        mixture: LinkedMixture,
        images: Float[Tensor, "batch channel height width"],
        labels: Int[Tensor, " batch"],
        radio: Radio | None,
        *,
        links: torch.Generator,
        noise: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Return CE + lambda * CV^2 of one batch; arguments as in ``run``."""
        snr, transmission = None, None
        if radio is not None:
            snr = radio.fade(radio.draw_means(len(images), len(mixture.experts), generator=links), generator=links)
            transmission = radio.transmission
        output = mixture(images, snr, transmission=transmission, generator=noise)
        found: Tensor = output.probabilities
        loss = functional.nll_loss(found.clamp_min(torch.finfo(found.dtype).tiny).log(), labels)
        if self.balance and mixture.gate is not None:
            loss = loss + self.balance * importance_cv2(output.routing.dense(len(mixture.experts)))
        return loss

    def _hold_features(self, gate: Gate | None, *, hold: bool) -> None:
        """Leave the feature branch of a gate that sees links as it is, or train it."""
        if isinstance(gate, ChannelAwareGate):
            for name, parameter in gate.named_parameters():
                parameter.requires_grad_(not hold or name.startswith(BRANCH.removeprefix("gate.")))

    def _groups(self, mixture: LinkedMixture) -> Iterator[dict[str, object]]:
        """Yield the parameters of the SNR branch, if there is one, and all others."""
        named = list(mixture.named_parameters())
        yield {"params": [parameter for name, parameter in named if not name.startswith(BRANCH)], "lr": self.lr}
        branch = [parameter for name, parameter in named if name.startswith(BRANCH)]
        if branch:
            yield {"params": branch, "lr": self.branch_lr}
