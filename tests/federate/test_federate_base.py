"""Checks, merging, exchanges and the loop: laws and refusals."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmoe.core.errors import BadFile, EngineError
from nmoe.federate import Call, Payload, Watcher, merge, node_name, refusal, run
from nmoe.federate.base import Answers, accept, serve
from nmoe.federate.checkpoint import Checkpoint, Record

vectors = st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=2).map(torch.tensor)
updates = st.lists(st.tuples(st.floats(0.1, 50), st.dictionaries(st.sampled_from("abc"), vectors, max_size=3)), max_size=5)
PREVIOUS = {name: torch.full((2,), 99.0) for name in "abc"}


@given(updates)
def test_merge_counts_each_key_by_itself(given_updates):
    merged = merge(given_updates, PREVIOUS)
    assert merged.keys() == PREVIOUS.keys()
    for name, old in PREVIOUS.items():
        holders = [(weight, tensors[name].double()) for weight, tensors in given_updates if name in tensors]
        if not holders:
            assert torch.equal(merged[name], old)
            continue
        wanted = sum(weight * tensor for weight, tensor in holders) / sum(weight for weight, _ in holders)
        torch.testing.assert_close(merged[name].double(), wanted, rtol=1e-4, atol=1e-4)


@given(updates, st.randoms(use_true_random=False))
def test_merge_does_not_depend_on_arrival_once_sorted(given_updates, random):
    numbered = list(enumerate(given_updates))
    random.shuffle(numbered)
    again = merge([update for _, update in sorted(numbered, key=lambda pair: pair[0])], PREVIOUS)
    shuffled = merge([update for _, update in numbered], PREVIOUS)
    wanted = merge(given_updates, PREVIOUS)
    for name in PREVIOUS:
        assert torch.equal(again[name], wanted[name])
        torch.testing.assert_close(shuffled[name], wanted[name], rtol=1e-4, atol=1e-4)


@given(updates, st.floats(0.1, 100))
def test_only_ratios_of_weights_matter(given_updates, factor):
    one, other = merge(given_updates, PREVIOUS), merge([(weight * factor, tensors) for weight, tensors in given_updates], PREVIOUS)
    for name in PREVIOUS:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-4)


@given(vectors, st.lists(st.floats(0.1, 50), min_size=1, max_size=5))
def test_merging_equal_updates_changes_nothing(vector, weights):
    merged = merge([(weight, {"a": vector}) for weight in weights], {"a": torch.zeros(2)})
    torch.testing.assert_close(merged["a"], vector, rtol=1e-5, atol=1e-5)


def test_merge_by_hand_and_without_touching_its_inputs():
    first, second = {"a": torch.tensor([1.0]), "n": torch.tensor([7])}, {"a": torch.tensor([5.0]), "n": torch.tensor([9])}
    previous = {"a": torch.tensor([0.0]), "n": torch.tensor([3])}
    merged = merge([(3.0, first), (1.0, second)], previous)
    assert merged["a"].tolist() == [2.0]
    assert merged["n"].tolist() == [3], "whole numbers are not averaged"
    assert first["a"].tolist() == [1.0]
    assert second["a"].tolist() == [5.0]
    assert previous["a"].tolist() == [0.0]
    assert merge([], previous)["a"] is previous["a"]


def test_merge_ignores_keys_nobody_wanted():
    assert merge([(1.0, {"a": torch.ones(1), "evil": torch.ones(1)})], {"a": torch.zeros(1)}).keys() == {"a"}


WANTED = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
SOUND = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
BAD = {
    "missing key bias": {"weight": torch.ones(2, 3)},
    "unknown key extra": SOUND | {"extra": torch.ones(1)},
    r"weight is torch.float32 \[3, 2\], wanted torch.float32 \[2, 3\]": SOUND | {"weight": torch.ones(3, 2)},
    r"bias is torch.float32 \[\], wanted torch.float32 \[2\]": SOUND | {"bias": torch.tensor(1.0)},
    r"bias is torch.float16 \[2\], wanted torch.float32 \[2\]": SOUND | {"bias": torch.ones(2, dtype=torch.float16)},
    r"bias is torch.int64 \[2\], wanted torch.float32 \[2\]": SOUND | {"bias": torch.ones(2, dtype=torch.int64)},
    "NaN or infinity in weight": SOUND | {"weight": torch.ones(2, 3).index_fill(0, torch.tensor(1), math.nan)},
    "NaN or infinity in bias": SOUND | {"bias": torch.tensor([1.0, math.inf])},
}


@pytest.mark.parametrize(("words", "update"), BAD.items())
def test_every_bad_update_is_refused_by_name(words, update):
    reason = refusal(update, WANTED)
    assert reason is not None
    assert re.fullmatch(words, reason)
    answers = Answers({0: Payload(SOUND, samples=1), 3: Payload(update, samples=1)}, {5: "timed out"})
    accepted = accept(answers, WANTED, "samples")
    assert list(accepted.updates) == [0]
    assert sorted(accepted.refused) == [f"node-3: {reason}", "node-5: timed out"]


def test_minus_infinity_is_refused_too_and_sound_updates_are_not():
    assert refusal(SOUND | {"bias": torch.tensor([1.0, -math.inf])}, WANTED) == "NaN or infinity in bias"
    assert refusal(SOUND, WANTED) is None
    assert refusal({}, {}) is None


@pytest.mark.parametrize("samples", [0, -1, math.nan, math.inf, "7", True, None, [1]])
def test_bad_weights_are_refused(samples):
    reply = Payload(SOUND) if samples is None else Payload(SOUND, samples=samples)
    accepted = accept(Answers({2: reply}, {}), WANTED, "samples")
    assert accepted.updates == {}
    assert len(accepted.refused) == 1
    assert accepted.refused[0].startswith("node-2: samples is ")


def test_an_unknown_stage_is_refused(toy):
    node = toy.Toy((toy.fedavg(),)).node(0)
    with pytest.raises(ValueError, match="stage must be one of fedavg, got 'other'"):
        serve({"fedavg": toy.fedavg()}, Call("other", "train", 0, 1, 0), Payload(), node)


def test_node_names_are_one_word():
    assert node_name(3) == "node-3"


def test_replies_are_sorted_whatever_order_they_come_in(toy):
    wire = toy.exchange((toy.fedavg(),))
    carry = wire.inner.carry

    def backwards(call, requests):
        answers = carry(call, requests)
        return Answers(dict(reversed(answers.replies.items())), {})

    straight = run((toy.fedavg(),), toy.exchange((toy.fedavg(),)))
    wire.inner.carry = backwards
    assert toy.same_states(run((toy.fedavg(),), wire), straight)


def test_a_node_that_raises_is_its_own_failure(toy, monkeypatch):
    """A local node's exception becomes a line in the report, with its kind and its words."""
    stages = (toy.fedavg(),)
    wire, notes = toy.exchange(stages), toy.Notes()
    answer = type(stages[0]).answer

    def broken(self, call, request, node):
        if node.number == 4:
            raise RuntimeError("out of memory")
        return answer(self, call, request, node)

    monkeypatch.setattr(type(stages[0]), "answer", broken)
    states = run(stages, wire, watcher=notes)
    assert all(tensor.isfinite().all() for tensor in states["fedavg"].values())
    assert [record.refused for record in notes.records] == [["node-4: RuntimeError: out of memory"]] * 3


