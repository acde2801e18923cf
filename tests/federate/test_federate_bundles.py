"""Bundles: the prototypes that every node writes are the class means of its standardised features, whatever killed the run before."""

import pytest
import torch

from nmoe.core.bundle import PROTOTYPES, read_bundle
from nmoe.data import to_unit
from nmoe.federate import node_name, run
from nmoe.learn import predict
from nmoe.moe import restore


def whole_run(toy):
    stage = toy.gates(rounds=2)
    return (*toy.before_gates(), stage, toy.bundles(stage))


def test_prototypes_are_class_means_of_standardised_features(toy, tmp_path):
    stages = whole_run(toy)
    states = run(stages, toy.exchange(stages, folder=tmp_path))
    extractor = restore(toy.EXTRACTOR, states["experts"])
    for number in range(toy.NODES):
        data = toy.local_data(number)
        features = predict(extractor, to_unit(data.images)).double()
        bundle = read_bundle(tmp_path / "bundles" / node_name(number))
        found = bundle.tensors[PROTOTYPES]
        assert found["classes"].tolist() == sorted(set(data.labels.tolist())) == list(bundle.card.classes_seen)
        for label, mean, count in zip(found["classes"].tolist(), found["means"], found["counts"].tolist(), strict=True):
            own = features[torch.from_numpy(data.labels) == label]
            assert count == len(own)
            torch.testing.assert_close(mean.double(), own.mean(dim=0), rtol=1e-5, atol=1e-6)


def test_no_prototype_leaves_its_node_in_training(toy, tmp_path):
    stages = whole_run(toy)
    wire = toy.exchange(stages, folder=tmp_path)
    run(stages, wire)
    for message in wire.record:
        if message.call.stage == "bundles":
            assert all(reply.tensors == {} for reply in message.replies.values())
    assert not any("means" in name for message in wire.record for reply in message.replies.values() for name in reply.tensors)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_node_whose_process_restarted_writes_the_same_bundle(toy, tmp_path, threads):
    """Killed in the last message and continued by fresh nodes, whose features are computed again."""
    stages = whole_run(toy)
    wire = toy.exchange(stages, folder=tmp_path / "whole")
    run(stages, wire, folder=tmp_path / "whole")
    killed = tmp_path / "killed"
    with pytest.raises(toy.Killed):
        run(stages, toy.exchange(stages, folder=killed, kill_at=wire.record[-1].call.clock), folder=killed)
    run(stages, toy.exchange(stages, folder=killed, threads=threads), folder=killed)
    for number in range(toy.NODES):
        one, other = (read_bundle(folder / "bundles" / node_name(number)) for folder in (tmp_path / "whole", killed))
        assert one.card == other.card
        assert toy.same_state(one.tensors[PROTOTYPES], other.tensors[PROTOTYPES])
