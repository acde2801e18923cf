"""Base of the federated family: stages, nodes, exchanges, and how updates are checked and merged.

A ``Stage`` is one algorithm, both sides of it: ``start`` and ``round`` run on the server, ``answer`` on a node. It sees the world only
through an ``Exchange``, so the same object runs in process, over Flower's Ray simulation and over SuperLink and SuperNodes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from nmoe.core.errors import EngineError
from nmoe.data import ImageDataset, to_unit
from nmoe.federate.memory import NodeMemory
from nmoe.federate.payload import Payload

State = dict[str, Tensor]
MAX_SAMPLES = 1e12  # of one node; weights beyond it would swallow all others and overflow sums
Kept = TypeVar("Kept")


class Call(NamedTuple):
    """The address of a message.

    Attributes:
        stage: name of the stage.
        action: which of its actions.
        round: round of the stage, from 0.
        clock: number of this message in the run; grows by one with every exchange.
        safe: clock of the last checkpoint; what nodes wrote up to it must stay readable.
    """

    stage: str
    action: str
    round: int
    clock: int
    safe: int


class Answers(NamedTuple):
    """Replies by node, sorted by node, and the reason of each node that sent none."""

    replies: dict[int, Payload]
    failures: dict[int, str]


class Exchange(ABC):
    """Carries requests to nodes and their replies back, and counts the bytes of both.

    Args:
        nodes: numbers of the nodes that can be asked.
    """

    def __init__(self, nodes: Sequence[int]) -> None:
        self.nodes = tuple(sorted(nodes))
        self.sent_bytes = 0

    def ask(self, call: Call, requests: Mapping[int, Payload]) -> Answers:
        """Send a request to each node and wait for the replies.

        Args:
            call: address of the messages.
            requests: one payload per node.

        Returns:
            The replies that came, sorted by node, so that sums over them have one order; and why others did not.

        Raises:
            EngineError: when every node was asked and none answered.
        """
        replies, failures = self.carry(call, requests)
        if not replies and len(requests) == len(self.nodes):
            reason = next(iter(failures.values()), "no reply")
            raise EngineError(f"no node answered {call.stage}.{call.action} of round {call.round + 1}: {reason}")
        self.sent_bytes += sum(request.num_bytes for request in requests.values())
        self.sent_bytes += sum(reply.num_bytes for reply in replies.values())
        return Answers({node: replies[node] for node in sorted(replies)}, dict(sorted(failures.items())))

    @abstractmethod
    def carry(self, call: Call, requests: Mapping[int, Payload]) -> Answers:
        """Carry the messages; a node that fails goes into the failures, never into an exception."""


@dataclass(slots=True, kw_only=True)
class Node:
    """One node as a stage sees it: its number, its data, its memory, and a cache of things that can be computed again.

    Attributes:
        number: 0 .. num_nodes-1.
        seed: the run's seed.
        data: the node's own images and labels.
        memory: what it keeps between messages.
        bundle_folder: where its bundle goes, or None for none.
        label: its name where that does not follow from its number, as where some nodes of a network take no part.
    """

    number: int
    seed: int
    data: ImageDataset
    memory: NodeMemory
    bundle_folder: Path | None = None
    label: str | None = None
    cache: dict[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The node's name in bundles, keys and reports."""
        return self.label or node_name(self.number)

    def images(self) -> Tensor:
        """Return the local images in [0, 1], [sample, channel, height, width]."""
        return self.cached("images", lambda: to_unit(self.data.images))

    def labels(self) -> Tensor:
        """Return the local labels, [sample]."""
        return self.cached("labels", lambda: torch.from_numpy(self.data.labels))

    def cached(self, key: str, compute: Callable[[], Kept]) -> Kept:
        """Return what was computed under ``key`` before, or compute it."""
        if key not in self.cache:
            self.cache[key] = compute()
        return self.cache[key]  # type: ignore[return-value]  # one key, one type: keys are literals at their one call site

    def recall(self, name: str, call: Call) -> State:
        """Return what was remembered before this call.

        Raises:
            EngineError: when there is nothing, for example after the node's disk was lost.
        """
        found = self.memory.read(name, before=call.clock)
        if found is None:
            raise EngineError(f"{self.name} has no {name} from before clock {call.clock}: its memory was lost or a stage was left out")
        return found

    def remember(self, name: str, tensors: Mapping[str, Tensor], call: Call) -> None:
        """Keep tensors for later calls."""
        self.memory.write(name, tensors, at=call.clock, safe=call.safe)


def node_name(number: int) -> str:
    """Return the name of node ``number``."""
    return f"node-{number}"


class Report(NamedTuple):
    """What a round says of itself: means over nodes by name, and one line per refused or missing update."""

    metrics: dict[str, float]
    refused: list[str]


