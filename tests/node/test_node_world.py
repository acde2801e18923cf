"""The world tells the truth: its nodes decide as those of the wire do, and keep the protocol's laws whatever happens to them."""

import asyncio
import random
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe.node import events as e
from nmoe.node import world as w
from nmoe.node.batcher import Batch
from nmoe.node.plan import Routing
from nmoe.node.runner import NodeRunner
from nmoe.node.transport.memory import MemoryHub

NAMES = ("a", "b", "c", "d", "e")


class Gates:
    """Random scores, of several rows now and then."""

    def __init__(self, num_experts: int, seed: int) -> None:
        self.num_experts, self.seed = num_experts, seed

    def scores(self, node: int, request: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, request])
        return generator.normal(0, 2, size=(3 if request % 4 == 3 else 1, self.num_experts)).astype(np.float32)


class Recorded:
    """A world whose origins are recorded."""

    def __init__(self, options: w.WorldOptions, layout: w.Layout, *, round_trip_s: float = 0.01, seed: int = 0) -> None:
        self.recorders: dict[tuple[int, int], w.Recorder] = {}
        self.finished: list[tuple[int, e.Finish]] = []
        self.gates = Gates(len(layout.experts[0]), seed)
        network = w.uniform_network(len(layout.names), round_trip_s=round_trip_s)
        self.world = w.World(options, layout, network, self.gates, seed=seed, wrap=self.wrap, finished=self.note)

    def wrap(self, index, life, step):
        return self.recorders.setdefault((index, life), w.Recorder(step))

    def note(self, index: int, finish: e.Finish) -> None:
        self.finished.append((index, finish))

    def replayed(self) -> list[str]:
        """Tell bare origins what the world's were told; return where they decide otherwise."""
        cast = self.world.cast
        found = []
        for (index, life), recorder in self.recorders.items():
            found += w.differences(cast.rules(index), cast.draw(index, life), recorder.log)
        return found

    def offer(self, times: list[float]) -> w.Tally:
        picks = np.random.default_rng(5).random(len(times)).tolist()
        return self.world.run(w.Offered(times, picks))


def check_laws(recorder: w.Recorder, *, tick_s: float = 1e-3) -> None:
    """Every request once, one message per peer and flight or one more after a failure, no answer late by over a tick, weights sum to 1."""
    deadlines: dict[int, float] = {}
    answered: Counter[int] = Counter()
    asked: Counter[tuple[int, str]] = Counter()
    for said in recorder.log:
        if isinstance(said.event, e.InferArrived):
            deadlines[said.event.request] = said.event.deadline_s
        for effect in said.effects:
            if isinstance(effect, e.Send):
                asked[effect.flight, effect.peer] += 1
                assert asked[effect.flight, effect.peer] == 1 or isinstance(said.event, e.PeerFailed | e.PeerDown), "to stand in"
            elif isinstance(effect, e.Refuse):
                answered[effect.request] += 1
            elif isinstance(effect, e.Finish):
                assert np.allclose(effect.weights.sum(axis=1), 1, atol=1e-5)
                assert ((effect.weights > 0) == (effect.experts >= 0)).all()
                for number, _ in effect.requests:
                    answered[number] += 1
                    assert said.now_s <= deadlines[number] + tick_s
    assert set(answered) <= set(deadlines)
    assert all(count == 1 for count in answered.values())
    assert all(count <= 2 for count in asked.values())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_world_and_bare_origins_decide_alike_and_keep_the_laws(data: st.DataObject):
    count = data.draw(st.integers(2, 5), "nodes")
    options = w.WorldOptions(
        deadline_s=data.draw(st.sampled_from([0.03, 0.1, 0.5]), "deadline"),
        tail=data.draw(st.sampled_from([w.Steady(), w.LogNormal(1.0), w.Pareto(1.3)]), "tail"),
        loss=data.draw(st.sampled_from([0.0, 0.3]), "loss"),
        routing=data.draw(st.sampled_from(list(Routing)), "routing"),
        workers=data.draw(st.integers(1, 2), "workers"),
        max_requests=4,
        lease_s=0.2,
    )
    layout = w.complete(NAMES[:count]) if data.draw(st.booleans(), "complete") or count % 2 else w.ring(count, neighbours=0, replicas=2)
    recorded = Recorded(options, layout, seed=data.draw(st.integers(0, 99), "seed"))
    gaps = data.draw(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.2]), min_size=1, max_size=30), "gaps")
    times = np.cumsum(gaps).tolist()
    faults = data.draw(
        st.lists(
            st.tuples(st.floats(0, 1), st.sampled_from(["kill", "freeze", "drain", "thaw", "start"]), st.integers(0, count - 1)), max_size=6
        ),
        "faults",
    )
    for share, way, index in faults:
        w.put(recorded.world.clock, recorded.world.members, share * times[-1], way, index)
    tally = recorded.offer(times)
    assert recorded.replayed() == []
    frozen = any(way == "freeze" for _, way, _ in faults)  # then it answers when it is thawed
    for recorder in recorded.recorders.values():
        check_laws(recorder, tick_s=float("inf") if frozen else 1e-3)
    if not faults:
        late_s = np.frombuffer(tally.latency_s) - options.deadline_s
        assert np.nanmax(late_s, initial=-1) <= 0
        assert all(outcome in (w.Outcome.ANSWERED, w.Outcome.DEGRADED, w.Outcome.REFUSED) for outcome in tally.outcome)