def test_some_silent_nodes_are_no_error_but_all_are(toy):
    stages = (toy.fedavg(),)
    run(stages, toy.exchange(stages, fail=lambda call, node: "gone" if node else None))
    with pytest.raises(EngineError, match=r"no node answered fedavg.train of round 2: gone"):
        run(stages, toy.exchange(stages, fail=lambda call, node: "gone" if call.round == 1 else None))


def a_record(**changes: object) -> Record:
    whole = Record(stage="one", round=1, rounds=2, clock=3, seconds=0.5, bytes=10, refused=["node-1: late"], metrics={"loss": 0.25})
    return whole._replace(**changes)


def test_checkpoint_round_trip(tmp_path):
    checkpoint = Checkpoint(tmp_path, ["one", "two"])
    assert checkpoint.load() == ({}, None, 0, 0)
    state = {"x": torch.rand(2, 3).T, "n": torch.tensor(4)}
    checkpoint.save(a_record(), state)
    finished, found, done, clock = Checkpoint(tmp_path, ["one", "two"]).load()
    assert (finished, done, clock) == ({}, 1, 3)
    assert all(torch.equal(found[name], state[name]) for name in state)
    checkpoint.save(a_record(round=2, clock=6), state)
    checkpoint.save(a_record(stage="two", clock=9), {"y": torch.ones(1)})
    finished, found, done, clock = checkpoint.load()
    assert list(finished) == ["one"]
    assert found["y"].tolist() == [1]
    assert (done, clock) == (1, 9)


def test_metrics_newer_than_the_state_or_cut_short_are_dropped(tmp_path):
    checkpoint = Checkpoint(tmp_path, ["one"])
    for round in (1, 2):
        checkpoint.save(a_record(round=round, rounds=9, clock=3 * round), {})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "one", "round": 3, "clo')
    assert checkpoint.rewind(6) == [a_record(round=1, rounds=9, clock=3), a_record(round=2, rounds=9, clock=6)]
    assert checkpoint.rewind(3) == [a_record(round=1, rounds=9, clock=3)]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"nonsense", None], ids=["empty", "nonsense", "no-stamp"])
def test_damaged_checkpoint_is_a_bad_file(toy, tmp_path, content):
    from safetensors.torch import save

    stages = (toy.fedavg(rounds=1),)
    run(stages, toy.exchange(stages), folder=tmp_path)
    path = tmp_path / "checkpoint" / "fedavg.safetensors"
    path.write_bytes(save({"x": torch.zeros(1)}) if content is None else content)
    with pytest.raises(BadFile, match=r"fedavg\.safetensors is damaged") as caught:
        run(stages, toy.exchange(stages), folder=tmp_path)
    assert "\n" not in str(caught.value)


def test_checkpoint_of_other_stages_is_a_bad_file(toy, tmp_path):
    run((toy.fedavg(rounds=1),), toy.exchange((toy.fedavg(rounds=1),)), folder=tmp_path)
    other = (toy.fedavg(rounds=1, name="other"),)
    with pytest.raises(BadFile, match="fedavg"):
        run(other, toy.exchange(other), folder=tmp_path)


def test_watcher_sees_every_round_and_its_metrics_are_kept(toy, tmp_path):
    class Counting(Watcher):
        def __init__(self):
            self.seen_rounds = []

        def evaluate(self, stage, round, state):
            return {"norm": float(state["head.output.weight"].norm()), "number": float(round)}

        def seen(self, record):
            self.seen_rounds.append((record.round, record.metrics["number"], "loss" in record.metrics))

    stages = (toy.fedavg(),)
    first, second = Counting(), Counting()
    run(stages, toy.exchange(stages), folder=tmp_path, watcher=first)
    run(stages, toy.exchange(stages), folder=tmp_path, watcher=second)
    assert first.seen_rounds == second.seen_rounds == [(1, 0.0, True), (2, 1.0, True), (3, 2.0, True)]
