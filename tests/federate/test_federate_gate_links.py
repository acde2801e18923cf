"""Gates over radio links: what is drawn, what travels, what nodes know, and that training has its two stages."""

import math
import re
from dataclasses import replace

import pytest
import torch
from scipy import stats

from nmoe.channel.analog import Analog
from nmoe.channel.fading import Awgn
from nmoe.channel.radio import Radio
from nmoe.core.units import to_db
from nmoe.federate import FedGate, FullSync, GateLinks, NeighbourSync, Payload, run
from nmoe.federate.gate_links import known_logits
from nmoe.learn import predict
from nmoe.moe import build


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def radio(low_db: float, high_db: float) -> Radio:
    return Radio(fading=Awgn(), transmission=Analog(), low_db=float(low_db), high_db=float(high_db))


def links(low_db: float = -10, high_db: float = 20, **changes) -> GateLinks:
    return replace(GateLinks(radio=radio(low_db, high_db), versions=4, clean_rounds=1, balance=0.0), **changes)


def stage_messages(toy, *stages):
    """Return final states and the messages of stage 3."""
    whole = (*toy.before_gates(), *stages)
    wire = toy.exchange(whole)
    return run(whole, wire), [message for message in wire.record if "gates" in message.call.stage]


def test_blocks_are_uniform_in_db_and_one_link_of_each_is_perfect():
    drawn = links(versions=40).draw(50, 5, generator=generator())
    assert drawn.snr.shape == drawn.perfect.shape == (40, 50, 5)
    assert stats.kstest(to_db(drawn.snr).flatten().numpy(), stats.uniform(-10, 30).cdf).pvalue > 1e-3
    assert (drawn.perfect.sum(dim=2) == 1).all()
    counts = drawn.perfect.sum(dim=(0, 1)).numpy()
    assert stats.chisquare(counts).pvalue > 1e-3  # no link is the perfect one more often than another
    again = links(versions=40).draw(50, 5, generator=generator())
    assert torch.equal(again.snr, drawn.snr)
    assert torch.equal(again.perfect, drawn.perfect)


def test_an_expert_answers_the_clean_version_exactly_and_the_others_over_its_link(toy):
    expert, features = build(toy.EXPERT, generator=generator(1)), torch.randn(7, 8, generator=generator(2))
    snr = torch.tensor([[math.inf] * 7, [1.0] * 7])
    found = links().noisy_logits(expert, features, snr, generator=generator(3))
    draws = generator(3)
    send = Analog().send
    wanted = [predict(expert, features), *(predict(expert, send(features, one, generator=draws)) for one in snr)]
    assert torch.equal(found, torch.stack(wanted))
    assert torch.equal(found[0], found[1])
    assert not torch.isclose(found[0], found[2]).all(dim=1).any()


def test_known_logits_by_hand():
    """Node 1 of 4 reaches 0 and 2; expert 2 sent nonsense; versions 1 and 2."""
    draws = generator()
    kept = {str(expert): torch.randn(3, 2, 5, generator=draws) for expert in (0, 1, 2)}
    kept["2"] = kept["2"][:2]
    blocks = links(versions=2).draw(2, 3, generator=draws)
    known = known_logits(kept, own=1, reach=[0, 2, 1], num_nodes=4, blocks=blocks)
    assert known.mask.tolist() == [True, True, False, False]
    for version in range(3):
        for sample in range(2):
            for place, expert in enumerate([0, 2, 1]):
                perfect = version == 0 or bool(blocks.perfect[version - 1, sample, place])
                told = float(known.snr_db[version, sample, expert])
                assert told == (math.inf if perfect else float(to_db(blocks.snr[version - 1, sample, place])))
                wanted = torch.zeros(5) if expert == 2 else kept[str(expert)][0 if perfect else version, sample]
                assert torch.equal(known.logits[version, sample, expert], wanted)
    assert known.snr_db[:, :, 3].isnan().all()
    assert not known.logits[:, :, 3].any()