def test_without_faults_and_with_time_the_experts_are_the_gates_top_k():
    options = w.WorldOptions(deadline_s=10.0)
    recorded = Recorded(options, w.complete(NAMES))
    recorded.offer([0.02 * number for number in range(200)])
    assert sum(len(finish.requests) for _, finish in recorded.finished) == 200
    for _, finish in recorded.finished:
        for number, start in finish.requests:
            scores = recorded.gates.scores(0, number)
            best = np.argsort(-scores, axis=1, kind="stable")[:, :2]
            assert finish.experts[start : start + len(scores)].tolist() == best.tolist()
            assert not finish.degraded


def test_the_same_seed_gives_the_same_run():
    def once(seed: int) -> dict:
        options = w.WorldOptions(deadline_s=0.3, tail=w.Pareto(1.4), loss=0.05)
        layout = w.ring(40, neighbours=6, replicas=2)
        generator = np.random.default_rng(seed)
        network = w.matrix_network(generator.uniform(5, 80, (7, 7)), 40, generator)
        world = w.World(options, layout, network, w.GateTable(7, generator), seed=seed)
        w.Churn(rate_hz=0.05, away_s=0.5).schedule(world.clock, world.members, random.Random(seed), 5.0)
        return world.run(w.Offered(np.linspace(0, 5, 2000).tolist(), generator.random(2000).tolist())).figures()

    assert once(1) == once(1)
    assert once(1) != once(2)


def test_a_killed_node_is_out_of_the_plan_and_back_after_its_return():
    recorded = Recorded(w.WorldOptions(deadline_s=0.3), w.complete(NAMES))
    w.put(recorded.world.clock, recorded.world.members, 1.0, "kill", 1)
    w.put(recorded.world.clock, recorded.world.members, 2.0, "start", 1)
    recorded.offer([0.005 * number for number in range(600)])
    asked = defaultdict(list)
    for (index, _), recorder in recorded.recorders.items():
        if index != 1:
            for said in recorder.log:
                for effect in said.effects:
                    if isinstance(effect, e.Send):
                        asked[effect.peer].append(said.now_s)
    there = np.array(asked["b"])
    assert (there < 1.0).any()
    assert not ((there > 1.1) & (there < 2.0)).any()
    assert (there > 2.2).any()


def test_a_frozen_node_costs_its_lease_and_no_answer_of_others():
    recorded = Recorded(w.WorldOptions(deadline_s=0.3, lease_s=0.5), w.complete(NAMES))
    w.put(recorded.world.clock, recorded.world.members, 1.0, "freeze", 1)
    tally = recorded.offer([0.005 * number for number in range(600)])
    outcome = np.frombuffer(tally.outcome, dtype=np.uint8)
    lost = np.flatnonzero(outcome == w.Outcome.OPEN)
    assert 0 < len(lost) < 60
    assert (lost * 0.005 < 1.6).all()  # clients went on asking it until its lease ended
    assert (outcome != w.Outcome.REFUSED).all()


