"""Options: what a user says about a training run, checked, and written to config.json so that a resumed run is the same run."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmoe.channel.radio import Radio
from nmoe.core.errors import BadFile
from nmoe.core.files import read_json
from nmoe.data import Dirichlet, Iid, Partition, QuantitySkew, Shards
from nmoe.federate import (
    FedGate,
    FullSync,
    GateScheme,
    HeadSync,
    NeighbourSync,
    PeriodicSync,
    RanGate,
    Reading,
    RollGate,
    Synchronisation,
    TrunkSync,
)
from nmoe.learn import PrivacyBudget
from nmoe.moe import Mix
from nmoe.recipes.channel_options import CHANNEL_GATES, DEFAULT_SNR, parse_radio, read_number, wrong_choice

EXTRACTORS = ("fedsc", "fedce")
GATES = ("fedgate", "rangate", "rollgate")
ENGINES = ("local", "ray")
SYNCS = ("full", "trunk", "head", "every:M", "neighbours")
SPLITS = ("iid", "shards:M", "dirichlet:A", "quantity:A")
OF_CHANNEL = ("snr", "transmission", "channel_gate", "collapse_weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """All options of ``nmoe train`` and ``nmoe demo``; the defaults are the demo's.

    Attributes:
        data: name of a data set or path of an ``.npz`` file.
        data_dir: folder of a named data set's files.
        test: test file that goes with an ``.npz`` file.
        nodes: number of nodes.
        split: how the data is dealt to nodes, one of ``SPLITS``.
        neighbours: nodes each node can ask, its nearest on a ring; 0 for all others.
        k: experts asked per sample.
        extractor: how stage 1 learns, one of ``EXTRACTORS``.
        gate: who trains the gate, one of ``GATES``.
        gate_sync: what FedGate synchronises, one of ``SYNCS``.
        gate_reading: reading A or B of RanGate and RollGate.
        mix: ``probabilities`` or ``logits``.
        rounds: rounds of stage 1 and of the FedAvg control.
        gate_rounds: rounds of stage 3.
        participation: share of nodes in a FedSC round.
        widen: width factor of the Fixup-ResNet that colour images get.
        dp_epsilon: privacy of the shared matrices over the whole run; None for no noise.
        dp_delta: the delta that goes with it.
        channel: how the links to neighbours fade, one of ``CHANNELS``; None for perfect links.
        snr: range ``LOW:HIGH`` of the links' mean SNRs in dB; None for -10:20 with a channel.
        transmission: how features cross a link, one of ``TRANSMISSIONS``.
        channel_gate: form of the channel-aware gate, one of ``CHANNEL_GATES``.
        collapse_weight: weight of the penalty on gating collapse when the gate trains over noisy links.
        seed: seed of every draw.
        engine: one of ``ENGINES``.
        recruitment: samples that each node may train on, by number, 0 for a node that takes no part; None for all nodes and samples.
    """

    data: str = "digits"
    data_dir: str | None = None
    test: str | None = None
    nodes: int = 10
    split: str = "shards:2"
    neighbours: int = 0
    k: int = 2
    extractor: str = "fedsc"
    gate: str = "fedgate"
    gate_sync: str = "full"
    gate_reading: str = "A"
    mix: str = "probabilities"
    rounds: int = 24
    gate_rounds: int = 80
    participation: float = 1.0
    widen: int = 2
    dp_epsilon: float | None = None
    dp_delta: float = 1e-5
    channel: str | None = None
    snr: str | None = None
    transmission: str = "analog"
    channel_gate: str = "additive"
    collapse_weight: float = 0.01
    seed: int = 0
    engine: str = "local"
    recruitment: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _one_of("extractor", self.extractor, EXTRACTORS)
        _one_of("gate", self.gate, GATES)
        _one_of("gate reading", self.gate_reading, tuple(reading.value for reading in Reading))
        _one_of("mix", self.mix, tuple(mix.value for mix in Mix))
        _one_of("engine", self.engine, ENGINES)
        for name in ("nodes", "k", "rounds", "gate_rounds", "widen"):
            _at_least_one(name, getattr(self, name))
        self._check_recruitment()
        num_members = len(self.members())
        if not 0 <= self.neighbours < num_members:
            raise ValueError(f"neighbours must be between 0 (all) and {num_members - 1}, got {self.neighbours}")
        if not (0 < self.participation <= 1 and math.isfinite(self.participation)):
            raise ValueError(f"participation must be above 0 and at most 1, got {self.participation}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if not 0 < self.dp_delta < 1:
            raise ValueError(f"dp delta must be between 0 and 1, got {self.dp_delta}")
        if self.budget() is not None and self.extractor != "fedsc":
            raise ValueError(f"dp epsilon protects the matrices that fedsc shares, got extractor {self.extractor}, which shares none")
        self._check_channel()
        self.partition()
        self.scheme()

    def _check_channel(self) -> None:
        _one_of("channel gate", self.channel_gate, CHANNEL_GATES)
        if not (self.collapse_weight >= 0 and math.isfinite(self.collapse_weight)):
            raise ValueError(f"collapse weight must be at least 0, got {self.collapse_weight}")
        if self.channel is None:
            for field in dataclasses.fields(self):
                given = getattr(self, field.name)
                if field.name in OF_CHANNEL and given != field.default:
                    raise ValueError(
                        f"{field.name.replace('_', ' ')} says how a channel is used and needs one, got {given} without a channel"
                    )
        elif self.gate_rounds < 2:
            raise ValueError(f"gate_rounds must be at least 2 with a channel, one without noise and one with, got {self.gate_rounds}")
        self.radio()

    def _check_recruitment(self) -> None:
        if self.recruitment is None:
            return
        if len(self.recruitment) != self.nodes or min(self.recruitment) < 0:
            raise ValueError(f"recruitment must be one number of samples per node, {self.nodes}, each at least 0, got {self.recruitment}")
        if not any(self.recruitment):
            raise ValueError("recruitment must leave at least one node with samples, got none")

    def members(self) -> tuple[int, ...]:
        """Return the numbers of the nodes that take part: all, or those that are recruited."""
        if self.recruitment is None:
            return tuple(range(self.nodes))
        return tuple(node for node, samples in enumerate(self.recruitment) if samples > 0)

    def radio(self) -> Radio | None:
        """Return the links to neighbours, or None where they are perfect."""
        return None if self.channel is None else parse_radio(self.channel, self.snr or DEFAULT_SNR, self.transmission)

    def budget(self) -> PrivacyBudget | None:
        """Return the privacy budget, or None for no noise."""
        return None if self.dp_epsilon is None else PrivacyBudget(epsilon=self.dp_epsilon, delta=self.dp_delta)

    def partition(self) -> Partition:
        """Return how data is dealt to nodes."""
        return parse_split(self.split)

    def scheme(self) -> GateScheme:
        """Return who trains the gate and what travels."""
        reading = Reading(self.gate_reading)
        if self.gate == "rangate":
            return RanGate(reading=reading)
        if self.gate == "rollgate":
            return RollGate(reading=reading)
        return FedGate(sync=parse_sync(self.gate_sync))

    def neighbourhood(self) -> tuple[tuple[int, ...], ...]:
        """Return for every member, by its place, the places of those it can ask: all others, or its nearest on a ring."""
        count = len(self.members())
        if self.neighbours == 0:
            return tuple(tuple(other for other in range(count) if other != node) for node in range(count))
        steps = [step * sign for step in range(1, count) for sign in (1, -1)][: self.neighbours]
        return tuple(tuple(sorted({(node + step) % count for step in steps})) for node in range(count))


def read_options(run: Path) -> TrainOptions:
    """Read the options of a run folder.

    Raises:
        BadFile: when config.json is missing or not a run's.
    """
    config = read_json(run / "config.json")
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    try:
        options: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in config.items() if name in names
        }
        return TrainOptions(**options)
    except (AttributeError, TypeError, ValueError) as error:
        raise BadFile(f"{run / 'config.json'} is not the configuration of a run: {error}") from error


def parse_split(text: str) -> Partition:
    """Read ``iid``, ``shards:M``, ``dirichlet:A`` or ``quantity:A``.

    Raises:
        ValueError: when it is none of them or its number is out of range.
    """
    kind, _, number = text.partition(":")
    if text == "iid":
        return Iid()
    if kind == "shards":
        return Shards(classes_per_node=read_number("split", text, number, int, SPLITS))
    if kind == "dirichlet":
        return Dirichlet(alpha=read_number("split", text, number, float, SPLITS))
    if kind == "quantity":
        return QuantitySkew(alpha=read_number("split", text, number, float, SPLITS))
    raise wrong_choice("split", text, SPLITS)


def parse_sync(text: str) -> Synchronisation:
    """Read ``full``, ``trunk``, ``head``, ``every:M`` or ``neighbours``.

    Raises:
        ValueError: when it is none of them.
    """
    plain: dict[str, type[FullSync | TrunkSync | HeadSync | NeighbourSync]] = {
        "full": FullSync,
        "trunk": TrunkSync,
        "head": HeadSync,
        "neighbours": NeighbourSync,
    }
    if text in plain:
        return plain[text]()
    kind, _, number = text.partition(":")
    if kind == "every":
        return PeriodicSync(read_number("gate sync", text, number, int, SYNCS))
    raise wrong_choice("gate sync", text, SYNCS)


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise wrong_choice(name, value, choices)


def _at_least_one(name: str, value: Any) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
