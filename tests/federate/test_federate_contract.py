"""Contract over every final stage, gate scheme and synchronisation that nmoe.federate exports; a new one is tested unasked."""

import inspect
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import nmoe.federate
from nmoe.federate import GateScheme, Stage, Synchronisation, Watcher, run


def finals(family: type) -> list[type]:
    """Return every final class of a family: exported by nmoe.federate or a subclass of what it exports."""
    found, todo = set(), [family]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        named = vars(sys.modules[cls.__module__]).get(cls.__name__)  # slots=True leaves a nameless twin behind
        if named is cls and not inspect.isabstract(cls) and cls.__module__.startswith("nmoe.federate"):
            found.add(cls)
    exported = {value for value in vars(nmoe.federate).values() if inspect.isclass(value) and issubclass(value, family)}
    assert {cls for cls in exported if not inspect.isabstract(cls)} <= found
    assert found <= exported, f"not exported by nmoe.federate: {found - exported}"
    return sorted(found, key=lambda cls: cls.__name__)


FINALS = [cls for family in (Stage, GateScheme, Synchronisation) for cls in finals(family)]
each_final = pytest.mark.parametrize("cls", FINALS, ids=lambda cls: cls.__name__)


def test_every_family_has_members():
    assert {"FedAvg", "FedGate", "FullSync"} <= {cls.__name__ for cls in FINALS}


@pytest.fixture
def programs(cls, toy) -> list[tuple[Stage, ...]]:
    assert cls in toy.EXAMPLES, f"add small examples of {cls.__name__} to tests/federate/conftest.py"
    return toy.EXAMPLES[cls]


