"""Needs: the closed form is what trying everything finds, sessions simulated forward just meet them, and less is never enough."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe.market.auction.base import BadBids
from nmoe.market.auction.exits import confidence_exits
from nmoe.market.auction.needs import NONE, ROWS_AT_ONCE, Needs, edge_demand, finish_s
from nmoe.market.auction.workloads import Exit, Workload, builtin_workloads

FOUR = builtin_workloads()
amounts = st.floats(0, 1e3, allow_subnormal=False).map(lambda value: round(value, 3))


def needs(*rows: tuple) -> Needs:
    """Return the needs of rows of workload, accuracy, latency, tasks, device, uplink."""
    names, *columns = zip(*rows, strict=True)
    return Needs(
        workloads=tuple(names),
        **dict(
            zip(
                ("accuracy", "latency_s", "tasks", "device_flops", "uplink_bps"),
                (np.array(column, dtype=float) for column in columns),
                strict=True,
            )
        ),
    )


def drawn(count: int, seed: int) -> Needs:
    draws = np.random.default_rng(seed)
    names = [list(FOUR)[which] for which in draws.integers(4, size=count)]
    return needs(
        *(
            (
                name,
                draws.choice([one.accuracy for one in FOUR[name].exits]),
                draws.uniform(0.05, 0.5),
                draws.uniform(0.5, 3),
                draws.choice([0.0, draws.uniform(1e9, 50e9)], p=[0.1, 0.9]),
                draws.uniform(5e6, 50e6),
            )
            for name in names
        )
    )


def brute_force(workload: Workload, accuracy, latency_s, tasks, device, uplink, *, split=True, alone=True) -> tuple[float, int, int]:
    """Try every exit and partition, with plain loops."""
    best = (math.inf, NONE, NONE)
    for number, place in enumerate(workload.exits):
        if place.accuracy < accuracy:
            continue
        for cut in range(place.after_layer + 1 if split else 1):
            ahead = sum(workload.layer_flops[:cut])
            if ahead and not device:
                continue
            left_s = latency_s - (tasks * ahead / device if ahead else 0) - tasks * 8 * workload.output_bytes[cut] / uplink
            work = tasks * (sum(workload.layer_flops[cut : place.after_layer]) + place.head_flops)
            if left_s > 0 and work / left_s < best[0] * (1 - 1e-12):
                best = (work / left_s, number, cut)
    for number, place in enumerate(workload.exits if alone else ()):
        work = tasks * (sum(workload.layer_flops[: place.after_layer]) + place.head_flops)
        if place.accuracy >= accuracy and (work == 0 or (device and work / device <= latency_s)):
            return 0.0, number, place.after_layer
    return best


def row_of(of: Needs, row: int) -> tuple:
    return of.accuracy[row], of.latency_s[row], of.tasks[row], of.device_flops[row], of.uplink_bps[row]


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("alone", [True, False])
def test_the_closed_form_is_the_best_of_all_tries(split: bool, alone: bool):
    users = drawn(300, seed=1)
    found = edge_demand(users, FOUR, split=split, alone=alone)
    for row, name in enumerate(users.workloads):
        demand, place, cut = brute_force(FOUR[name], *row_of(users, row), split=split, alone=alone)
        assert found.demand[row] == pytest.approx(demand, rel=1e-9)
        assert (found.exit[row], found.partition[row]) == (place, cut)
    if split and alone:
        kinds = [np.isinf(found.demand).sum(), (found.demand == 0).sum(), (found.partition > 0).sum(), (found.partition == 0).sum()]
        assert min(kinds) > 10, "every kind of user is among them"


def test_what_is_demanded_is_just_enough():
    users = drawn(400, seed=2)
    found = edge_demand(users, FOUR)
    ended_s = finish_s(users, FOUR, found)
    edge, local = np.isfinite(found.demand) & (found.demand > 0), found.demand == 0
    assert ended_s[edge] == pytest.approx(users.latency_s[edge], rel=1e-9)
    assert (ended_s[local] <= users.latency_s[local]).all()
    assert np.isinf(ended_s[np.isinf(found.demand)]).all()
    for row in np.flatnonzero(edge | local):
        assert FOUR[users.workloads[row]].exits[found.exit[row]].accuracy >= users.accuracy[row]
    slower = found._replace(demand=found.demand * 0.99)
    assert (finish_s(users, FOUR, slower)[edge] > users.latency_s[edge]).all()


def test_by_hand():
    one = Workload(
        name="one",
        layer_flops=(2e9, 4e9),
        output_bytes=(1e6, 1e5, 1e3),
        exits=(Exit(after_layer=1, head_flops=1e9, accuracy=0.5), Exit(after_layer=2, head_flops=0.0, accuracy=0.9)),
    )
    found = edge_demand(
        needs(
            ("one", 0.9, 3.0, 1, 1e9, 8e5),  # one layer takes 2 s and its output 1 s: no time is left; the input takes 10 s
            ("one", 0.9, 4.0, 1, 1e9, 8e5),  # 4e9 in 1 s
            ("one", 0.4, 4.0, 1, 1e9, 8e5),  # 3e9 in 4 s on the device alone, head included
            ("one", 0.4, 2.5, 1, 1e9, 8e6),  # 3 s alone are too long; cut 0: 3e9 in 1.5 s, cut 1: 1e9 in 0.4 s
            ("one", 0.95, 9.0, 1, 1e12, 8e9),  # no exit is so accurate
            ("one", 0.4, 4.0, 1, 0.0, 8e6),  # no device: all on the edge, 3e9 in 3 s
        ),
        {"one": one},
    )
    assert found.demand == pytest.approx([np.inf, 4e9, 0.0, 2e9, np.inf, 1e9])
    assert found.exit.tolist() == [NONE, 1, 0, 0, NONE, 0]
    assert found.partition.tolist() == [NONE, 1, 1, 0, NONE, 0]


@given(
    layers=st.lists(st.tuples(amounts, amounts), min_size=1, max_size=6),
    sent=amounts,
    heads=st.lists(st.tuples(st.integers(1, 6), amounts, st.floats(0, 1)), min_size=1, max_size=4),
    user=st.tuples(st.floats(0, 1), st.floats(0.01, 1e3), st.floats(0.1, 10), amounts, st.floats(1, 1e4)),
)
@settings(max_examples=60)
def test_any_network_and_user(layers, sent, heads, user):
    exits = tuple(Exit(after_layer=min(place, len(layers)), head_flops=head, accuracy=accuracy) for place, head, accuracy in sorted(heads))
    workload = Workload(
        name="any", layer_flops=tuple(work for work, _ in layers), output_bytes=(sent, *(out for _, out in layers)), exits=tuple(exits)
    )
    users = needs(("any", *user))
    found = edge_demand(users, {"any": workload})
    assert found.demand[0] == pytest.approx(brute_force(workload, *user)[0], rel=1e-6)
    relaxed = [
        replace(users, accuracy=users.accuracy / 2),
        replace(users, latency_s=users.latency_s * 2),
        replace(users, uplink_bps=users.uplink_bps * 2),
        replace(users, device_flops=users.device_flops * 2 + 1),
    ]
    for easier in relaxed:
        assert edge_demand(easier, {"any": workload}).demand[0] <= found.demand[0] * (1 + 1e-9), "an easier need takes no more"
    for fewer in ({"split": False}, {"alone": False}):
        assert edge_demand(users, {"any": workload}, **fewer).demand[0] >= found.demand[0] * (1 - 1e-9), "fewer choices take no less"


def test_confidence_exits_are_searched_likewise():
    mean = {"vgg16": confidence_exits(FOUR["vgg16"], (0.3, 0.3, 0.2, 0.2))}
    users = needs(*(("vgg16", 0.5, latency, 1.0, 40e9, 20e6) for latency in (0.1, 0.2, 0.4, 0.8)))
    found = edge_demand(users, mean)
    for row in range(4):
        assert found.demand[row] == pytest.approx(brute_force(mean["vgg16"], *row_of(users, row))[0], rel=1e-9)
    assert found.demand[3] == 0, "the device alone, in 0.8 s"
    assert (found.demand[:3] < edge_demand(replace(users, accuracy=np.full(4, 0.7)), FOUR).demand[:3]).all()


def test_chunks_are_seamless_and_extremes_are_defined():
    users = drawn(64, seed=3)
    many = Needs(
        workloads=users.workloads * (ROWS_AT_ONCE // 8),
        **{
            name: np.tile(getattr(users, name), ROWS_AT_ONCE // 8)
            for name in ("accuracy", "latency_s", "tasks", "device_flops", "uplink_bps")
        },
    )
    assert (edge_demand(many, FOUR).demand.reshape(-1, 64) == edge_demand(users, FOUR).demand).all()
    extreme = needs(
        ("vgg16", 0.0, 1e-300, 1e300, 1e-300, 1e-300), ("vgg16", 0.0, 1e300, 1e-300, 1e300, 1e300), ("vgg16", 1, 5e-324, 1, 0, 5e-324)
    )
    assert edge_demand(extreme, FOUR).demand.tolist() == [np.inf, 0.0, np.inf]
    nobody = Needs(workloads=(), **dict.fromkeys(("accuracy", "latency_s", "tasks", "device_flops", "uplink_bps"), np.zeros(0)))
    assert edge_demand(nobody, FOUR).demand.shape == (0,)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (("vgg16", 1.5, 1, 1, 1, 1), r"accuracy of row 1 must be finite and in \[0, 1\], got 1.5"),
        (("vgg16", np.nan, 1, 1, 1, 1), "accuracy of row 1"),
        (("vgg16", 0, 0, 1, 1, 1), "latency_s of row 1 must be finite and above 0, got 0"),
        (("vgg16", 0, np.inf, 1, 1, 1), "latency_s of row 1"),
        (("vgg16", 0, 1, 0, 1, 1), "tasks of row 1 must be finite and above 0"),
        (("vgg16", 0, 1, 1, -1, 1), "device_flops of row 1 must be finite and at least 0, got -1"),
        (("vgg16", 0, 1, 1, 1, 0), "uplink_bps of row 1 must be finite and above 0"),
    ],
)
def test_needs_that_are_none_are_refused(row: tuple, said: str):
    with pytest.raises(BadBids, match=said):
        needs(row)


def test_unknown_workloads_and_uneven_columns_are_refused():
    with pytest.raises(BadBids, match="workload of row 2 must be one of alexnet, vgg16, resnet50, mobilenet_v2, got 'lenet'"):
        edge_demand(needs(("vgg16", 0, 1, 1, 1, 1), ("lenet", 0, 1, 1, 1, 1)), FOUR)
    with pytest.raises(BadBids, match=r"tasks must have one number per user, 1, got shape \(2,\)"):
        replace(needs(("vgg16", 0, 1, 1, 1, 1)), tasks=np.ones(2))
