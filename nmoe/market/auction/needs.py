"""Needs: the least edge compute that gives a user the accuracy it wants in the time it has, and with which partition and exit.

Source: S. Li, J. Hu, G. Min, H. Huang, J. Huang, arXiv 2503.04521 (AERIA): on-demand partition and exit, the first of its two stages.

| specification, 2.2 | here | unit |
|---|---|---|
| A_i | accuracy | share in [0, 1] |
| Lmax_i | latency_s | s |
| theta_i | tasks | tasks per session |
| f_i^dev | device_flops | FLOP/s |
| r_i | uplink_bps | bit/s |
| d_i | demand | FLOP/s of the edge |
| e_i, p_i | exit, partition | index, layers on the device |

    d_i(e, p) = theta_i (sum_{l = p+1}^{l_e} W_l + W_e^x) / (Lmax_i - T_dev - T_up),    d_i = min over e with acc_e >= A_i and 0 <= p <= l_e

Departures: the paper's formulas are not known to this project; these are its own specification's. Sending the answer back takes no time.
A device that does it alone sends nothing and demands 0 (e_i is then its quickest exit that is accurate enough, p_i all layers before it).
Of equal demands the earlier exit wins, then the smaller partition.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from nmoe.market.auction.base import BadBids
from nmoe.market.auction.workloads import Workload

ROWS_AT_ONCE = 1 << 14  # users: what is computed between is some MiB, and stays in the cache
NONE = -1  # exit and partition of a need that cannot be met


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Needs:
    """What users want and have, a column each; validated when made.

    Attributes:
        workloads: names, one per user.
        accuracy: wanted, in [0, 1].
        latency_s: time for the whole session, above 0.
        tasks: how many in a session, above 0.
        device_flops: of the user's device, at least 0.
        uplink_bps: of the user's link, above 0.
    """

    workloads: tuple[str, ...]
    accuracy: Float[ndarray, " user"]
    latency_s: Float[ndarray, " user"]
    tasks: Float[ndarray, " user"]
    device_flops: Float[ndarray, " user"]
    uplink_bps: Float[ndarray, " user"]

    def __post_init__(self) -> None:
        """Check the columns.

        Raises:
            BadBids: when a column has another length, or a number is not finite or not in its range.
        """
        columns = {name: getattr(self, name) for name in ("accuracy", "latency_s", "tasks", "device_flops", "uplink_bps")}
        for name, column in columns.items():
            if column.shape != (len(self.workloads),):
                raise BadBids(f"{name} must have one number per user, {len(self.workloads)}, got shape {column.shape}")
        for name in ("latency_s", "tasks", "uplink_bps"):
            _check(name, columns[name], columns[name] > 0, "above 0")
        _check("device_flops", self.device_flops, self.device_flops >= 0, "at least 0")
        _check("accuracy", self.accuracy, (self.accuracy >= 0) & (self.accuracy <= 1), "in [0, 1]")

    def __len__(self) -> int:
        return len(self.workloads)


def _check(name: str, column: Float[ndarray, " user"], good: Bool[ndarray, " user"], wanted: str) -> None:
    good = good & np.isfinite(column)
    if not good.all():
        row = int(np.argmin(good))
        raise BadBids(f"{name} of row {row + 1} must be finite and {wanted}, got {column[row]:g}")


class EdgeDemand(NamedTuple):
    """What users need of the edge.

    Attributes:
        demand: FLOP/s; 0 where the device does it alone, infinite where no exit and partition meet the need.
        exit: index of the exit, or ``NONE``.
        partition: layers on the device, or ``NONE``.
    """

    demand: Float[ndarray, " user"]
    exit: Int[ndarray, " user"]
    partition: Int[ndarray, " user"]


def edge_demand(needs: Needs, workloads: Mapping[str, Workload], *, split: bool = True, alone: bool = True) -> EdgeDemand:
    """Return the least edge compute that meets each need, in O(sum of l_e) per user.

    Args:
        needs: of the users.
        workloads: by name.
        split: whether a network may be cut; without it all layers run on the edge (or on the device, if that does it alone).
        alone: whether a device that can do it alone does.

    Raises:
        BadBids: when a user names a workload that is not there.
    """
    names = list(workloads)
    number_of = {name: number for number, name in enumerate(names)}
    unknown = next((row for row, name in enumerate(needs.workloads) if name not in number_of), None)
    if unknown is not None:
        raise BadBids(f"workload of row {unknown + 1} must be one of {', '.join(names)}, got {needs.workloads[unknown]!r}")
    which = np.array([number_of[name] for name in needs.workloads], dtype=np.int64)
    found = EdgeDemand(np.full(len(needs), np.inf), np.full(len(needs), NONE), np.full(len(needs), NONE))
    for number, name in enumerate(names):
        rows = np.flatnonzero(which == number)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            chunk = rows[start : start + ROWS_AT_ONCE]
            with np.errstate(over="ignore", invalid="ignore"):  # what is too large for a float takes for ever
                of_chunk = _of_one_workload(needs, chunk, workloads[name], split=split, alone=alone)
            for column, values in zip(found, of_chunk, strict=True):
                column[chunk] = values
    return found


def _of_one_workload(needs: Needs, rows: Int[ndarray, " row"], workload: Workload, *, split: bool, alone: bool) -> EdgeDemand:
    """Return the demand of some users of one workload."""
    accuracy, tasks = needs.accuracy[rows], needs.tasks[rows]
    before = np.concatenate([[0.0], np.cumsum(workload.layer_flops)])  # FLOP of the first p layers
    sent_bits = 8.0 * np.array(workload.output_bytes)
    cuts = len(sent_bits) if split else 1
    room_s = np.outer(tasks / needs.uplink_bps[rows], sent_bits[:cuts])  # [row, cut]: T_up
    room_s += _seconds(np.outer(tasks, before[:cuts]), needs.device_flops[rows, None])  # T_dev
    np.subtract(needs.latency_s[rows, None], room_s, out=room_s)
    demand = np.full(len(rows), np.inf)
    chosen, partition = np.full(len(rows), NONE), np.full(len(rows), NONE)
    for number, place in enumerate(workload.exits):
        last = place.after_layer
        enough = accuracy <= place.accuracy
        within = room_s[:, : last + 1]
        left = np.outer(tasks, before[last] + place.head_flops - before[: within.shape[1]])
        of_cut = np.divide(left, within, out=np.full(within.shape, np.inf), where=within > 0)  # d_i(e, p)
        best = of_cut.argmin(axis=1)
        least = of_cut[np.arange(len(rows)), best]
        better = enough & (least < demand)
        demand[better], chosen[better], partition[better] = least[better], number, best[better]
    if alone:
        local = _quickest_alone(needs, rows, workload, before)
        able = local >= 0
        demand[able], chosen[able] = 0.0, local[able]
        partition[able] = np.array([place.after_layer for place in workload.exits])[local[able]]
    return EdgeDemand(demand, chosen, partition)


def _quickest_alone(needs: Needs, rows: Int[ndarray, " row"], workload: Workload, before: Float[ndarray, " cut"]) -> Int[ndarray, " row"]:
    """Return the exit that the device alone comes to first among those that are accurate enough, ``NONE`` where none is in time."""
    work = np.array([before[place.after_layer] + place.head_flops for place in workload.exits])
    taken_s = _seconds(np.outer(needs.tasks[rows], work), needs.device_flops[rows, None])  # [row, exit]
    taken_s[needs.accuracy[rows, None] > np.array([place.accuracy for place in workload.exits])] = np.inf
    quickest = taken_s.argmin(axis=1)
    in_time = taken_s[np.arange(len(rows)), quickest] <= needs.latency_s[rows]
    found: Int[ndarray, " row"] = np.where(in_time, quickest, NONE)
    return found


def _seconds(flops: Float[ndarray, "row cut"], rate: Float[ndarray, "row 1"]) -> Float[ndarray, "row cut"]:
    """Return how long work takes; no work takes no time, even on a device without any speed."""
    taken_s: Float[ndarray, "row cut"] = np.where(flops > 0, np.inf, 0.0)
    np.divide(flops, rate, out=taken_s, where=rate > 0)
    return taken_s


def finish_s(needs: Needs, workloads: Mapping[str, Workload], found: EdgeDemand) -> Float[ndarray, " user"]:
    """Simulate sessions forward, layer by layer, with the edge as fast as was demanded.

    Returns:
        When each session ends: as late as the need allows where the edge takes part, earlier where the device does it alone, infinite
        where the need cannot be met.
    """
    ended = np.full(len(needs), np.inf)
    for row in np.flatnonzero(np.isfinite(found.demand)).tolist():
        workload = workloads[needs.workloads[row]]
        place = workload.exits[found.exit[row]]
        cut, tasks = int(found.partition[row]), needs.tasks[row]
        on_device = list(workload.layer_flops[:cut])
        on_edge = [*workload.layer_flops[cut : place.after_layer], place.head_flops]
        if found.demand[row] == 0:
            ended[row] = _chain_s(tasks, [*on_device, *on_edge], needs.device_flops[row])
            continue
        sent_s = tasks * 8.0 * workload.output_bytes[cut] / needs.uplink_bps[row]
        ended[row] = _chain_s(tasks, on_device, needs.device_flops[row]) + sent_s + _chain_s(tasks, on_edge, found.demand[row])
    return ended


def _chain_s(tasks: float, works: Sequence[float], rate: float) -> float:
    return sum(tasks * work / rate for work in works if work > 0) if rate > 0 else (0.0 if not any(works) else float("inf"))