def test_features_travel_once_and_logits_in_every_version(toy):
    aware, naive = toy.channel_gates()
    _, messages = stage_messages(toy, aware, naive)
    assert [(m.call.stage, m.call.action) for m in messages] == [
        *(("gates", action) for action in ("features", "logits", "keep", "train", "train", "train")),
        *[("naive_gates", "train")] * 3,  # it uses the same logits
    ]
    versions = aware.links.versions
    sizes = {node: len(reply.tensors["features"]) for node, reply in messages[0].replies.items()}
    for node, reply in messages[0].replies.items():
        assert reply.tensors["snr"].shape == (versions, sizes[node], 2)  # two neighbours on the ring; the own link goes nowhere
    for node, request in messages[1].requests.items():
        for origin in toy.RING[node]:
            assert request.tensors[str(origin)].shape == (sizes[origin], 8)
            place = toy.RING[origin].index(node)
            assert torch.equal(request.tensors[f"{origin}.snr"], messages[0].replies[origin].tensors["snr"][:, :, place])
            assert messages[1].replies[node].tensors[str(origin)].shape == (1 + versions, sizes[origin], toy.CLASSES)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda snr: -snr, "a negative SNR"),
        (lambda snr: snr * math.nan, "NaN or infinity in snr"),
        (lambda snr: snr[:1], r"snr is torch.float32 \[1, 12, 2\], wanted torch.float32 \[3, 12, 2\]"),
    ],
)
def test_a_node_that_sends_absurd_snrs_is_refused_and_the_others_go_on(toy, spoil, reason):
    def corrupt(call, node, reply):
        if node != 2 or call.action != "features":
            return reply
        return Payload(reply.tensors | {"snr": spoil(reply.tensors["snr"])})

    stages, notes = (*toy.before_gates(), toy.channel_gates()[0]), toy.Notes()
    wire = toy.exchange(stages, corrupt=corrupt)
    state = run(stages, wire, watcher=notes)["gates"]
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert re.fullmatch(f"node-2: {reason}", notes.records[-3].refused[0])
    assert set(wire.inner._members[1].memory.read("logits", before=10**6)) == {"0", "1", "2"}  # node 2 still answers for others


def test_the_first_stage_is_the_ordinary_training(toy):
    """While links are perfect the gate's feature branch learns what the naive gate does, bit for bit, and the SNR branch rests."""
    clean = replace(toy.LINKS, clean_rounds=2)
    plain, _ = stage_messages(toy, toy.gates(gate=toy.NAIVE, balance=0.0, rounds=2))
    start = toy.channel_gates(links=clean)[0].start({})
    stages = (*toy.before_gates(), toy.channel_gates(links=clean)[0])
    wire = toy.exchange(stages)
    run(stages, wire)
    before_noise = [message for message in wire.record if message.call.action == "train" and message.call.stage == "gates"][2].requests[0]
    for name, tensor in before_noise.tensors.items():
        if name.startswith("branch."):
            torch.testing.assert_close(tensor, start[name])  # not equal: means of equal numbers round
        else:
            assert torch.equal(tensor, plain["gates"][name]), name


def test_the_second_stage_moves_the_snr_branch_and_hides_snrs_from_the_naive_gate(toy):
    aware, naive = toy.channel_gates()
    states, _ = stage_messages(toy, aware, naive)
    start = aware.start({})
    assert not torch.equal(states["gates"]["branch.output.weight"], start["branch.output.weight"])
    assert not any(name.startswith("branch.") for name in states["naive_gates"])


def test_training_teaches_what_links_are_worth(toy):
    """Links of -25 to 25 dB and two experts asked: better links raise scores, and the gate that sees them is right at least as often."""
    aware, naive = toy.channel_gates(links=links(-25, 25, versions=8), neighbours=toy.ALL, k=2, rounds=30)
    whole = (toy.fedsc(rounds=1), toy.experts(rounds=15), aware, naive)
    notes, wire = toy.Notes(), toy.exchange(whole)
    states = run(whole, wire, watcher=notes)
    gate = aware.gate_of(states["gates"], wire.inner._members[0].memory)
    worth = gate.link_scores(torch.zeros(1, 8), torch.tensor([[-15.0, 0.0, 15.0]])).squeeze(0)
    assert worth[0] < worth[1] < worth[2]
    last = {record.stage: record.metrics["nmoe_train"] for record in notes.records if "gates" in record.stage}
    assert last["gates"] >= last["naive_gates"]


@pytest.mark.parametrize("sync", [NeighbourSync(), FullSync()])
def test_the_snr_branch_is_averaged_over_all_nodes(toy, sync):
    aware, _ = toy.channel_gates(scheme=FedGate(sync=sync), rounds=2)
    states, messages = stage_messages(toy, aware)
    last = [message for message in messages if message.call.action == "train"][-1].replies
    sizes = {node: float(reply.facts["samples"]) for node, reply in last.items()}
    for name in (name for name in states["gates"] if name.startswith("branch.")):
        mean = sum(sizes[node] * reply.tensors[name] for node, reply in last.items()) / sum(sizes.values())
        torch.testing.assert_close(states["gates"][name], mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"versions": 0}, {"clean_rounds": -1}, {"balance": -0.1}, {"balance": math.nan}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="at least 1 version, 0 clean rounds and a balance of 0 are wanted, got"):
        links(**wrong)


def test_a_run_without_a_noisy_round_is_refused(toy):
    with pytest.raises(ValueError, match="fewer clean rounds than the 3 rounds are wanted, got 3"):
        toy.gates(gate=toy.AWARE, links=replace(toy.LINKS, clean_rounds=3))