class Stage(ABC):
    """One federated algorithm. Final classes are frozen dataclasses whose fields are its hyperparameters.

    Attributes:
        name: the stage's name in messages, metrics and checkpoints.
        rounds: number of rounds, at least 1.
    """

    name: str
    rounds: int

    @abstractmethod
    def start(self, previous: Mapping[str, State]) -> State:
        """Return the server's state before round 0, given the final states of earlier stages by name."""

    @abstractmethod
    def round(self, state: State, number: int, call: Callable[[str], Call], exchange: Exchange) -> tuple[State, Report]:
        """Run one round on the server.

        Args:
            state: the state after the round before; not changed in place.
            number: the round, from 0.
            call: makes the address of an action of this round.
            exchange: reaches the nodes.

        Returns:
            The new state and the round's report.
        """

    @abstractmethod
    def answer(self, call: Call, request: Payload, node: Node) -> Payload:
        """Answer one message on a node."""


class Program(ABC):
    """Everything a process needs to act as any node of a run; final classes can be sent to another process."""

    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """Return the stages in order."""

    @abstractmethod
    def node(self, number: int) -> Node:
        """Return one node with its data."""


def serve(program_stages: Mapping[str, Stage], call: Call, request: Payload, node: Node) -> Payload:
    """Answer a message on a node by the stage it is addressed to.

    Raises:
        ValueError: when the stage is unknown.
    """
    if call.stage not in program_stages:
        raise ValueError(f"stage must be one of {', '.join(program_stages)}, got {call.stage!r}")
    return program_stages[call.stage].answer(call, request, node)


def refusal(update: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """Say what is wrong with an update, or None.

    Args:
        update: tensors from a node.
        wanted: tensors with the names, shapes and dtypes it must have.
    """
    missing = sorted(wanted.keys() - update.keys())
    unknown = sorted(update.keys() - wanted.keys())
    if missing or unknown:
        return f"missing key {missing[0]}" if missing else f"unknown key {unknown[0]}"
    for name, model in wanted.items():
        tensor = update[name]
        if tensor.shape != model.shape or tensor.dtype != model.dtype:
            return f"{name} is {tensor.dtype} {list(tensor.shape)}, wanted {model.dtype} {list(model.shape)}"
        if not torch.isfinite(tensor).all():
            return f"NaN or infinity in {name}"
    return None


class Accepted(NamedTuple):
    """Updates that passed the check, by node, and one line per node that was refused or silent."""

    updates: dict[int, Payload]
    refused: list[str]


def accept(answers: Answers, wanted: Mapping[str, Tensor], *facts: str) -> Accepted:
    """Split replies into sound updates and refusals.

    Args:
        answers: what came back.
        wanted: tensors with the names, shapes and dtypes an update must have; see ``refusal``.
        facts: names of finite numbers that it must carry; ``samples`` must be above 0 and at most ``MAX_SAMPLES``, since it is a weight.
    """
    updates, refused = {}, silent(answers)
    for node, reply in answers.replies.items():
        reason = refusal(reply.tensors, wanted) or _bad_fact(reply, facts)
        if reason is None:
            updates[node] = reply
        else:
            refused.append(f"{node_name(node)}: {reason}")
    return Accepted(updates, refused)


def silent(answers: Answers) -> list[str]:
    """Return one line per node that did not answer."""
    return [f"{node_name(node)}: {reason}" for node, reason in answers.failures.items()]


def _bad_fact(reply: Payload, facts: Sequence[str]) -> str | None:
    for name in facts:
        value = reply.facts.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"{name} is {value!r}, wanted a finite number"
        if name == "samples" and not 0 < value <= MAX_SAMPLES:
            return f"samples is {value}, wanted above 0 and at most {MAX_SAMPLES:.0e}"
    return None


def numeric(reply: Payload, name: str) -> float:
    """Return a fact of an accepted reply, checked by ``accept`` to be a number."""
    value = reply.facts[name]
    assert isinstance(value, int | float)
    return float(value)


def mean_facts(updates: Mapping[int, Payload], *names: str) -> dict[str, float]:
    """Return the mean over nodes of facts that accepted replies carry; nothing without any reply."""
    if not updates:
        return {}
    return {name: sum(numeric(reply, name) for reply in updates.values()) / len(updates) for name in names}


def merge(updates: Sequence[tuple[float, Mapping[str, Tensor]]], previous: Mapping[str, Tensor]) -> State:
    """Average updates key by key, counting for each key only the nodes that sent it.

    Args:
        updates: (weight above 0, tensors) per node, in the order of the nodes.
        previous: value of a key that no node sent; its keys are those of the result.

    Returns:
        The weighted means; floating-point tensors only are averaged, others keep their previous value.
    """
    merged = {}
    for name, old in previous.items():
        given = [(weight, tensors[name]) for weight, tensors in updates if name in tensors]
        total = sum(weight for weight, _ in given)
        if not given or not old.is_floating_point():
            merged[name] = old
            continue
        mean = given[0][1] * (given[0][0] / total)
        for weight, tensor in given[1:]:
            mean.add_(tensor, alpha=weight / total)
        merged[name] = mean
    return merged
