"""Newcomers: what a node tells of its expert, whom it lets in, and how its gate takes in experts it was not trained with.

A peer's card is checked before it is asked for anything: same class list, same widths, sound prototypes. Then it sits an examination: it
labels class means that this node and admitted peers know of the classes it claims. A card that claims classes its expert cannot
answer is found out there, and so is a replica that does not know the classes of the node whose expert it says it serves, where that one
was admitted before. A card that claims nothing is let in only where this node has no prototypes of its own either.

The expert of a node that the gate does not know gets a column from its prototypes (``nmoe.moe.newcomer``), which feedback corrects. A
column is never given back, as its place in the gate stands in answers, remembered ones too: a node takes in ``MAX_NEWCOMERS`` until it is
started anew, and turns away those after them, saying so.
"""

import hashlib
import math
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nmoe.core.bundle import Bundle, BundleCard
from nmoe.core.errors import MessageError
from nmoe.moe.newcomer import (
    Calibration,
    ExtendedGate,
    Prototypes,
    gate_column,
    grade,
    pass_mark,
    quiz,
    read_prototypes,
    unsound,
)
from nmoe.node.answers import Answered
from nmoe.node.bank import NodeCompute
from nmoe.node.messages import (
    MAX_ROWS,
    CardReply,
    ExpertCard,
    ExpertReply,
    ExpertRequest,
    ExpertRows,
    Refusal,
    RefusalCode,
    TensorFormat,
    decode_as,
    encode,
)
from nmoe.node.transport.base import OnReply, Service, Silence

EXAM_S = 1.0
EXAM_TRIES, EXAM_PAUSE_S = 3, 0.2
MAX_NEWCOMERS = 64

Ask = Callable[..., None]
Later = Callable[[float, Callable[[], None]], object]
Verdict = Callable[[str | None], None]


def class_list(card: BundleCard) -> str:
    """Return a hash of the list of classes that a bundle tells apart: their number and, where it knows them, their names."""
    return hashlib.sha256("|".join([str(card.num_classes), *card.class_names]).encode()).hexdigest()[:16]


