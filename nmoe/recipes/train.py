"""Training: the three stages of NMoE and the FedAvg control through a federated engine, then all controls and the results."""

import dataclasses
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nmoe.channel.radio import Radio
from nmoe.core.files import write_json
from nmoe.federate import Checkpoint, LocalExchange, NodeMemory, Record, State, run
from nmoe.learn import predict, spent_epsilon
from nmoe.moe import Gate
from nmoe.recipes.central import central_score
from nmoe.recipes.engines import ray_runner
from nmoe.recipes.evaluate import Score, TestBench, as_json, mixture_scores, read_models
from nmoe.recipes.evaluate_links import link_scores
from nmoe.recipes.options import TrainOptions, read_options
from nmoe.recipes.program import BUNDLES, EXPERTS, FEATURES, FEDAVG, GATES, NAIVE_GATES, TrainProgram, node_memory_folder, program_of
from nmoe.recipes.recruited import recruitment_rows
from nmoe.recipes.run_folder import claim
from nmoe.recipes.watch import Progress, RunWatcher
from nmoe.report import write_report


class Trained(NamedTuple):
    """A finished training run: its program, its test bench, and what results.json holds so far."""

    program: TrainProgram
    bench: TestBench
    results: dict[str, Any]


def train(options: TrainOptions, out: Path, progress: Progress, *, force: bool, command: str) -> dict[str, Any]:
    """Train, score and report, without serving; arguments and errors as in ``start_training``."""
    return reported(start_training(options, out, progress, force=force, command=command).results, out, progress)


def resume_train(out: Path, progress: Progress) -> dict[str, Any]:
    """Continue killed training from its last whole round; errors as in ``resume_training``.

    Raises:
        ValueError: when the run was served, which training results would overwrite.
    """
    if (out / "serving.json").exists():
        raise ValueError(f"run folder {out} is of a demo that was served: continue it with nmoe demo --resume")
    return reported(resume_training(out, progress).results, out, progress)


def reported(results: dict[str, Any], out: Path, progress: Progress) -> dict[str, Any]:
    """Write the report of a run folder and return its results."""
    progress.stage("report", 0, 1)
    write_report(out)
    progress.stage("report", 1, 1)
    return results


def start_training(options: TrainOptions, out: Path, progress: Progress, *, force: bool, command: str) -> Trained:
    """Train from the start.

    Args:
        options: what to train.
        out: the run folder.
        progress: told of every round.
        force: replace an earlier run in ``out``.
        command: the command line, for config.json.

    Raises:
        ValueError, BadFile: when options, data and folder do not fit together; nothing has been written then.
        EngineError: when the federated engine failed.
    """
    program = program_of(options, out.absolute())
    claim(out, force=force)
    write_json(out / "config.json", dataclasses.asdict(options) | {"command": command, "git_revision": program.revision})
    return _train(program, progress)


def resume_training(out: Path, progress: Progress) -> Trained:
    """Continue a killed run from its last whole round; ends bit-identical to an uninterrupted one.

    Raises:
        BadFile: when the folder holds no run, or a damaged one.
    """
    return _train(program_of(read_options(out), out.absolute()), progress)


def _train(program: TrainProgram, progress: Progress) -> Trained:
    torch.set_num_threads(1)  # nodes work side by side in threads; one thread each also makes every engine sum alike
    out = program.run_folder
    assert out is not None
    node_labels = [program.data().train.labels[indices] for indices in program.assignment()]
    bench = TestBench(program.data().test, node_labels)
    watcher = RunWatcher(program, bench, progress)
    _run_engine(program, out, watcher)
    results = _results(program, bench, watcher.records, progress)
    write_json(out / "results.json", results)
    return Trained(program, bench, results)


def _run_engine(program: TrainProgram, out: Path, watcher: RunWatcher) -> None:
    nodes = range(len(program.names()))
    if program.options.engine == "local":
        exchange = LocalExchange(program, nodes, threads=min(len(nodes), os.cpu_count() or 1))
        try:
            run(program.stages(), exchange, folder=out, watcher=watcher)
        finally:
            exchange.close()
        return
    ray_runner()(program, nodes, folder=out, watcher=watcher)


