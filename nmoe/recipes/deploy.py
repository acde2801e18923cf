"""Deployment: the same training over SuperLink and SuperNodes, where every node is a machine with its own disk.

Flower starts a process for every message, so whatever a node keeps lies in its ``home``: ``home/runs/<name of the run>/memory`` and, at the
end, its bundle in ``home/bundles/node-<i>``. The server keeps a run folder with config.json, metrics.jsonl and its part of the checkpoint;
started again with the same folder it continues. The FedAvg control is left out: it is a measurement for simulations.

What a node reads: the run's options, which come with the run, and its own node config (``NODE_KEYS``).
"""

import dataclasses
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from nmoe.core.errors import BadFile, EngineError
from nmoe.core.files import read_json, write_json
from nmoe.data import ImageDataset
from nmoe.data.npz import read_dataset
from nmoe.federate import FedSC, Node, NodeMemory, Program, Record, Stage, Watcher, node_name, run
from nmoe.federate.flower import Context, FlowerExchange, Grid
from nmoe.recipes.options import TrainOptions
from nmoe.recipes.program import BUNDLES, FEDAVG, TrainProgram, check_start, git_revision

NODE_KEYS = ("partition-id", "num-partitions", "home", "data", "data-dir")
RUN_KEYS = ("image-shape", "classes", "out", "timeout-s", "join-timeout-s")  # what the run has besides the options of nmoe train
LEFT_OUT = ("test", "engine", "recruitment")  # options of nmoe train that mean nothing here
Config = Mapping[str, bool | float | int | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployedProgram(Program):
    """The stages of a run and the one node that lives on this machine.

    Attributes:
        training: the run.
        number: the node's number.
        own_data: the node's own labelled images; None to take its part of the run's data set.
        memory_folder: where it keeps its memory.
        bundle_folder: where its bundle goes.
        noise_seed: seed of the noise on what it shares, known to nobody else; None without privacy noise.
    """

    training: TrainProgram
    number: int
    own_data: Path | None
    memory_folder: Path
    bundle_folder: Path
    noise_seed: int | None

    def stages(self) -> Sequence[Stage]:
        stages = deployed_stages(self.training)
        if self.noise_seed is None:
            return stages
        features = self.training.features()
        assert isinstance(features, FedSC)  # options allow noise with it alone
        # the run's seed is known to the server, which could draw the same noise and subtract it
        return [dataclasses.replace(features, seed=self.noise_seed), *stages[1:]]

    def node(self, number: int) -> Node:
        if number != self.number:
            raise ValueError(f"this machine is {node_name(self.number)}, asked for {node_name(number)}")
        return Node(
            number=number,
            seed=self.training.options.seed,
            data=self._data(),
            memory=NodeMemory(self.memory_folder),
            bundle_folder=self.bundle_folder,
        )

    def _data(self) -> ImageDataset:
        whole = self.training.data().train
        if self.own_data is None:
            return whole.subset(self.training.assignment()[self.number])
        own = read_dataset(self.own_data, name=whole.name, label_names=whole.label_names)
        if own.image_shape != whole.image_shape:
            raise ValueError(f"{self.own_data}: images must be {list(whole.image_shape)} as the run says, got {list(own.image_shape)}")
        return own


def client_program(context: Context, run_name: str) -> DeployedProgram:
    """Make the program of the SuperNode whose context this is.

    Args:
        context: Flower's, with the run's options and the node's own config.
        run_name: name of the run, from the server.

    Raises:
        ValueError, BadFile: when options, node config and data do not fit together.
    """
    config = context.node_config
    unknown = sorted(config.keys() - set(NODE_KEYS))
    if unknown:
        raise ValueError(f"node config may give {', '.join(NODE_KEYS)}, got {unknown[0]}")
    if not re.fullmatch("[0-9a-f]{16}", run_name):
        raise ValueError(f"the name of a run is 16 hexadecimal digits, got {run_name!r}")
    training = training_of(context.run_config)
    number, nodes = config.get("partition-id"), training.options.nodes
    if config.get("num-partitions") != nodes:
        raise ValueError(f"node config gives num-partitions={config.get('num-partitions')}, the run has nodes={nodes}")
    if not isinstance(number, int) or not 0 <= number < nodes:
        raise ValueError(f"node config must give partition-id between 0 and {nodes - 1}, got {number!r}")
    home = _path("node config", "home", config)
    own_data = _path("node config", "data", config) if "data" in config else None
    if "data-dir" in config:
        training = dataclasses.replace(training, options=dataclasses.replace(training.options, data_dir=str(config["data-dir"])))
    if own_data is None:
        training = _with_its_data(training)
    kept = home / "runs" / run_name
    noise = _noise(kept / "noise.json", training.options)
    return DeployedProgram(
        training=dataclasses.replace(training, noise_multiplier=noise.multiplier if noise else 0.0),
        number=number,
        own_data=own_data,
        memory_folder=kept / "memory",
        bundle_folder=home / "bundles" / node_name(number),
        noise_seed=noise.seed if noise else None,
    )


def server_main(grid: Grid, context: Context) -> None:
    """Run the server's side of a training run, or continue it.

    Args:
        grid: Flower's door to the nodes.
        context: Flower's, with the run's options.

    Raises:
        ValueError, BadFile: when options, data and run folder do not fit together.
        EngineError: when nodes do not join or none answers, or a node is without its bundle at the end.
    """
    torch.set_num_threads(1)  # one thread makes every engine sum alike
    config = context.run_config
    training, out = training_of(config), _path("run config", "out", config)
    if (budget := training.options.budget()) is not None:
        budget.noise_multiplier(training.options.rounds)  # raises what the nodes would raise
    stages = deployed_stages(training)
    check_start(stages)
    settings = _settings(training)
    run_name = _earlier_name(out, settings) or secrets.token_hex(8)
    exchange = FlowerExchange(
        grid,
        num_nodes=training.options.nodes,
        timeout_s=float(config["timeout-s"]),
        join_timeout_s=float(config["join-timeout-s"]),
        run_name=run_name,
    )
    write_json(out / "config.json", settings | {"run_name": run_name, "git_revision": training.revision})
    reporter = Reporter()
    run(stages, exchange, folder=out, watcher=reporter)
    if reporter.without_bundle:
        (out / "checkpoint" / f"{BUNDLES}.safetensors").unlink()  # the same run again repeats this stage
        raise EngineError(f"not every node has its bundle ({'; '.join(reporter.without_bundle)}): start the same run again when it is back")


class Reporter(Watcher):
    """Prints a line for every round, into the run's log.

    Attributes:
        without_bundle: one line per node that did not write its bundle.
    """

    def __init__(self) -> None:
        self.without_bundle: list[str] = []

    def seen(self, record: Record) -> None:
        numbers = "".join(f", {name} {value:.4g}" for name, value in record.metrics.items())
        print(f"{record.stage} {record.round}/{record.rounds}: {record.seconds:.1f} s, {record.bytes} bytes{numbers}", flush=True)
        for line in record.refused:
            print(f"  {line}", flush=True)
        if record.stage == BUNDLES:
            self.without_bundle = record.refused


def deployed_stages(training: TrainProgram) -> list[Stage]:
    """Return the stages of a deployment: all but the FedAvg control."""
    return [stage for stage in training.stages() if stage.name != FEDAVG]


def training_of(config: Config) -> TrainProgram:
    """Make the training program of a run's config, without noise: that is the business of whoever shares something.

    Raises:
        ValueError: when an option is unknown, missing or out of range.
    """
    names = {field.name: field.name.replace("_", "-") for field in dataclasses.fields(TrainOptions) if field.name not in LEFT_OUT}
    wanted = {*names.values(), *RUN_KEYS}
    if wrong := sorted(config.keys() ^ wanted):
        raise ValueError(f"run config {'lacks' if wrong[0] in wanted else 'has no option'} {wrong[0]}")
    given: dict[str, Any] = {name: config[key] for name, key in names.items()}
    given |= {name: given[name] or None for name in ("data_dir", "channel", "snr")}
    given["dp_epsilon"] = _epsilon(str(given["dp_epsilon"]))
    options = TrainOptions(**given)
    return TrainProgram(
        options=options,
        run_folder=None,
        noise_multiplier=0.0,
        revision=git_revision(),
        frame=_frame(options.data, str(config["image-shape"]), int(config["classes"])),
    )


def _epsilon(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise ValueError(f"dp-epsilon must be a number, or empty for no noise, got {text!r}") from None


@lru_cache(maxsize=2)
def _frame(name: str, shape: str, classes: int) -> ImageDataset | None:
    """Return one blank image that stands for a data set the server does not have, or None when its shape is not given."""
    if not shape and classes == 0:
        return None
    sizes = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([13])", shape)
    if sizes is None or classes < 1:
        raise ValueError(f"image-shape and classes go together, such as '28x28x1' and 10, got {shape!r} and {classes}")
    blank = np.zeros((1, *(int(size) for size in sizes.groups())), dtype=np.uint8)
    return ImageDataset.from_arrays(name=name, images=blank, labels=np.zeros(1, dtype=np.int64), num_classes=classes)


def _with_its_data(training: TrainProgram) -> TrainProgram:
    """Return the program with the data set itself, which must be the one that its frame stands for."""
    loaded = dataclasses.replace(training, frame=None)
    if training.frame is not None:
        found, wanted = loaded.data().train, training.frame
        if (found.image_shape, found.num_classes) != (wanted.image_shape, wanted.num_classes):
            raise ValueError(
                f"{found.name} has images {list(found.image_shape)} and {found.num_classes} classes, "
                f"the run says {list(wanted.image_shape)} and {wanted.num_classes}"
            )
    return loaded


def _path(where: str, key: str, config: Config) -> Path:
    path = Path(str(config.get(key, "")))
    if not path.is_absolute():
        raise ValueError(f"{where} must give {key}, an absolute path on this machine, got {str(config.get(key, ''))!r}")
    return path


def _settings(training: TrainProgram) -> dict[str, Any]:
    """Return what must be the same when a run is continued."""
    frame = training.frame
    shape = None if frame is None else [*frame.image_shape, frame.num_classes]
    options = {name: value for name, value in dataclasses.asdict(training.options).items() if name not in LEFT_OUT}
    return options | {"runtime": "superlink", "image_shape_and_classes": shape}


def _earlier_name(out: Path, settings: Mapping[str, Any]) -> str | None:
    """Return the name of the run that ``out`` holds, or None when it holds nothing."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    earlier = read_json(out / "config.json")
    try:
        changed = [name for name in settings if name not in earlier or earlier[name] != settings[name]]
        name = str(earlier["run_name"])
    except (KeyError, TypeError) as error:
        raise BadFile(f"{out / 'config.json'} is not the configuration of a run over machines") from error
    if changed:
        was, now = earlier.get(changed[0]), settings[changed[0]]
        raise ValueError(f"run folder {out} holds a run with {changed[0]} {was!r}, this one has {now!r}: choose another out")
    return name


class Noise(NamedTuple):
    """A node's privacy noise in one run: the seed nobody else knows, and the noise over the sensitivity."""

    seed: int
    multiplier: float


def _noise(path: Path, options: TrainOptions) -> Noise | None:
    """Return the node's noise in this run, drawn and calibrated once and kept in a file; None when none is asked for."""
    budget = options.budget()
    if budget is None:
        return None
    if not path.exists():
        noise = Noise(seed=secrets.randbits(63), multiplier=budget.noise_multiplier(options.rounds))
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name("noise.new")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps(noise._asdict()), "utf-8")
        fresh.replace(path)
    return Noise(**read_json(path))