class Newcomers:
    """The gate of a running node and its acquaintances; safe to use from any thread.

    Args:
        bundle: what the node serves.
        compute: its modules.
        name: of the node.
        ask: asks a peer, as ``Transport.ask`` does.
        later: calls a function after so many seconds.
        seed: of the examination's questions.
    """

    def __init__(self, bundle: Bundle, compute: NodeCompute, *, name: str, ask: Ask, later: Later, seed: int = 0) -> None:
        self._name = name
        self._ask = ask
        self._later = later
        self._lock = threading.Lock()
        self._draw = torch.Generator().manual_seed(seed)
        self._admitted: dict[str, Prototypes] = {}
        self._passed: dict[str, tuple[object, ...]] = {}  # by peer: what its card said when it passed
        self._columns: dict[str, Prototypes] = {}
        self._use(bundle, compute, read_prototypes(bundle), ExtendedGate(compute.model.gate))

    def replace(self, bundle: Bundle, compute: NodeCompute) -> None:
        """Take another version of the bundle; newcomers keep their places, with new columns. If this raises, nothing has changed."""
        own, gate = read_prototypes(bundle), ExtendedGate(compute.model.gate)
        with self._lock:
            for name, prototypes in self._columns.items():
                gate.add(name, gate_column(compute.model.gate, prototypes, self._others(name, own)))
            self._use(bundle, compute, own, gate)

    def _use(self, bundle: Bundle, compute: NodeCompute, own: Prototypes | None, gate: ExtendedGate) -> None:
        self._bundle, self._compute, self._own, self._gate = bundle, compute, own, gate
        self._calibration = Calibration(mix=compute.model.mix)
        self.class_list = class_list(bundle.card)

    @property
    def sees_links(self) -> bool:
        """Whether the gate's scores depend on links, so that it is worth finding out what they are like."""
        return self._gate.gate.sees_links

    def scores(self, features: Float[Tensor, "batch dim"], link_snr_db: Sequence[float] | None = None) -> np.ndarray:
        """Return the gate's scores [batch, experts], newcomers last.

        Args:
            features: of the samples.
            link_snr_db: of the link to each expert known so far, in dB as ``Gate.scores`` takes it; None where all are perfect. An expert
                that was taken in meanwhile counts as never measured.
        """
        with self._lock, torch.inference_mode():
            snr_db: Tensor | None = None
            if link_snr_db is not None:
                new = [math.nan] * (self._gate.num_experts - len(link_snr_db))
                snr_db = torch.tensor([*link_snr_db, *new]).expand(len(features), -1)  # [batch, expert]
            scores: np.ndarray = self._gate.scores(features, snr_db=snr_db).numpy()
        return scores

    def own_card(self, formats: Sequence[TensorFormat], *, draining: bool, gradients: bool, rows_per_s: float) -> CardReply:
        """Return what this node tells others."""
        card, compute = self._bundle.card, self._compute
        own = self._own
        told = ExpertCard(
            node=self._name,
            version=compute.version,
            experts=(card.node,),
            classes=() if own is None else tuple(own.classes.tolist()),
            class_list=self.class_list,
            num_classes=card.num_classes,
            in_dim=compute.feature_dim,
            out_dim=card.num_classes,
            formats=tuple(formats),
            max_rows=MAX_ROWS,
            rows_per_s=rows_per_s,
            gradients=gradients,
            draining=draining,
        )
        means = np.zeros((0, compute.feature_dim), dtype=np.float32) if own is None else own.means.numpy()
        return CardReply(card=told, prototypes=means)

    def unfit(self, reply: CardReply) -> str | None:
        """Say why a card does not fit this node, or None."""
        card = reply.card
        if card.num_classes != self._bundle.card.num_classes or card.class_list != self.class_list:
            return f"its list of classes is another one: {card.num_classes} classes, {card.class_list}"
        if not card.classes:
            return None if self._own is None else "its card shows no class prototypes"
        said = unsound(_prototypes(reply), classes=range(card.num_classes), feature_dim=self._compute.feature_dim)
        return None if said is None else f"unsound prototypes: {said}"

    def examine(self, peer: str, reply: CardReply, verdict: Verdict) -> None:
        """Let each of a peer's experts label known class means, unless it passed with this very card; a replica those of the original too.

        ``verdict`` gets None or why it is not admitted, mostly on another thread.
        """
        card = reply.card
        shown = (card.version, card.experts, card.classes, reply.prototypes.tobytes())
        if not card.classes or self._passed.get(peer) == shown:  # where it claims nothing there is nothing to find out
            verdict(None)
            return
        claimed = _prototypes(reply)
        waiting = [(expert, wanted) for expert in card.experts for wanted in (claimed, self._known(expert, peer)) if wanted is not None]

        def graded(said: str | None) -> None:
            if said is not None:
                verdict(said)
            elif waiting:
                self._examine(peer, card, *waiting.pop(0), graded, EXAM_TRIES)
            else:
                with self._lock:
                    self._admitted[peer], self._passed[peer] = claimed, shown
                verdict(None)

        graded(None)

    def _known(self, expert: str, peer: str) -> Prototypes | None:
        """Return what is known of the classes of an expert that a peer serves for another node."""
        if expert == peer:
            return None
        return self._own if expert == self._bundle.card.node else self._admitted.get(expert)

    def _examine(self, peer: str, card: ExpertCard, expert: str, wanted: Prototypes, verdict: Verdict, tries: int) -> None:
        """Let one expert label class means of the classes wanted."""
        with self._lock:
            questions = quiz(wanted, self._others(peer, self._own), generator=self._draw)
        request = ExpertRequest(
            request=1,
            origin=self._name,
            deadline_s=EXAM_S,
            format=TensorFormat.FLOAT32,
            experts=(ExpertRows(expert=expert, version=card.version, rows=None),),
            features=questions.features.numpy(),
        )

        def replied(answer: bytes | Silence) -> None:
            if isinstance(answer, Silence) or _busy(answer):
                if tries > 1:
                    self._later(EXAM_PAUSE_S, lambda: self._examine(peer, card, expert, wanted, verdict, tries - 1))
                else:
                    verdict("it does not answer")
                return
            share = _share_right(answer, questions.expected, self._bundle.card.num_classes)
            mark = pass_mark(questions.expected)
            if share is None:
                verdict("its answers cannot be read")
            elif share < mark:
                claims = ", ".join(str(label) for label in wanted.classes.tolist())
                verdict(f"a lying card: it claims classes {claims} and labels {share:.0%} of their means right")
            else:
                verdict(None)

        on_reply: OnReply = replied
        self._ask(peer, Service.EXPERT, encode(request), timeout_s=EXAM_S, on_reply=on_reply)

    def add(self, name: str, reply: CardReply) -> str | None:
        """Give an expert that the gate does not know a column; return None, or why it cannot have one."""
        if not reply.card.classes:
            return f"its card shows no class prototypes, and the gate does not know it: {name}"
        claimed = _prototypes(reply)
        with self._lock:
            if name in self._columns:
                return None
            if len(self._columns) >= MAX_NEWCOMERS:
                return f"no room: the gate has taken in {MAX_NEWCOMERS} newcomers since this node was started"
            self._gate.add(name, gate_column(self._compute.model.gate, claimed, self._others(reply.card.node, self._own)))
            self._columns[name] = claimed
        return None

    def learn(self, answered: Answered, labels: Sequence[int]) -> str | None:
        """Correct the newcomers' columns by the true labels of an answered request; return None, or why not."""
        with self._lock:
            try:
                self._calibration.step(
                    self._gate,
                    torch.from_numpy(answered.features),
                    torch.from_numpy(answered.experts),
                    torch.from_numpy(answered.logits),
                    torch.tensor(labels),
                )
            except ValueError as error:
                return str(error)
        return None

    def _others(self, peer: str, own: Prototypes | None) -> list[Prototypes]:
        """Return the prototypes of this node and of admitted peers but one: a newcomer's own would take away its margin."""
        return [*([] if own is None else [own]), *(one for name, one in self._admitted.items() if name != peer)]


def _prototypes(reply: CardReply) -> Prototypes:
    classes = torch.tensor(reply.card.classes, dtype=torch.int64)
    return Prototypes(classes=classes, means=torch.from_numpy(np.array(reply.prototypes)), counts=torch.ones_like(classes))


def _busy(answer: bytes) -> bool:
    """Say whether an answer only means that it had no time."""
    try:
        message = decode_as(answer, ExpertReply)
    except MessageError:
        return False
    return isinstance(message, Refusal) and message.code in (RefusalCode.BUSY, RefusalCode.LATE, RefusalCode.LEAVING)


def _share_right(answer: bytes, expected: Tensor, num_classes: int) -> float | None:
    try:
        message = decode_as(answer, ExpertReply)
    except MessageError:
        return None
    if not isinstance(message, ExpertReply) or message.outputs.shape != (len(expected), num_classes):
        return None
    return grade(torch.from_numpy(np.array(message.outputs)), expected)