def test_a_draining_node_leaves_without_a_failed_request():
    recorded = Recorded(w.WorldOptions(deadline_s=0.3), w.complete(NAMES))
    w.put(recorded.world.clock, recorded.world.members, 1.0, "drain", 1)
    tally = recorded.offer([0.01 * number for number in range(900)])
    assert tally.figures()["availability"] == 1.0
    assert recorded.world.members.nodes[1].away is w.Away.GONE


def test_overload_is_refused_at_once_and_never_queued_without_bound():
    options = w.WorldOptions(deadline_s=0.5, infer=w.Service(0.05, 0.05), max_requests=8)
    recorded = Recorded(options, w.complete(NAMES[:2]))
    figures = recorded.offer([0.002 * number for number in range(1000)]).figures()
    assert figures["refused"]["busy"] > 300
    assert figures["answered"] + sum(figures["refused"].values()) == 1000


def test_a_ring_is_symmetric_and_every_gate_knows_who_serves_it():
    for nodes, neighbours, replicas in ((12, 4, 1), (12, 4, 2), (8, 3, 1), (6, 0, 3)):
        layout = w.ring(nodes, neighbours=neighbours, replicas=replicas)
        for node, peers in enumerate(layout.peers):
            assert len(set(peers)) == len(peers) == neighbours * replicas
            assert all(node in layout.peers[peer] for peer in peers)
            assert {layout.serves[peer] for peer in peers} | {layout.serves[node]} == set(layout.experts[node])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: w.ring(10, neighbours=10, replicas=1),
        lambda: w.ring(10, neighbours=2, replicas=3),
        lambda: w.ring(9, neighbours=3, replicas=1),
        lambda: w.Pareto(1.0),
        lambda: w.LogNormal(-1),
        lambda: w.WorldOptions(deadline_s=0),
        lambda: w.WorldOptions(loss=1),
        lambda: w.Churn(rate_hz=-1),
        lambda: w.matrix_network(np.zeros((2, 3)), 4, np.random.default_rng(0)),
    ],
)
def test_what_cannot_be_simulated_is_said(wrong):
    with pytest.raises(ValueError, match=r"\d|array"):
        wrong()


def test_tails_have_mean_one():
    for tail in (w.Steady(), w.LogNormal(0.8), w.Pareto(3.0)):
        assert tail.multipliers(np.random.default_rng(0), 200_000).mean() == pytest.approx(1, abs=0.02)


def test_a_batch_is_what_workers_take():
    assert Batch._fields == ("line", "jobs", "late", "rows")


def test_the_wire_decides_as_a_bare_origin_does(mesh, images, eventually):
    """Real nodes over the memory transport, one of them killed on the way: their origins, told the same, decide the same."""
    with MemoryHub(delay_s=0.001) as hub:
        runners = [NodeRunner(bundle, hub.transport(bundle.card.node)) for bundle in mesh.bundles]
        recorders = []
        for runner in runners:
            origin = runner.dispatcher.origin
            recorders.append(w.Recorder(origin.step))
            origin.step = recorders[-1]
        try:
            for runner in runners:
                runner.start()
            eventually(lambda: all(sum(link.usable for link in runner.dispatcher.origin.links.values()) == 3 for runner in runners))

            async def ask(count: int) -> None:
                for start in range(count):
                    rows = slice(start, start + 1 + start % 3)
                    await asyncio.gather(*(runner.infer(images[rows], deadline_s=2.0) for runner in runners[:3]))

            asyncio.run(ask(12))
            hub.kill("node-3")
            asyncio.run(ask(6))
        finally:
            for runner in runners:
                runner.stop()
        for runner, recorder in zip(runners, recorders, strict=True):
            rules = runner.dispatcher.origin.rules
            assert w.differences(rules, random.Random(runner.options.seed), recorder.log) == []
            check_laws(recorder, tick_s=0.05)  # a real clock, and threads that wait for a core
        assert sum(isinstance(said.event, e.PeerAnswered) for said in recorders[0].log) > 10
