"""The program of a training run: stages with their hyperparameters, and nodes with their data, from the options alone.

Any process that has the options can act as any node of the run; that is what goes to Ray's workers.

Hyperparameters are ours (spec: the paper's are not known). For grey images they come from trials on digits (LOG.md). For colour images
optimiser, batch, epochs and gradient clipping are those of FedSC's code, with a narrower network. For both, mu is 2 (the code has 4 for
CIFAR-10 and 2 for SVHN), embeddings are half as long as features (equal in the code), a matrix takes 3 passes (5; ours, for time) and
alpha ends at 1/J, the unbiased value (0.2). Gates train without noise: top-k training reached 0.947 without and 0.939 with it in the
project's trial.
"""

import dataclasses
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from nmoe.core.bundle import ModelSpec, Provenance
from nmoe.core.seeds import numpy_generator
from nmoe.data import ImageDataset, TrainTest, load, views_for
from nmoe.federate import (
    FedAvg,
    FedCE,
    FedSC,
    GateLinks,
    Gates,
    HeadSync,
    LocalExperts,
    Node,
    NodeMemory,
    Program,
    Stage,
    TrunkSync,
    WriteBundles,
    node_name,
)
from nmoe.learn import Adam, LocalTraining, Sgd
from nmoe.moe import Mix
from nmoe.recipes.options import TrainOptions
from nmoe.recipes.recruited import drawn_samples

