"""Plan: a settlement as a file: who trains on how many samples, for what pay; what ``nmoe train --recruitment`` reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nmoe.core.errors import BadFile
from nmoe.core.files import read_json
from nmoe.market.incentive.base import Settlement

KIND = "nmoe-recruitment"
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RecruitmentPlan:
    """What a training run needs of a plan.

    Attributes:
        nodes: ids of all owners, those who do not train included.
        samples: that each trains on, whole and at least 0.
    """

    nodes: tuple[str, ...]
    samples: tuple[int, ...]


def plan_json(settlement: Settlement) -> dict[str, Any]:
    """Return a settlement as JSON can hold it; whole samples are rounded down, and a price that nobody asks is null."""
    recruitment = settlement.recruitment
    owners, workers = recruitment.owners, recruitment.workers
    payments, bought, utilities = settlement.payments, settlement.bought, settlement.owner_utilities
    worker_utilities = settlement.worker_utilities
    return {
        "kind": KIND,
        "version": VERSION,
        "method": settlement.method,
        "published": bool(settlement.total > 0),
        "why_not": settlement.why_empty or None,
        "lambda": recruitment.publisher.factor,
        "reward": settlement.reward,
        "effective_samples": settlement.total,
        "publisher_utility": settlement.publisher_utility,
        "nodes": [
            {
                "id": name,
                "samples": int(np.floor(settlement.samples[row] * (1 + 1e-12))),
                "exact_samples": float(settlement.samples[row]),
                "bought": float(bought[row]),
                "price": float(settlement.prices[row]) if np.isfinite(settlement.prices[row]) else None,
                "share": float(settlement.shares[row]),
                "payment": float(payments[row]),
                "spent": float(settlement.spent[row]),
                "utility": float(utilities[row]),
            }
            for row, name in enumerate(owners.ids)
        ],
        "workers": [
            {
                "id": name,
                "owner": owners.ids[workers.owner[row]] if workers.owner[row] >= 0 else None,
                "samples": float(settlement.efforts[row]),
                "wage": float(settlement.wages[row]),
                "utility": float(worker_utilities[row]),
            }
            for row, name in enumerate(workers.ids)
        ],
    }


def read_plan(path: Path) -> RecruitmentPlan:
    """Read what a training run needs of a plan.

    Raises:
        BadFile: when the file is missing, not a plan, or one of another version.
    """
    plan = read_json(path)
    if not isinstance(plan, dict) or plan.get("kind") != KIND:
        raise BadFile(f"{path} is not a plan of nmoe market recruit")
    if plan.get("version") != VERSION:
        raise BadFile(f"{path} is a plan of version {plan.get('version')!r}, wanted {VERSION}")
    nodes = plan.get("nodes")
    if not isinstance(nodes, list) or not nodes:
        raise BadFile(f"{path} has no list of nodes")
    for row, node in enumerate(nodes, 1):
        if not isinstance(node, dict) or not isinstance(node.get("id"), str):
            raise BadFile(f"{path}: node {row} has no id")
        samples = node.get("samples")
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 0:
            raise BadFile(f"{path}: samples of {node['id']} must be a whole number of at least 0, got {samples!r}")
    names = tuple(node["id"] for node in nodes)
    if len(set(names)) != len(names):
        raise BadFile(f"{path} has a node twice")
    return RecruitmentPlan(nodes=names, samples=tuple(node["samples"] for node in nodes))
