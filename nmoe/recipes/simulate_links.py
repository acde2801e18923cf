"""Simulated meshes: what accuracy a mesh over noisy links should show, by the same mixture over the same links in one process.

Over noisy links no two answers are alike, so a mesh cannot be compared answer by answer. Its accuracy is one draw of a law: the mean SNR of
every pair of nodes is known, fading and noise are drawn for every request. Many draws give the mean and spread of that law; a mesh that
does something else, such as noise of another power, a gate told another link's SNR or none, falls outside.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nmoe.channel.fading import Awgn
from nmoe.channel.radio import Radio
from nmoe.core.seeds import torch_generator
from nmoe.core.units import from_db
from nmoe.data import ImageDataset, to_unit
from nmoe.learn import predict
from nmoe.moe import NodeModel, combine, pick, together
from nmoe.node.radio import Air, RadioLinks
from nmoe.recipes.evaluate_links import cross_links

DRAWS = 50


def link_means(names: Sequence[str], *, radio: Radio, seed: int) -> Float[Tensor, "node expert"]:
    """Return the mean SNRs (ratios) of the links between the nodes of a mesh whose channel has a seed; 1 where there is no link.

    Args:
        names: of the nodes.
        radio: the links.
        seed: the channel's.
    """
    unfaded = RadioLinks(radio=dataclasses.replace(radio, fading=Awgn()), seed=seed)  # without fading a block is the mean
    means_db = torch.zeros(len(names), len(names))
    for row, node in enumerate(names):
        others = [name for name in names if name != node]
        for peer, snr_db in Air(unfaded, node=node, started_s=0.0).block(others, 0.0).items():
            means_db[row, names.index(peer)] = snr_db
    return from_db(means_db)


class Expected(NamedTuple):
    """Mean and standard deviation of a mesh's accuracy on the test set."""

    accuracy: float
    error: float


@torch.inference_mode()
def expected_accuracy(
    models: Sequence[NodeModel],
    masks: Bool[Tensor, "node expert"],
    test: ImageDataset,
    *,
    radio: Radio,
    k: int,
    means: Float[Tensor, "node expert"],
    seed: int,
    draws: int = DRAWS,
) -> Expected:
    """Let the nodes answer the test set many times, image i by node i modulo their number.

    Args:
        models: extractor, expert and gate of each node; the extractor is the same in all.
        masks: which experts each node can reach.
        test: the images.
        radio: the links.
        k: experts asked per image.
        means: SNRs (ratios) that each node's links have on average; the own expert's is not looked at.
        seed: of the draws.
        draws: how many times, at least 2.
    """
    features = predict(models[0].extractor, to_unit(test.images))
    labels = torch.from_numpy(test.labels)
    experts = together([model.expert for model in models])
    generator = torch_generator(seed, "simulated-meshes")
    accuracies = []
    for _ in range(draws):
        right = 0
        for node, model in enumerate(models):
            mine = features[node :: len(models)]
            snr = radio.fade(means[node].expand(len(mine), -1), generator=generator)
            crossing = cross_links(experts, mine, snr, radio=radio, node=node, generator=generator)
            routing = model.gate(mine, k=k, mask=masks[node], snr_db=crossing.snr_db)
            answers = combine(pick(crossing.logits, routing), routing.weights, mix=model.mix).argmax(dim=1)
            right += int((answers == labels[node :: len(models)]).sum())
        accuracies.append(right / len(test))
    found = torch.tensor(accuracies, dtype=torch.float64)
    return Expected(float(found.mean()), float(found.std()))
