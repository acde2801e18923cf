"""Confidence-based exits: inputs leave at the first exit that is sure of its answer, so what a user needs is a mean over inputs.

Source: S. Li et al., arXiv 2503.04521 (AERIA), in the form of this project's specification, section 2.2: the search of
``nmoe.market.auction.needs`` with reach_l W_l, reach_p O_p and the accuracy sum_e pi_e acc_e.

| specification | here | unit |
|---|---|---|
| pi_e | leaving[e] | share of inputs |
| reach_l | reach | share of inputs that layer l runs for |

Departures: the specification leaves the heads of early exits out; every input that comes to one runs it, so each counts as part of the
layer before it. What is sent after p layers is what goes on beyond the exits there. Latency and accuracy hold in the mean over inputs.
"""

import math
from collections.abc import Sequence

from nmoe.market.auction.workloads import Exit, Workload

TOLERANCE = 1e-9


def confidence_exits(workload: Workload, leaving: Sequence[float]) -> Workload:
    """Return what a mean input does in a network whose exits are used where they are sure.

    Args:
        workload: its exits after different layers, the last one after the last layer.
        leaving: share of inputs that leave at each exit; they sum to 1.

    Returns:
        A workload with one exit, whose accuracy is the mean over inputs.

    Raises:
        ValueError: when there is not one share per exit, one is not in [0, 1], they do not sum to 1, or exits are elsewhere.
    """
    owner = f"workload {workload.name!r}"
    places = [one.after_layer for one in workload.exits]
    if len(set(places)) < len(places) or places[-1] != len(workload.layer_flops):
        raise ValueError(f"{owner}: exits after different layers and one after the last wanted, got {places}")
    if len(leaving) != len(places) or not all(0 <= share <= 1 for share in leaving) or abs(math.fsum(leaving) - 1) > TOLERANCE:
        raise ValueError(f"{owner}: one share in [0, 1] per exit wanted, with sum 1, got {list(leaving)}")
    exit_at = dict(zip(places, zip(workload.exits, leaving, strict=True), strict=True))
    reach, layer_flops, output_bytes = 1.0, [], [workload.output_bytes[0]]
    for layer, (work, sent) in enumerate(zip(workload.layer_flops[:-1], workload.output_bytes[1:-1], strict=True), 1):
        early = exit_at.get(layer)
        layer_flops.append(reach * (work + (early[0].head_flops if early else 0.0)))
        reach = max(0.0, reach - (early[1] if early else 0.0))
        output_bytes.append(reach * sent)
    last = workload.exits[-1]
    return Workload(
        name=workload.name,
        layer_flops=(*layer_flops, reach * workload.layer_flops[-1]),
        output_bytes=(*output_bytes, reach * workload.output_bytes[-1]),
        exits=(
            Exit(
                after_layer=last.after_layer,
                head_flops=reach * last.head_flops,
                accuracy=min(1.0, math.fsum(share * one.accuracy for one, share in zip(workload.exits, leaving, strict=True))),
            ),
        ),
    )