def tensors_below(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Return every tensor file below a folder: checkpoints, node memories and bundles."""
    return {path.relative_to(folder).as_posix(): load_file(path) for path in folder.rglob("*.safetensors")}


@each_final
def test_class_is_frozen_slotted_and_says_its_source(cls):
    assert cls.__doc__
    assert cls.__dataclass_params__.frozen
    assert "__slots__" in vars(cls)
    assert [base for base in cls.__mro__[1:] if not inspect.isabstract(base) and base is not object] in ([], [__import__("abc").ABC])


@each_final
def test_one_seed_gives_one_result_whatever_the_threads(programs, toy):
    for stages in programs:
        results, messages = [], []
        for threads in (1, 1, 3):
            wire = toy.exchange(stages, threads=threads)
            results.append(run(stages, wire))
            messages.append([(message.call, {n: reply.encode() for n, reply in message.replies.items()}) for message in wire.record])
            wire.inner.close()
        assert toy.same_states(results[0], results[1])
        assert toy.same_states(results[0], results[2])
        assert messages[0] == messages[1] == messages[2]


@each_final
def test_states_stay_finite_and_answers_never_fail(programs, toy):
    for stages in programs:
        notes = toy.Notes()
        states = run(stages, toy.exchange(stages), watcher=notes)
        assert all(tensor.isfinite().all() for state in states.values() for tensor in state.values())
        assert [record.refused for record in notes.records] == [[] for _ in notes.records]
        assert [(record.stage, record.round) for record in notes.records] == [(s.name, r + 1) for s in stages for r in range(s.rounds)]
        assert [record.clock for record in notes.records] == sorted({record.clock for record in notes.records})
        assert all(isinstance(value, float) for record in notes.records for value in record.metrics.values())


@each_final
def test_every_byte_sent_is_counted_and_every_message_survives_the_wire(programs, toy):
    for stages in programs:
        wire, notes = toy.exchange(stages), toy.Notes()
        run(stages, wire, watcher=notes)
        encoded = [payload.encode() for message in wire.record for side in (message.requests, message.replies) for payload in side.values()]
        assert wire.sent_bytes == sum(map(len, encoded)) == sum(record.bytes for record in notes.records)
        assert all(record.bytes > 0 for record in notes.records)
        for message in wire.record:
            for payload in (*message.requests.values(), *message.replies.values()):
                again = type(payload).decode(payload.encode())
                assert toy.same_state(again.tensors, payload.tensors)
                assert again.facts == payload.facts
                assert not any(tensor.requires_grad for tensor in payload.tensors.values())


@each_final
def test_a_run_killed_anywhere_ends_as_if_it_never_was(programs, toy, tmp_path):
    """Killed in the middle of any message, after the nodes wrote and before the server knew: both sides go back alike."""
    for index, stages in enumerate(programs):
        whole = tmp_path / f"whole{index}"
        wire = toy.exchange(stages, folder=whole)
        wanted = run(stages, wire, folder=whole)
        clocks = [message.call.clock for message in wire.record]
        assert clocks == sorted(set(clocks))
        lines = whole.joinpath("metrics.jsonl").read_text().count("\n")
        late = [message.call.clock for message in wire.record if message.call.stage == stages[-1].name]
        for clock in sorted({*late[::2], late[-1]}):
            folder = tmp_path / f"killed{index}-{clock}"
            with pytest.raises(toy.Killed):
                run(stages, toy.exchange(stages, folder=folder, kill_at=clock), folder=folder)
            found = run(stages, toy.exchange(stages, folder=folder), folder=folder)
            assert toy.same_states(found, wanted), f"killed at clock {clock}"
            assert toy.same_states(tensors_below(folder), tensors_below(whole))
            assert folder.joinpath("metrics.jsonl").read_text().count("\n") == lines


@each_final
def test_a_run_stopped_after_any_round_ends_as_if_it_never_was(programs, toy, tmp_path):
    """Stopped by the watcher, in turn before and after the round was saved."""
    for index, stages in enumerate(programs):
        wanted = run(stages, toy.exchange(stages))
        total = sum(stage.rounds for stage in stages)
        for stop in range(total - stages[-1].rounds, total):  # earlier stages are in examples of their own
            folder = tmp_path / f"{index}-{stop}"
            stopper = Stopper(toy.Killed, stop, saved=stop % 2 == 0)
            with pytest.raises(toy.Killed):
                run(stages, toy.exchange(stages, folder=folder), folder=folder, watcher=stopper)
            found = run(stages, toy.exchange(stages, folder=folder), folder=folder)
            assert toy.same_states(found, wanted), f"stopped at round {stop} of the run"


class Stopper(Watcher):
    def __init__(self, killed: type[BaseException], rounds: int, *, saved: bool) -> None:
        self.killed, self.left, self.saved = killed, rounds, saved

    def evaluate(self, stage, round, state):
        if self.left == 0 and not self.saved:
            raise self.killed
        return {}

    def seen(self, record):
        if self.left == 0:
            raise self.killed
        self.left -= 1


@each_final
def test_a_finished_run_is_only_read_again(programs, toy, tmp_path):
    stages = programs[0]
    wanted = run(stages, toy.exchange(stages, folder=tmp_path), folder=tmp_path)
    wire = toy.exchange(stages, folder=tmp_path)
    assert toy.same_states(run(stages, wire, folder=tmp_path), wanted)
    assert wire.record == []


@each_final
def test_a_node_that_always_fails_is_named_and_the_others_go_on(programs, toy):
    for stages in programs:
        notes = toy.Notes()
        wire = toy.exchange(stages, fail=lambda call, node: "OSError: the disk is full" if node == 2 else None)
        states = run(stages, wire, watcher=notes)
        assert all(tensor.isfinite().all() for state in states.values() for tensor in state.values())
        asked = {(message.call.stage, message.call.round) for message in wire.record if 2 in message.requests}
        assert asked, "node-2 was never asked"
        for record in notes.records:
            named = [line for line in record.refused if line == "node-2: OSError: the disk is full"]
            assert bool(named) is ((record.stage, record.round - 1) in asked)
            assert len(named) == len(record.refused)


@each_final
def test_nobody_answering_is_an_engine_error_that_says_why(programs, toy):
    from nmoe.core.errors import EngineError

    stages = programs[0]
    names = {message.call.stage for message in run_recorded(toy, stages)}
    for name in names:
        wire = toy.exchange(stages, fail=lambda call, node, name=name: "OSError: no power" if call.stage == name else None)
        with pytest.raises(EngineError, match=rf"no node answered {name}\.\w+ of round 1: OSError: no power"):
            run(stages, wire)


def run_recorded(toy, stages):
    wire = toy.exchange(stages)
    run(stages, wire)
    return wire.record


@each_final
def test_inputs_are_not_changed_in_place(programs, toy):
    """Payloads are shared by reference in one process, so neither side may write into what it was given."""
    for stages in programs:
        wire = toy.exchange(stages)
        snapshots = []
        carry = wire.inner.carry

        def watch(call, requests, carry=carry, snapshots=snapshots):
            answers = carry(call, requests)
            for payload in (*requests.values(), *answers.replies.values()):
                snapshots.append((payload, {name: tensor.clone() for name, tensor in payload.tensors.items()}))
            return answers

        wire.inner.carry = watch
        run(stages, wire)
        assert len(snapshots) > 0
        for payload, before in snapshots:
            assert toy.same_state(payload.tensors, before)


def test_gates_nobody_trains_in_a_round_keep_their_weights(toy):
    stages = (*toy.before_gates(), toy.gates(scheme=nmoe.federate.RollGate()))
    wire = toy.exchange(stages, fail=lambda call, node: "lost" if call.stage == "gates" and call.action == "train" else None)
    states = run(stages, wire)
    assert toy.same_state(states["gates"], stages[-1].start({}))
    assert torch.equal(states["gates"]["output.weight"], torch.zeros(toy.NODES, 5))
