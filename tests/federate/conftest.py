"""A small federated world: six nodes with a few tiny images each, every stage in it, and wires that record, corrupt or break."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nmoe.channel.analog import Analog
from nmoe.channel.fading import Rayleigh
from nmoe.channel.radio import Radio
from nmoe.core.bundle import ModelSpec, Provenance
from nmoe.data import DigitViews, ImageDataset
from nmoe.federate import (
    Answers,
    Call,
    Exchange,
    FedAvg,
    FedCE,
    FedGate,
    FedSC,
    FullSync,
    GateLinks,
    Gates,
    HeadSync,
    LocalExchange,
    LocalExperts,
    NeighbourSync,
    Node,
    NodeMemory,
    Payload,
    PeriodicSync,
    Program,
    RanGate,
    Reading,
    Record,
    RollGate,
    Stage,
    State,
    TrunkSync,
    Watcher,
    WriteBundles,
    node_name,
)
from nmoe.learn import Adam, LocalTraining, Sgd
from nmoe.moe import Mix

NODES = 6
CLASSES = 4
EXTRACTOR = ModelSpec(kind="conv", arguments={"in_channels": 1, "feature_dim": 8})
EXPERT = ModelSpec(kind="mlp", arguments={"feature_dim": 8, "hidden_dim": 6, "num_classes": CLASSES})
HEAD = ModelSpec(kind="linear", arguments={"feature_dim": 8, "num_classes": CLASSES})
GATE = ModelSpec(kind="top_k", arguments={"feature_dim": 8, "num_experts": NODES, "trunk_dim": 5, "noisy": True})
AWARE = ModelSpec(kind="channel_aware", arguments={"feature_dim": 8, "num_experts": NODES, "trunk_dim": 5, "joint": False})
NAIVE = ModelSpec(kind="top_k", arguments={"feature_dim": 8, "num_experts": NODES, "trunk_dim": 5, "noisy": False})
RADIO = Radio(fading=Rayleigh(), transmission=Analog(), low_db=-15.0, high_db=15.0)
LINKS = GateLinks(radio=RADIO, versions=3, clean_rounds=1, balance=0.01)
RING = tuple(tuple(sorted(((node - 1) % NODES, (node + 1) % NODES))) for node in range(NODES))
ALL = tuple(tuple(other for other in range(NODES) if other != node) for node in range(NODES))
TRAINING = LocalTraining(optimiser=Sgd(lr=0.05, momentum=0.5), batch_size=10, epochs=1)


def local_data(number: int) -> ImageDataset:
    """Return 8 + 2 x number images of two classes, each a bright quarter in noise."""
    draws = np.random.default_rng(number)
    size = 8 + 2 * number
    labels = np.array([number % CLASSES, (number + 1) % CLASSES])[np.arange(size) % 2].astype(np.int64)
    images = draws.integers(0, 120, (size, 8, 8)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[row : row + 4, column : column + 4] += 130
    return ImageDataset.from_arrays(name="toy", images=images, labels=labels, num_classes=CLASSES)


def fedavg(**changes: object) -> FedAvg:
    whole = FedAvg(name="fedavg", rounds=3, seed=5, extractor=EXTRACTOR, head=HEAD, pixel_mean=(0.4,), pixel_std=(0.3,), training=TRAINING)
    return replace(whole, **changes)


def fedsc(**changes: object) -> FedSC:
    whole = FedSC(
        name="features",
        rounds=3,
        seed=5,
        extractor=EXTRACTOR,
        embedding_dim=4,
        pixel_mean=(0.4,),
        pixel_std=(0.3,),
        views=DigitViews(),
        training=LocalTraining(optimiser=Adam(lr=1e-3), batch_size=14, epochs=1),
        mu=2.0,
        last_alpha=1 / NODES,
        passes=1,
        participation=1.0,
        noise_multiplier=0.0,
    )
    return replace(whole, **changes)


def experts(**changes: object) -> LocalExperts:
    training = LocalTraining(optimiser=Adam(lr=0.02), batch_size=14, epochs=2)
    whole = LocalExperts(name="experts", rounds=2, seed=5, features_from="features", extractor=EXTRACTOR, expert=EXPERT, training=training)
    return replace(whole, **changes)


def gates(**changes: object) -> Gates:
    whole = Gates(
        name="gates",
        rounds=3,
        seed=5,
        extractor=EXTRACTOR,
        expert=EXPERT,
        gate=GATE,
        scheme=FedGate(),
        neighbours=RING,
        k=2,
        mix=Mix.PROBABILITIES,
        balance=0.1,
        training=LocalTraining(optimiser=Sgd(lr=0.3), batch_size=14, epochs=1),
    )
    return replace(whole, **changes)


def channel_gates(**changes: object) -> tuple[Gates, Gates]:
    """Return the channel-aware gates and the naive ones that train on the same logits."""
    whole = gates(**{"gate": AWARE, "links": LINKS, "balance": 0.0} | changes)
    return whole, replace(whole, name="naive_gates", gate=NAIVE, logits_of="gates")


def bundles(of: Gates) -> WriteBundles:
    provenance = Provenance(recipe="test", seed=5, data="toy", git_revision="none")
    return WriteBundles(name="bundles", gates=of, image_shape=(8, 8, 1), num_classes=CLASSES, provenance=provenance)


def before_gates() -> tuple[Stage, ...]:
    """Return the shortest stages 1 and 2."""
    return (fedsc(rounds=1), experts(rounds=1))


def with_sync(sync: object) -> tuple[Stage, ...]:
    return (*before_gates(), gates(scheme=FedGate(sync=sync)))


@dataclass(frozen=True)
class Toy(Program):
    """The program of a toy run; node memories lie in a folder or in this process."""

    parts: tuple[Stage, ...]
    folder: Path | None = None

    def stages(self) -> Sequence[Stage]:
        return self.parts

    def node(self, number: int) -> Node:
        folder = self.folder
        return Node(
            number=number,
            seed=5,
            data=local_data(number),
            memory=NodeMemory(folder / "nodes" / node_name(number) if folder else None),
            bundle_folder=folder / "bundles" / node_name(number) if folder else None,
        )


@dataclass
class Message:
    """One exchange as the wire saw it."""

    call: Call
    requests: dict[int, Payload]
    replies: dict[int, Payload]


@dataclass
class Wire(Exchange):
    """Carries messages by another exchange; may record, corrupt, lose or break on the way."""

    inner: Exchange
    record: list[Message] = field(default_factory=list)
    corrupt: Callable[[Call, int, Payload], Payload] = lambda call, node, reply: reply
    fail: Callable[[Call, int], str | None] = lambda call, node: None
    kill_at: int | None = None

    def __post_init__(self) -> None:
        super().__init__(self.inner.nodes)

    def carry(self, call: Call, requests: Mapping[int, Payload]) -> Answers:
        lost = {node: reason for node in requests if (reason := self.fail(call, node))}
        replies, failures = self.inner.carry(call, {node: request for node, request in requests.items() if node not in lost})
        replies = {node: self.corrupt(call, node, reply) for node, reply in replies.items()}
        self.record.append(Message(call, dict(requests), dict(replies)))
        if call.clock == self.kill_at:
            raise Killed
        return Answers(replies, failures | lost)


class Notes(Watcher):
    """Keeps every record."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def seen(self, record: Record) -> None:
        self.records.append(record)


