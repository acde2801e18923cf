"""Recruited: a plan of ``nmoe market recruit`` as a training run reads it.

Nodes that the plan recruits train on at most so many of their own samples, drawn at random. A recruited node that has fewer trains on all
of them. Nodes that it does not recruit take part in no stage, have no expert, and get no bundle: the mixture is of those who are paid.
Averages over nodes weigh by samples where they did before, so they follow the plan.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from nmoe.core.seeds import numpy_generator
from nmoe.federate import node_name
from nmoe.market.incentive import read_plan


def recruited_samples(path: Path, nodes: int) -> tuple[int, ...]:
    """Read how many samples each node of a run may train on.

    Args:
        path: plan.json.
        nodes: number of the run's nodes.

    Returns:
        One number per node, in order of their numbers.

    Raises:
        BadFile: when the file is no plan.
        ValueError: when the plan is for other nodes, or recruits nobody.
    """
    plan = read_plan(path)
    wanted = [node_name(number) for number in range(nodes)]
    if len(plan.nodes) != nodes:
        raise ValueError(f"{path} is a plan for {len(plan.nodes)} nodes, this run has {nodes}")
    strange = sorted(set(plan.nodes) - set(wanted))
    if strange:
        raise ValueError(f"{path} is a plan for other nodes: {strange[0]!r} is none of {wanted[0]} to {wanted[-1]}")
    samples = dict(zip(plan.nodes, plan.samples, strict=True))
    if not any(plan.samples):
        raise ValueError(f"{path} recruits nobody: no node has a whole sample to train on")
    return tuple(samples[name] for name in wanted)


def drawn_samples(own: Int64[np.ndarray, " sample"], most: int, *, seed: int, node: int) -> Int64[np.ndarray, " kept"]:
    """Return at most so many of a node's samples, drawn without replacement, in their order."""
    if most >= len(own):
        return own
    return np.sort(numpy_generator(seed, "recruitment", node).choice(own, most, replace=False))


def recruitment_rows(
    planned: Sequence[int], names: Sequence[str], assignment: Sequence[Int64[np.ndarray, " sample"]]
) -> list[dict[str, Any]]:
    """Return what a plan came to, a row per node: how many samples it planned, and how many the node trained on.

    Args:
        planned: samples of every node.
        names: of those who took part.
        assignment: their samples.
    """
    trained = {name: len(samples) for name, samples in zip(names, assignment, strict=True)}
    return [
        {"node": node_name(number), "planned": samples, "trained": trained.get(node_name(number), 0)}
        for number, samples in enumerate(planned)
    ]
