"""A run folder as records: what training and the demo wrote, checked before anything is drawn.

Unknown keys are ignored, so that a newer run can still be reported; missing or impossible ones are refused with one line.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from nmoe.core.errors import BadFile

Accuracy = Annotated[float, msgspec.Meta(ge=0, le=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1.001)]  # a mean of float32 weights may pass 1 by rounding
Count = Annotated[int, msgspec.Meta(ge=0)]
Amount = Annotated[float, msgspec.Meta(ge=0)]

Record = TypeVar("Record")


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``metrics.jsonl``: a round of one stage. ``bytes`` counts all its messages, up and down."""

    stage: str
    round: Count
    rounds: Count
    seconds: Amount
    bytes: Count
    refused: tuple[str, ...] = ()
    metrics: dict[str, float | None] = {}


class AccuracyPair(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracy of one method on test data like the node's own (local) and on test data of all classes (overall)."""

    local: Accuracy | None = None
    overall: Accuracy | None = msgspec.field(default=None, name="global")


class Privacy(msgspec.Struct, frozen=True, kw_only=True):
    """The guarantee of the training; no ``epsilon`` means none, and ``mechanism`` says why."""

    epsilon: Amount | None = None
    delta: Amount | None = None
    mechanism: str


class Communication(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes on the wire: of each training stage, and per sample answered (absent after training alone)."""

    train_bytes: dict[str, Count]
    infer_bytes_per_sample: Amount | None = None


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """The radio links of a run: mean SNRs in dB from the first number to the second, and the form of the gate that sees them."""

    fading: str
    snr_db: tuple[float, float]
    transmission: str
    gate: str


class ServingResults(msgspec.Struct, frozen=True, kw_only=True):
    """How the mesh answered.

    Attributes:
        agreement: share of answers equal to those of the same mixture in one process; over noisy links, which leave no two answers alike,
            share of answers of the own expert alone that equal its answers in one process.
        accuracy: share of answers that were right.
        simulated, simulated_error: over noisy links, the accuracy that a simulation of the same links expects, and one standard error of
            the mesh's around it.
    """

    requests: Count
    answered: Count
    p50_ms: Amount | None = None
    p99_ms: Amount | None = None
    agreement: Share | None = None
    accuracy: Accuracy | None = None
    simulated: Accuracy | None = None
    simulated_error: Amount | None = None


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """``results.json``: the final numbers of a run."""

    data: str
    nodes: Count
    split: str
    k: Count
    seed: int
    accuracy: dict[str, AccuracyPair]
    privacy: Privacy
    communication: Communication
    serving: ServingResults | None = None
    channel: Channel | None = None
    seconds: dict[str, Amount] = {}


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """``serving.json``: who answered what.

    Attributes:
        experts: names of the nodes, in the order of every expert axis.
        classes: names of the classes, in the order of every class axis.
        latency_ms: time from request to answer, one per answer.
        choice_by_class: [class, expert] mean gate weight.
        asked: [node, expert] share of the weight that requests of this node gave to this expert.
        classes_seen: per node, the numbers of the classes in its training data.
    """

    experts: tuple[str, ...]
    classes: tuple[str, ...]
    latency_ms: tuple[Amount, ...]
    choice_by_class: tuple[tuple[Share, ...], ...]
    asked: tuple[tuple[Share, ...], ...]
    classes_seen: tuple[tuple[Count, ...], ...]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run folder."""

    name: str
    config: dict[str, Any]
    rounds: tuple[Round, ...]
    results: Results
    serving: Serving | None


def to_results(results: Results | Mapping[str, object]) -> Results:
    """Return ``results`` as a record.

    Args:
        results: the record, or the mapping that ``results.json`` holds.

    Raises:
        ValueError: when a key is missing or a value impossible.
    """
    if isinstance(results, Results):
        return results
    try:
        return msgspec.convert(results, Results)
    except msgspec.ValidationError as error:
        raise ValueError(f"not the results of a run: {error}") from error


def read_run(folder: Path) -> Run:
    """Read and check a run folder; ``serving.json`` may be absent.

    Raises:
        BadFile: when the folder or a file is missing or damaged; the message names it.
    """
    if not folder.is_dir():
        raise BadFile(f"{folder} is not a run folder: no such folder")
    serving = folder / "serving.json"
    return Run(
        name=folder.resolve().name,
        config=_read(folder / "config.json", dict[str, Any]),
        rounds=_read_rounds(folder / "metrics.jsonl"),
        results=_read(folder / "results.json", Results),
        serving=_checked(_read(serving, Serving), serving) if serving.exists() else None,
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror}") from error


def _decode(data: bytes, kind: type[Record], place: str) -> Record:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFile(f"{place} is damaged: {error}") from error


def _read(path: Path, kind: type[Record]) -> Record:
    return _decode(_bytes(path), kind, str(path))


def _read_rounds(path: Path) -> tuple[Round, ...]:
    """Read the rounds in file order; a round written again (after a resume) replaces its first line."""
    rounds: dict[tuple[str, int], Round] = {}
    for number, line in enumerate(_bytes(path).splitlines(), start=1):
        if line.strip():
            one = _decode(line, Round, f"{path} line {number}")
            rounds[one.stage, one.round] = one
    if not rounds:
        raise BadFile(f"{path} holds no rounds")
    return tuple(rounds.values())


def _checked(serving: Serving, path: Path) -> Serving:
    """Return ``serving`` if its shapes hold together."""
    experts, classes = len(serving.experts), len(serving.classes)
    if not experts or not classes:
        raise BadFile(f"{path} is damaged: no experts or no classes")
    tables = {
        "choice_by_class": (serving.choice_by_class, classes),
        "asked": (serving.asked, experts),
    }
    for name, (table, num_rows) in tables.items():
        if len(table) != num_rows or any(len(row) != experts for row in table):
            raise BadFile(f"{path} is damaged: {name} is not a table of {num_rows} rows and {experts} columns")
    if len(serving.classes_seen) != experts or any(number >= classes for seen in serving.classes_seen for number in seen):
        raise BadFile(f"{path} is damaged: classes_seen does not match {experts} experts and {classes} classes")
    return serving
