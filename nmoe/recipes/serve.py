"""Serving: every test image of a run through real node processes, and what came of it."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nmoe.core.errors import MeshError
from nmoe.data import ImageDataset, to_unit
from nmoe.moe import Mixture, NodeModel
from nmoe.node import InferReply, MeshClient, MeshProcesses
from nmoe.recipes.channel_options import DEFAULT_SNR
from nmoe.recipes.evaluate import read_models
from nmoe.recipes.options import TrainOptions
from nmoe.recipes.simulate_links import expected_accuracy, link_means
from nmoe.recipes.watch import Progress

DEADLINE_S = 2.0
IN_FLIGHT = 4  # requests under way at a time, in a closed loop
MOST_ALONE = 400  # images of which one expert is asked for, to find answers that crossed no link


class Answer(NamedTuple):
    """One image's way through the mesh: its number, whom it was sent to, the reply (None if there was none), the client's waiting time."""

    image: int
    node: int
    reply: InferReply | None
    seconds: float


class Served(NamedTuple):
    """What results.json says of serving, the bytes per sample, and what serving.json holds."""

    serving: dict[str, Any]
    bytes_per_sample: float
    details: dict[str, Any]


def bundle_folders(run: Path) -> list[Path]:
    """Return the bundle folders of a run, in the order of the node numbers.

    Raises:
        MeshError: when there is none.
    """
    folders = [card.parent for card in (run / "bundles").glob("*/card.json")]
    if not folders:
        raise MeshError(f"{run} holds no bundles: train first (nmoe train --out {run})")
    return sorted(folders, key=lambda folder: (len(folder.name), folder.name))


def serve_test_set(run: Path, test: ImageDataset, options: TrainOptions, progress: Progress) -> Served:
    """Start one process per bundle and send every test image to some node, in turn.

    Args:
        run: a run folder with bundles.
        test: images to send.
        options: of the run; its channel lies between the nodes.
        progress: told of every tenth request.

    Raises:
        MeshError: when the mesh does not come up.
    """
    folders = bundle_folders(run)
    progress.stage("start", 0, 1)
    radio = options.radio()
    with MeshProcesses(folders, options=channel_words(options)) as mesh:
        names = [card.node for card in mesh.cards]
        images = torch.from_numpy(test.images)
        for name in names:  # the first request of a process pays for its first tensor operations; it is not counted
            mesh.client.infer(name, images[:1], deadline_s=30.0)
        progress.stage("start", 1, 1)
        answers = _ask_all(mesh.client, names, images, progress)
        alone = [] if radio is None else _ask_all(mesh.client, names, images[:MOST_ALONE], progress, stage="alone", k=1)
    models = read_models(run, names)
    masks = torch.stack([_mask(card.node, card.neighbours, names) for card in mesh.cards])
    k, seen = mesh.cards[0].k, [list(card.classes_seen) for card in mesh.cards]
    if radio is None:
        reference = _reference_labels(models, masks, k, test)
        return _summary(answers, {"agreement": _agreement(answers, reference)}, names, test, seen)
    means = link_means(names, radio=radio, seed=options.seed)
    expected = expected_accuracy(models, masks, test, radio=radio, k=k, means=means, seed=options.seed)
    own = _reference_labels(models, torch.eye(len(names), dtype=torch.bool), 1, test)
    agreement = _agreement([answer for answer in alone if _by_itself(answer, names)], own)
    measured = {"agreement": agreement, "simulated": expected.accuracy, "simulated_error": expected.error}
    return _summary(answers, measured, names, test, seen)


def channel_words(options: TrainOptions) -> list[str]:
    """Return the options of ``nmoe node`` that put a run's channel between nodes; none where links are perfect."""
    if options.channel is None:
        return []
    words = {"channel": options.channel, "snr": options.snr or DEFAULT_SNR, "transmission": options.transmission}
    return [*(f"--{name}={word}" for name, word in words.items()), f"--channel-seed={options.seed}"]