def _results(program: TrainProgram, bench: TestBench, records: list[Record], progress: Progress) -> dict[str, Any]:
    """Score everything and lay out results.json."""
    options, out = program.options, program.run_folder
    assert out is not None
    began = time.perf_counter()
    progress.stage("controls", 0, 1)
    models = read_models(out, program.names())
    gates = program.gates()
    masks = torch.stack([gates.mask(node) for node in range(gates.num_nodes)])
    radio = options.radio()
    if radio is None:
        scores = mixture_scores(models, bench, masks, k=options.k, seed=options.seed)
    else:
        scores = link_scores(models, _naive_gates(program), bench, masks, radio=radio, k=options.k, seed=options.seed)
    scores["fedavg"] = _last_fedavg(program, bench)
    progress.stage("controls", 1, 1)
    scores["central_moe"] = central_score(program, bench, progress)
    seconds: dict[str, float] = defaultdict(float)
    sent: dict[str, int] = defaultdict(int)
    for record in records:
        seconds[record.stage] += record.seconds
        sent[GATES if record.stage == BUNDLES else record.stage] += record.bytes
    seconds["controls"] = time.perf_counter() - began
    controls = (FEDAVG,) if radio is None else (NAIVE_GATES, FEDAVG)
    optional: dict[str, Any] = {} if radio is None else {"channel": _channel(program, radio)}
    if options.recruitment is not None:
        optional["recruitment"] = recruitment_rows(options.recruitment, program.names(), program.assignment())
    return {
        "data": options.data,
        "nodes": gates.num_nodes,
        "split": options.split,
        "k": options.k,
        "seed": options.seed,
        "accuracy": as_json(scores),
        "privacy": _privacy(program),
        "communication": {"train_bytes": {name: sent[name] for name in (FEATURES, EXPERTS, GATES, *controls)}},
        "seconds": dict(seconds),
    } | optional


def _channel(program: TrainProgram, radio: Radio) -> dict[str, Any]:
    """Say over which links the gate was trained, and how."""
    options, links = program.options, program.gates().links
    assert links is not None
    return {
        "fading": options.channel,
        "snr_db": [radio.low_db, radio.high_db],
        "transmission": options.transmission,
        "gate": options.channel_gate,
        "collapse_weight": links.balance,
        "clean_rounds": links.clean_rounds,
        "versions": links.versions,
    }


def _final(program: TrainProgram, stage: str) -> State:
    """Return the final state of a stage, read from its checkpoint."""
    assert program.run_folder is not None
    return Checkpoint(program.run_folder, [stage.name for stage in program.stages()]).load().finished[stage]


def _naive_gates(program: TrainProgram) -> list[Gate]:
    """Return every node's gate of the control that is not told of SNRs."""
    assert program.run_folder is not None
    stage, state = program.naive_gates(), _final(program, NAIVE_GATES)
    memories = [NodeMemory(node_memory_folder(program.run_folder, node)) for node in range(stage.num_nodes)]
    return [stage.gate_of(state, memory) for memory in memories]


def _last_fedavg(program: TrainProgram, bench: TestBench) -> Score:
    """Score the FedAvg control's final state."""
    model = program.fedavg().model()
    model.load_state_dict(_final(program, FEDAVG))
    return bench.score_predictions(predict(model, bench.images))


def _privacy(program: TrainProgram) -> dict[str, Any]:
    """Say what privacy the run spent."""
    options = program.options
    if options.extractor != "fedsc":
        return {"epsilon": None, "delta": None, "mechanism": "none: FedCE shares model weights only, and they are averaged without noise"}
    if options.dp_epsilon is None:
        why = "none: no --dp-epsilon was given; correlation matrices and model weights are shared without noise"
        return {"epsilon": None, "delta": None, "mechanism": why}
    epsilon = spent_epsilon(program.noise_multiplier, releases=options.rounds, delta=options.dp_delta)
    mechanism = (
        f"Gaussian on matrices, noise multiplier {program.noise_multiplier:.3f}, at most {options.rounds} releases a node, replace-one; "
        "model weights are averaged without noise"
    )
    return {"epsilon": epsilon, "delta": options.dp_delta, "mechanism": mechanism}
