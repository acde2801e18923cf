"""Evaluation over radio links: the mixture and its controls where every sample of every node meets blocks of its own.

All methods of a node are scored on the same blocks, so that what they differ by is not the luck of the draw.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nmoe.channel.radio import Radio
from nmoe.core.seeds import torch_generator
from nmoe.core.units import to_db
from nmoe.learn import predict
from nmoe.moe import Experts, Gate, NodeModel, Routing, all_uniform, combine, oracle, pick, random_uniform, together
from nmoe.recipes.evaluate import Score, TestBench

ROWS = 512  # samples whose features cross at a time, over all links


class Crossing(NamedTuple):
    """What the experts answer to one node's samples over its links.

    Attributes:
        snr_db: of every link; infinity for the own expert, before which there is none.
        logits: of every expert, for what reached it.
    """

    snr_db: Float[Tensor, "test expert"]
    logits: Float[Tensor, "test expert class"]


@torch.inference_mode()
def cross_links(
    experts: Experts,
    features: Float[Tensor, "test dim"],
    snr: Float[Tensor, "test expert"],
    *,
    radio: Radio,
    node: int,
    generator: torch.Generator,
) -> Crossing:
    """Send a node's features to all experts.

    Args:
        experts: of all nodes.
        features: of the samples.
        snr: of the links (ratios); the own expert's is not looked at.
        radio: how features cross.
        node: who asks.
        generator: of the noise.
    """
    parts = []
    for rows, levels in zip(features.split(ROWS), snr.split(ROWS), strict=True):
        arrived = radio.send(rows, levels, generator=generator)  # [batch, link, dim]
        arrived[:, node] = rows
        parts.append(experts.each(arrived))
    snr_db = to_db(snr)
    snr_db[:, node] = math.inf
    return Crossing(snr_db, torch.cat(parts))


def crossings(experts: Experts, features: Float[Tensor, "test dim"], *, radio: Radio, seed: int) -> Iterator[Crossing]:
    """Yield every node's crossing, with mean SNRs drawn per sample and link as in training; the same for a seed.

    Args:
        experts: of all nodes.
        features: of the test set.
        radio: the links.
        seed: the run's.
    """
    for node in range(experts.num_experts):
        generator = torch_generator(seed, "test-links", node)
        means = radio.draw_means(len(features), experts.num_experts, generator=generator)
        snr = radio.fade(means, generator=generator)
        yield cross_links(experts, features, snr, radio=radio, node=node, generator=generator)


def link_scores(
    models: Sequence[NodeModel],
    naive: Sequence[Gate],
    bench: TestBench,
    masks: Bool[Tensor, "node expert"],
    *,
    radio: Radio,
    k: int,
    seed: int,
) -> dict[str, Score]:
    """Score the channel-aware mixture and its controls over the same links.

    Args:
        models: extractor, expert and gate of each node; the extractor is the same in all.
        naive: gate of each node that was trained under the same noise and sees no SNR.
        bench: the test set.
        masks: which experts each node can reach.
        radio: the links.
        k: experts asked per sample.
        seed: the run's.

    Returns:
        Scores by the names of results.json.
    """
    features = predict(models[0].extractor, bench.images)
    experts = together([model.expert for model in models])
    rows: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        clean = experts(features)
        for node, crossing in enumerate(crossings(experts, features, radio=radio, seed=seed)):
            gate, mask, batch = models[node].gate, masks[node], len(features)
            random = torch_generator(seed, "random-uniform", node)
            routings = {
                "own_expert": Routing(torch.full((batch, 1), node), torch.ones(batch, 1)),
                "random_uniform": random_uniform(batch, k=k, mask=mask, generator=random),
                "all_uniform": all_uniform(batch, mask=mask),
                "naive_gate": naive[node](features, k=k, mask=mask, snr_db=crossing.snr_db),
                "nmoe": gate(features, k=k, mask=mask, snr_db=crossing.snr_db),
                "oracle_gate": oracle(crossing.logits, bench.labels, mask=mask),
            }
            answers = {name: _answers(crossing.logits, routing, models[node]) for name, routing in routings.items()}
            answers["perfect_links"] = _answers(clean, gate(features, k=k, mask=mask), models[node])
            for name, answer in answers.items():
                rows.setdefault(name, []).append(answer == bench.labels)
    return {name: bench.score(torch.stack(table)) for name, table in rows.items()}


def _answers(logits: Tensor, routing: Routing, model: NodeModel) -> Tensor:
    """Return the label that a routing of all experts' logits leads to, [test]."""
    return combine(pick(logits, routing), routing.weights, mix=model.mix).argmax(dim=1)
