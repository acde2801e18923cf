"""A mesh by hand: start the nodes of a run and leave them running; send images to a mesh that runs."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nmoe.core.errors import MeshError
from nmoe.data import load, load_images
from nmoe.node import InferReply, MeshProcesses, TlsFiles, connect
from nmoe.recipes.serve import bundle_folders

MAX_DEADLINE_S = 3600.0
FIND_S = 5.0  # how long to wait for the first node of a mesh


def run_mesh(run: Path, *, mesh: str, say: Callable[[str], None], http: str | None = None) -> None:
    """Start one process per bundle of a run, say where they listen, and wait until interrupted or until none is left.

    A node that ends, as by kill, is named; the others go on without it.

    Raises:
        MeshError: when the mesh does not come up, or no node is left.
    """
    with MeshProcesses(bundle_folders(run), mesh=mesh, http=http) as processes:
        for node, card in zip(processes.nodes.values(), processes.cards, strict=True):
            address = f"  {processes.await_http(node.name)}" if http else ""
            say(f"{node.name}  {node.endpoint}  pid {node.pid}  classes {', '.join(map(str, card.classes_seen))}{address}")
        first = next(iter(processes.nodes.values()))
        say(f"mesh {mesh} is up: try nmoe infer --mesh {mesh} --connect {first.endpoint}; Ctrl-C ends it")
        left = list(processes.nodes)
        while left:
            time.sleep(0.5)
            for name in [name for name in left if not processes.alive(name)]:
                left.remove(name)
                say(f"{name} ended with status {processes.ended[name]}; {len(left)} of {len(processes.nodes)} nodes are left")
        raise MeshError(f"no node of mesh {mesh} is left")


class Sample(NamedTuple):
    """An image to send, [1, height, width, channel], and its label if known."""

    image: Tensor
    truth: int | None


def read_samples(source: str, data_dir: Path | None) -> tuple[list[Sample], tuple[str, ...]]:
    """Return the test images of a named data set, or all images of a ``.npz`` file; and the classes' names, none for a file."""
    if source.endswith(".npz"):
        images, labels = load_images(Path(source))
        names: tuple[str, ...] = ()
    else:
        test = load(source, data_dir).test
        images, labels, names = test.images, test.labels, test.label_names
    truths = [None] * len(images) if labels is None else labels.tolist()
    return [Sample(torch.from_numpy(images[[number]]), truth) for number, truth in enumerate(truths)], names


def infer_images(
    source: str,
    *,
    seeds: Sequence[str],
    mesh: str,
    node: str | None,
    data_dir: Path | None,
    count: int,
    deadline_s: float,
    k: int | None,
    insecure: bool,
    tls: TlsFiles | None,
    as_json: bool,
    say: Callable[[str], None],
) -> None:
    """Send images to a running mesh, one a request, and say what came back.

    Args:
        source: name of a data set, or a ``.npz`` file.
        seeds: endpoints of nodes.
        mesh: its name.
        node: whom to ask; None for the nodes in turn.
        data_dir: folder of a named data set.
        count: images to send from the first; 0 for all.
        deadline_s: time each request may take.
        k: experts per sample; None for the node's own number.
        insecure: allow plain tcp beyond this machine.
        tls: the files of mutual TLS.
        as_json: one JSON line per image instead of words.
        say: prints a line.

    Raises:
        ValueError: when an argument is out of range.
        MeshError: when no node can be found or one refuses.
    """
    if count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    if not 0 < deadline_s <= MAX_DEADLINE_S:
        raise ValueError(f"deadline must be above 0 and at most {1000 * MAX_DEADLINE_S:g} ms, got {1000 * deadline_s:g} ms")
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    samples, names = read_samples(source, data_dir)
    with connect(mesh, seeds, insecure=insecure, tls=tls) as client:
        until = time.monotonic() + FIND_S
        while not client.nodes():
            if time.monotonic() > until:
                raise MeshError(f"no node of mesh {mesh} found at {', '.join(seeds)} within {FIND_S:g} s")
            time.sleep(0.02)
        time.sleep(0.2)  # the rest of the mesh is heard of a moment after its first node
        nodes = [node] if node else list(client.nodes())
        for number, sample in enumerate(samples[: count or None]):
            asked = nodes[number % len(nodes)]
            reply = client.infer(asked, sample.image, deadline_s=deadline_s, k=k)
            say(_row(number, asked, reply, sample) if as_json else _line(number, asked, reply, sample, names))


def _row(number: int, asked: str, reply: InferReply, sample: Sample) -> str:
    label = int(reply.labels[0])
    row = {
        "image": number,
        "node": asked,
        "label": label,
        "truth": sample.truth,
        "probability": float(reply.probabilities[0, label]),
        "experts": _answerers(reply),
        "ms": 1000 * reply.seconds,
    }
    return json.dumps(row)


def _line(number: int, asked: str, reply: InferReply, sample: Sample, names: tuple[str, ...]) -> str:
    label = int(reply.labels[0])
    share, ms = float(reply.probabilities[0, label]), 1000 * reply.seconds
    by = ", ".join(f"{name} {weight:.2f}" for name, weight in _answerers(reply).items())
    truth = "" if sample.truth is None else f"; truth {_word(sample.truth, names)}"
    return f"image {number} to {asked}: {_word(label, names)} ({share:.0%}{truth}) by {by} in {ms:.1f} ms"


def _word(label: int, names: tuple[str, ...]) -> str:
    return names[label] if label < len(names) else str(label)


def _answerers(reply: InferReply) -> dict[str, float]:
    pairs = zip(reply.experts[0].tolist(), reply.weights[0].tolist(), strict=True)
    return {reply.names[expert]: weight for expert, weight in pairs if expert >= 0}