PIXELS = {  # mean and standard deviation per channel of the training images, published values; digits measured
    "digits": ((0.3053,), (0.3762,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
TRUNK_DIM = 64  # hidden layer of gates that synchronise trunk and head differently
EXPERT_ROUNDS = 5
CLEAN_SHARE = 0.25  # of the gate's rounds, with perfect links, before those with noise
VERSIONS = 8  # blocks drawn per sample and link for the gate's training
FEATURES, EXPERTS, GATES, NAIVE_GATES, BUNDLES, FEDAVG = "features", "experts", "gates", "naive_gates", "bundles", "fedavg"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainProgram(Program):
    """Stages and nodes of a run.

    Attributes:
        options: what the user said.
        run_folder: where node memories and bundles go, or None for this process's memory alone.
        noise_multiplier: noise of FedSC's matrices, calibrated once by ``calibrated``; 0 for none.
        revision: git revision written into bundles.
        frame: stands for a data set that only its owners can read, by name, image shape and classes; None to load it.
    """

    options: TrainOptions
    run_folder: Path | None
    noise_multiplier: float
    revision: str
    frame: ImageDataset | None = None

    def data(self) -> TrainTest:
        """Return the run's data set, loaded once per process."""
        if self.frame is not None:
            return TrainTest(train=self.frame, test=self.frame)
        options = self.options
        return _load(options.data, options.data_dir, options.test, options.seed)

    def assignment(self) -> list[Int64[np.ndarray, " sample"]]:
        """Return the training images of each member, drawn from the seed."""
        return _assign(self.options)

    def names(self) -> tuple[str, ...]:
        """Return the members' names; a node that is not recruited leaves a gap in their numbers, not in their places."""
        return tuple(node_name(number) for number in self.options.members())

    def pooled(self) -> ImageDataset:
        """Return all training images that somebody trains on."""
        train = self.data().train
        return train if self.options.recruitment is None else train.subset(np.concatenate(self.assignment()))

    def node(self, number: int) -> Node:
        folder, name = self.run_folder, self.names()[number]
        return Node(
            number=number,
            seed=self.options.seed,
            data=self.data().train.subset(self.assignment()[number]),
            memory=NodeMemory(node_memory_folder(folder, number) if folder else None),
            bundle_folder=folder / "bundles" / name if folder else None,
            label=name,
        )

    def stages(self) -> Sequence[Stage]:
        gates = self.gates()
        train = self.data().train
        provenance = Provenance(recipe="train", seed=self.options.seed, data=self.options.data, git_revision=self.revision)
        bundles = WriteBundles(
            name=BUNDLES,
            gates=gates,
            image_shape=train.image_shape,
            num_classes=train.num_classes,
            class_names=train.label_names,
            node_names=self.names(),
            provenance=provenance,
        )
        naive = () if gates.links is None else (self.naive_gates(),)
        return (self.features(), self.experts(), gates, bundles, *naive, self.fedavg())

    def features(self) -> Stage:
        """Return stage 1."""
        options = self.options
        if options.extractor == "fedce":
            head = ModelSpec(kind="linear", arguments={"feature_dim": self.feature_dim(), "num_classes": self.data().train.num_classes})
            return FedCE(classifier=self._classifier(FEATURES, head))
        mean, deviation = self.pixels()
        return FedSC(
            name=FEATURES,
            rounds=options.rounds,
            seed=options.seed,
            extractor=self.extractor(),
            embedding_dim=self.feature_dim() // 2,
            pixel_mean=mean,
            pixel_std=deviation,
            views=views_for(self.data().train.name, self.data().train.image_shape),
            training=self._extractor_training(),
            mu=2.0,  # FedSC's SVHN script; on digits the probe reaches 0.98 with 2, 0.95 with 4
            last_alpha=1 / len(options.members()),
            passes=3,
            participation=options.participation,
            noise_multiplier=self.noise_multiplier,
        )

    def experts(self) -> LocalExperts:
        """Return stage 2."""
        return LocalExperts(
            name=EXPERTS,
            rounds=EXPERT_ROUNDS,
            seed=self.options.seed,
            features_from=FEATURES,
            extractor=self.extractor(),
            expert=self.expert(),
            training=LocalTraining(optimiser=Adam(lr=3e-3), batch_size=512, epochs=10),
        )

    def gates(self) -> Gates:
        """Return stage 3."""
        options, links = self.options, self.links()
        return Gates(
            name=GATES,
            rounds=options.gate_rounds,
            seed=options.seed,
            extractor=self.extractor(),
            expert=self.expert(),
            gate=self.naive_gate() if links is None else self.channel_aware_gate(),
            scheme=options.scheme(),
            neighbours=options.neighbourhood(),
            k=options.k,
            mix=Mix(options.mix),
            balance=0.0,
            training=LocalTraining(optimiser=Sgd(lr=0.5), batch_size=512, epochs=2),
            links=links,
        )

    def links(self) -> GateLinks | None:
        """Return the radio links that the gate trains over, or None where they are perfect."""
        options, radio = self.options, self.options.radio()
        if radio is None:
            return None
        clean_rounds = max(1, round(CLEAN_SHARE * options.gate_rounds))
        return GateLinks(radio=radio, versions=VERSIONS, clean_rounds=clean_rounds, balance=options.collapse_weight)

    def naive_gates(self) -> Gates:
        """Return the control of a run with a channel: a gate trained under the same noise, but not told of SNRs."""
        return dataclasses.replace(self.gates(), name=NAIVE_GATES, gate=self.naive_gate(), logits_of=GATES)

    def naive_gate(self) -> ModelSpec:
        """Return how to build a gate that sees features alone."""
        return ModelSpec(kind="top_k", arguments=self._gate_sizes() | {"noisy": False})

    def channel_aware_gate(self) -> ModelSpec:
        """Return how to build a gate that sees features and links."""
        return ModelSpec(kind="channel_aware", arguments=self._gate_sizes() | {"joint": self.options.channel_gate == "joint"})

    def _gate_sizes(self) -> dict[str, int | float | bool | str]:
        layered = isinstance(self.options.scheme().synchronisation(), TrunkSync | HeadSync)
        return {"feature_dim": self.feature_dim(), "num_experts": len(self.options.members()), "trunk_dim": TRUNK_DIM if layered else 0}

    def fedavg(self) -> FedAvg:
        """Return the control: one FedAvg classifier with the extractor and an expert's shape as head."""
        return self._classifier(FEDAVG, self.expert())

    def extractor(self) -> ModelSpec:
        """Return how to build the extractor: convolutions for grey images, Fixup-ResNet-20 for colour."""
        channels = self.data().train.image_shape[2]
        if channels == 1:
            return ModelSpec(kind="conv", arguments={"in_channels": channels, "feature_dim": 128})
        return ModelSpec(kind="fixup_resnet", arguments={"in_channels": channels, "widen": self.options.widen})

    def feature_dim(self) -> int:
        """Return numbers per feature vector."""
        return 128 if self.data().train.image_shape[2] == 1 else 64 * self.options.widen

    def expert(self) -> ModelSpec:
        """Return how to build an expert: half as many hidden units as features, as in the spec (512 -> 256)."""
        dim = self.feature_dim()
        return ModelSpec(kind="mlp", arguments={"feature_dim": dim, "hidden_dim": dim // 2, "num_classes": self.data().train.num_classes})

    def _classifier(self, name: str, head: ModelSpec) -> FedAvg:
        mean, deviation = self.pixels()
        return FedAvg(
            name=name,
            rounds=self.options.rounds,
            seed=self.options.seed,
            extractor=self.extractor(),
            head=head,
            pixel_mean=mean,
            pixel_std=deviation,
            training=self._extractor_training(),
        )

    def _extractor_training(self) -> LocalTraining:
        if self.data().train.image_shape[2] == 1:
            return LocalTraining(optimiser=Adam(lr=1e-3), batch_size=512, epochs=5, max_gradient_norm=3.0)
        optimiser = Sgd(lr=0.03, momentum=0.9, weight_decay=5e-4)  # FedSC's code
        return LocalTraining(optimiser=optimiser, batch_size=512, epochs=5, max_gradient_norm=3.0)

    def pixels(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation per channel that images are normalised by."""
        train = self.data().train
        half = (0.5,) * train.image_shape[2]
        return PIXELS.get(train.name, (half, half))


def program_of(options: TrainOptions, run_folder: Path | None) -> TrainProgram:
    """Make the program of a run, calibrating the privacy noise if a budget is given.

    Raises:
        ValueError, BadFile: when options and data do not fit together; nothing has been written then.
    """
    budget = options.budget()
    noise = budget.noise_multiplier(options.rounds) if budget else 0.0
    program = TrainProgram(options=options, run_folder=run_folder, noise_multiplier=noise, revision=git_revision())
    train, test = program.data().train, program.data().test
    for name, indices in zip(program.names(), program.assignment(), strict=True):
        seen = np.unique(train.labels[indices])
        if not np.isin(seen, test.labels).any():
            raise ValueError(f"{name} has the classes {seen.tolist()} and the test set has no image of them")
    check_start(program.stages())
    return program


def check_start(stages: Sequence[Stage]) -> None:
    """Start every stage once and forget it: what cannot start should not be found out hours later.

    Raises:
        ValueError: when a stage's parts do not fit together.
    """
    for stage in stages:
        if stage.name != BUNDLES:  # it starts from gates that do not exist yet
            stage.start({FEATURES: {}})


def node_memory_folder(run: Path, number: int) -> Path:
    """Return where a node of a run keeps its memory."""
    return run / "checkpoint" / "nodes" / node_name(number)


def git_revision() -> str:
    """Return the git revision of the source tree nmoe runs from, or ``unknown`` for an installed package."""
    try:
        folder = Path(__file__).parent
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


@lru_cache(maxsize=2)
def _load(data: str, data_dir: str | None, test: str | None, seed: int) -> TrainTest:
    return load(data, Path(data_dir) if data_dir else None, Path(test) if test else None, seed)


@lru_cache(maxsize=2)
def _assign(options: TrainOptions) -> list[Int64[np.ndarray, " sample"]]:
    train: ImageDataset = _load(options.data, options.data_dir, options.test, options.seed).train
    dealt = options.partition().assign(train.labels, options.nodes, numpy_generator(options.seed, "partition"))
    if options.recruitment is None:
        return dealt
    return [drawn_samples(dealt[node], options.recruitment[node], seed=options.seed, node=node) for node in options.members()]