def _by_itself(answer: Answer, names: list[str]) -> bool:
    """Say whether a node's own expert alone stands behind its answer: then nothing crossed a link."""
    reply = answer.reply
    return reply is not None and [reply.names[expert] for expert in reply.experts[0].tolist() if expert >= 0] == [names[answer.node]]


def _agreement(answers: list[Answer], reference: Tensor) -> float | None:
    """Return the share of answers with the label of the reference; None where there is no answer."""
    answered = [(answer.image, answer.reply) for answer in answers if answer.reply is not None]
    return sum(int(reply.labels[0]) == int(reference[image]) for image, reply in answered) / len(answered) if answered else None


def _ask_all(
    client: MeshClient, names: list[str], images: Tensor, progress: Progress, *, stage: str = "serving", k: int | None = None
) -> list[Answer]:
    def ask(number: int) -> Answer:
        node = number % len(names)
        began = time.perf_counter()
        try:
            reply = client.infer(names[node], images[number : number + 1], deadline_s=DEADLINE_S, k=k)
        except MeshError:
            reply = None  # counted as not answered
        return Answer(number, node, reply, time.perf_counter() - began)

    answers = []
    with ThreadPoolExecutor(IN_FLIGHT, "nmoe-load") as pool:
        for number, answer in enumerate(pool.map(ask, range(len(images))), start=1):
            answers.append(answer)
            if number % 10 == 0 or number == len(images):
                progress.stage(stage, number, len(images))
    return answers


def _mask(node: str, neighbours: tuple[str, ...], names: list[str]) -> Tensor:
    return torch.tensor([name == node or name in neighbours for name in names])


def _reference_labels(models: list[NodeModel], masks: Tensor, k: int, test: ImageDataset) -> Tensor:
    """Return the label of every image by the in-process layer with the asked node's gate."""
    images = to_unit(test.images)
    labels = torch.empty(len(images), dtype=torch.int64)
    experts = [model.expert for model in models]
    with torch.inference_mode():
        for node, model in enumerate(models):
            layer = Mixture(extractor=model.extractor, experts=experts, gate=model.gate, mix=model.mix)
            mine = slice(node, None, len(models))
            if len(labels[mine]):
                labels[mine] = layer(images[mine], k=k, mask=masks[node]).probabilities.argmax(dim=1)
    return labels


def _summary(
    answers: list[Answer], measured: dict[str, float | None], names: list[str], test: ImageDataset, classes_seen: list[list[int]]
) -> Served:
    answered = [(answer.image, answer.reply) for answer in answers if answer.reply is not None]
    if not answered:
        raise MeshError("the mesh answered no request")
    right = sum(int(reply.labels[0]) == int(test.labels[number]) for number, reply in answered)
    latency_ms = [1000 * answer.seconds for answer in answers if answer.reply is not None]
    by_class, asked = np.zeros((test.num_classes, len(names))), np.zeros((len(names), len(names)))
    for number, reply in answered:
        for expert, weight in zip(reply.experts[0].tolist(), reply.weights[0].tolist(), strict=True):
            if expert >= 0:
                column = names.index(reply.names[expert])
                by_class[test.labels[number], column] += weight
                asked[answers[number].node, column] += weight
    serving = {
        "requests": len(answers),
        "answered": len(answered),
        "p50_ms": float(np.percentile(latency_ms, 50)),
        "p99_ms": float(np.percentile(latency_ms, 99)),
        "accuracy": right / len(answered),
    } | measured
    details = {
        "experts": names,
        "classes": list(test.label_names),
        "latency_ms": latency_ms,
        "choice_by_class": _shares(by_class),
        "asked": _shares(asked),
        "classes_seen": classes_seen,
    }
    moved = sum(reply.bytes_sent + reply.bytes_received for _, reply in answered)
    return Served(serving, moved / len(answered), details)


def _shares(counts: np.ndarray) -> list[list[float]]:
    """Divide each row by its sum; a row of nothing becomes equal shares."""
    totals = counts.sum(axis=1, keepdims=True)
    shares: list[list[float]] = np.where(totals > 0, counts / np.where(totals > 0, totals, 1), 1 / counts.shape[1]).tolist()
    return shares
