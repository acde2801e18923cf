"""One malicious node in real rounds of every stage: refused, named, and the run goes on."""

import math
from collections.abc import Callable

import pytest
import torch

from nmoe.federate import FedCE, Payload, Stage, run


def first(tensors: dict[str, torch.Tensor]) -> str:
    return sorted(tensors)[0]


def poisoned(value: float) -> Callable[[Payload], Payload]:
    def poison(reply: Payload) -> Payload:
        name = first(reply.tensors)
        bad = reply.tensors[name].clone()
        bad.reshape(-1)[-1] = value
        return Payload(reply.tensors | {name: bad}, **reply.facts)

    return poison


CORRUPTIONS: dict[str, Callable[[Payload], Payload]] = {
    "nan": poisoned(math.nan),
    "infinity": poisoned(-math.inf),
    "missing": lambda r: Payload({n: t for n, t in r.tensors.items() if n != first(r.tensors)}, **r.facts),
    "unknown": lambda r: Payload(r.tensors | {"evil": torch.zeros(1)}, **r.facts),
    "renamed": lambda r: Payload({f"{n}x": t for n, t in r.tensors.items()}, **r.facts),
    "shape": lambda r: Payload({n: t.unsqueeze(0) for n, t in r.tensors.items()}, **r.facts),
    "wider": lambda r: Payload({n: torch.cat((t, t), dim=-1) if t.ndim else t.reshape(1) for n, t in r.tensors.items()}, **r.facts),
    "scalar": lambda r: Payload({n: torch.tensor(1.0) for n in r.tensors}, **r.facts),
    "dtype": lambda r: Payload({n: t.to(torch.int64) for n, t in r.tensors.items()}, **r.facts),
    "empty": lambda r: Payload(),
}
FACTS: dict[str, Callable[[Payload], Payload]] = {
    "no-facts": lambda r: Payload(r.tensors),
    "nan-facts": lambda r: Payload(r.tensors, **dict.fromkeys(r.facts, math.nan)),
    "words": lambda r: Payload(r.tensors, **dict.fromkeys(r.facts, "many")),
}


def attack(toy, stages: tuple[Stage, ...], stage: str, action: str, evil: Callable[[Payload], Payload]):
    """Run with node-2's replies to one action corrupted; return states, records and the rounds of the attack."""
    rounds = set()

    def corrupt(call, node, reply):
        if (call.stage, call.action, node) != (stage, action, 2):
            return reply
        rounds.add(call.round)
        return evil(reply)

    wire, notes = toy.exchange(stages, corrupt=corrupt), toy.Notes()
    return run(stages, wire, watcher=notes), notes.records, rounds


def stages_of(toy, name: str) -> tuple[Stage, ...]:
    return {
        "fedavg": (toy.fedavg(rounds=2),),
        "fedce": (FedCE(classifier=toy.fedavg(rounds=2)),),
        "fedsc": (toy.fedsc(rounds=2),),
        "experts": (toy.fedsc(rounds=1), toy.experts(rounds=2)),
        "gates": (*toy.before_gates(), toy.gates(rounds=2)),
    }[name]


TARGETS = [
    ("fedavg", "fedavg", "train"),
    ("fedce", "fedavg", "train"),
    ("fedsc", "features", "correlation"),
    ("fedsc", "features", "train"),
    ("experts", "experts", "statistics"),
    ("gates", "gates", "features"),
    ("gates", "gates", "logits"),
    ("gates", "gates", "train"),
]


@pytest.mark.parametrize("evil", CORRUPTIONS.values(), ids=CORRUPTIONS.keys())
@pytest.mark.parametrize(("program", "stage", "action"), TARGETS)
def test_corrupt_tensors_are_refused_and_named_and_the_run_goes_on(toy, program, stage, action, evil):
    stages = stages_of(toy, program)
    states, records, rounds = attack(toy, stages, stage, action, evil)
    assert rounds, "the attack never took place"
    assert all(tensor.isfinite().all() for state in states.values() for tensor in state.values())
    for record in records:
        named = [line for line in record.refused if line.startswith("node-2: ")]
        if record.stage == stage and record.round - 1 in rounds:
            assert len(named) >= 1
        assert [line for line in record.refused if line not in named] == [], "an honest node was blamed"
    sound = stages[-1].start(states)
    assert {name: tensor.shape for name, tensor in states[stage].items() if name in sound} == {n: t.shape for n, t in sound.items()}


@pytest.mark.parametrize("evil", FACTS.values(), ids=FACTS.keys())
@pytest.mark.parametrize(
    ("program", "stage", "action"), [*TARGETS[:2], TARGETS[3], TARGETS[4], ("experts", "experts", "train"), TARGETS[-1]]
)
def test_corrupt_facts_are_refused_and_named(toy, program, stage, action, evil):
    states, records, rounds = attack(toy, stages_of(toy, program), stage, action, evil)
    assert all(tensor.isfinite().all() for state in states.values() for tensor in state.values())
    assert all(math.isfinite(value) for record in records for value in record.metrics.values())
    for record in records:
        hit = record.stage == stage and record.round - 1 in rounds
        assert bool(record.refused) is hit
        assert all(line.startswith("node-2: ") for line in record.refused)


def test_a_refused_node_changes_nothing(toy):
    """The run with a poisoned node-2 equals, bit for bit, the run without its replies."""
    stages = (toy.fedavg(),)
    poisoned_run, _, _ = attack(toy, stages, "fedavg", "train", CORRUPTIONS["nan"])
    without = run(stages, toy.exchange(stages, fail=lambda call, node: "gone" if node == 2 else None))
    assert toy.same_states(poisoned_run, without)


def test_a_network_of_poisoners_leaves_the_model_as_it_was(toy):
    stages = (toy.fedavg(),)
    wire = toy.exchange(stages, corrupt=lambda call, node, reply: CORRUPTIONS["nan"](reply))
    states = run(stages, wire)
    assert toy.same_state(states["fedavg"], stages[0].start({}))