class Killed(BaseException):
    """The process died here."""


def exchange(stages: Sequence[Stage], *, folder: Path | None = None, threads: int = 1, nodes: int = NODES, **wire: object) -> Wire:
    """Return a wire over fresh nodes."""
    return Wire(LocalExchange(Toy(tuple(stages), folder), range(nodes), threads=threads), **wire)


def same_state(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def same_states(one: Mapping[str, State], other: Mapping[str, State]) -> bool:
    return one.keys() == other.keys() and all(same_state(one[name], other[name]) for name in one)


EXAMPLES: dict[type, list[tuple[Stage, ...]]] = {
    FedAvg: [(fedavg(),)],
    FedCE: [(FedCE(classifier=fedavg(name="features")),)],
    FedSC: [(fedsc(),), (fedsc(participation=0.4, noise_multiplier=0.5),)],
    LocalExperts: [(fedsc(rounds=1), experts())],
    Gates: [
        (*before_gates(), gates(neighbours=ALL, k=3, mix=Mix.LOGITS, balance=0.0)),
        (*before_gates(), *channel_gates(scheme=FedGate(sync=TrunkSync()))),
    ],
    WriteBundles: [(*before_gates(), gates(rounds=2), bundles(gates(rounds=2)))],
    FullSync: [with_sync(FullSync())],
    TrunkSync: [with_sync(TrunkSync())],
    HeadSync: [with_sync(HeadSync())],
    PeriodicSync: [with_sync(PeriodicSync(period=2))],
    NeighbourSync: [with_sync(NeighbourSync())],
    FedGate: [with_sync(FullSync())],
    RanGate: [(*before_gates(), gates(scheme=RanGate(reading=reading))) for reading in Reading],
    RollGate: [(*before_gates(), gates(scheme=RollGate(reading=reading))) for reading in Reading],
}


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    """Everything above, for tests that cannot import a conftest by name."""
    return SimpleNamespace(**{name: value for name, value in globals().items() if not name.startswith("__")})
