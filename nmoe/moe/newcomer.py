"""Newcomers: a gate column for an expert that joined after the gate's training, corrected by feedback; and a quiz that finds a liar.

Source: ours; NMoE (arXiv 2511.01743) is silent on experts that come later. The parts are old: nearest class means, ridge regression
(Hoerl and Kennard, Technometrics 1970), responsibilities of a mixture of experts (Jacobs et al., Neural Computation 1991) and normalised
LMS (Nagumo and Noda, IEEE TAC 1967).

| symbol | here | meaning |
|---|---|---|
| h | hidden | what the gate's columns see: the features, or the trunk's output where there is one |
| w, b | weight, bias | the newcomer's column; its score is w h + b |
| g_j | share | the mixture's weight of expert j, a softmax over the experts that answered |
| r_j | | posterior share of j once the label y is known, g_j p_j(y) / sum_i g_i p_i(y) |

Column. The gate's weights are a softmax of scores, so a margin in scores is one in log-odds. At the newcomer's class means the wanted score
is the best known expert's, plus the margin for a class that nobody else claims; at other nodes' means of other classes it is the best known
expert's less the margin. Ridge regression meets these few points; the penalty is relative to the spread of the others' points, so that a
newcomer cannot weaken it. What a gate makes of links (``nmoe.moe.channel_gate``) is the same for newcomers; columns are made as if all were
perfect. Margin 5 and ridge 0.03 are from trials on digits (8 nodes with classes 0-7, newcomer with 8 and 9, k = 2):
accuracy on 8 and 9 from 0 to 0.96, on the others from 0.986 to 0.965. A smaller margin is less use, a larger one costs the others more.

Calibration. For mixed probabilities the negative log-likelihood's gradient in a score is g_j - r_j, never more than 1: a label, even a
wrong one, moves the scores of its own sample by at most about ``rate``. Steps and total drift are capped, so that hostile labels do bounded
harm; how many labels a second are taken is the caller's to limit. Known experts' columns never change, only one offset each.

Privacy: class means of features leave a node when it announces itself. Of a class with one sample the mean is that sample's feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from nmoe.core.bundle import PROTOTYPES, Bundle, unsound_prototypes
from nmoe.core.errors import BundleError
from nmoe.moe.gate import Gate, check_snr
from nmoe.moe.layer import Mix


class Prototypes(NamedTuple):
    """What a node's classes look like: the mean feature of its training samples of each class, classes rising."""

    classes: Int[Tensor, " n"]
    means: Float[Tensor, "n dim"]
    counts: Int[Tensor, " n"]


def class_prototypes(features: Float[Tensor, "sample dim"], labels: Int[Tensor, " sample"]) -> Prototypes:
    """Return the mean feature and the number of samples of every class among the labels; at least one sample."""
    classes, counts = labels.unique(return_counts=True)
    means = torch.stack([features[labels == label].double().mean(dim=0) for label in classes])
    return Prototypes(classes=classes, means=means.float(), counts=counts)


def read_prototypes(bundle: Bundle) -> Prototypes | None:
    """Return a verified bundle's prototypes, or None where it has none.

    Raises:
        BundleError: when they are not of the features that the bundle's gate takes.
    """
    if PROTOTYPES not in bundle.tensors:
        return None
    found = Prototypes(**bundle.tensors[PROTOTYPES])
    dim = bundle.card.gate.arguments.get("feature_dim")
    if found.means.shape[1] != dim:
        raise BundleError(f"bundle of {bundle.card.node}: prototypes have {found.means.shape[1]} features, the gate takes {dim}")
    return found


def unsound(claimed: Prototypes, *, classes: Sequence[int], feature_dim: int) -> str | None:
    """Say what is wrong with prototypes from a stranger's card, or None.

    Args:
        claimed: what came.
        classes: the classes that the card says its node has seen; prototypes may be of these.
        feature_dim: numbers per feature vector.
    """
    if reason := unsound_prototypes(claimed._asdict(), classes):
        return reason
    if claimed.means.shape[1] != feature_dim:
        return f"means have {claimed.means.shape[1]} features, wanted {feature_dim}"
    return None if len(claimed.classes) else "no class is claimed"


class Column(NamedTuple):
    """One more output of a gate, on the scale of its scores."""

    weight: Float[Tensor, " hidden"]
    bias: Float[Tensor, ""]


@torch.no_grad()
def gate_column(gate: Gate, own: Prototypes, others: Sequence[Prototypes], *, ridge: float = 0.03, margin: float = 5.0) -> Column:
    """Make the column of a newcomer from class means alone; an empty one for a gate that does not look at features.

    Args:
        gate: the gate it joins.
        own: the newcomer's prototypes, checked.
        others: those of known experts, and of newcomers admitted before; never the newcomer's own, or none of its classes counts as new.
        ridge: penalty on the weight's square, in units of the spread of the others' means; above 0.
        margin: how far above or below the best known score it starts, in log-odds.

    Raises:
        ValueError: when ``ridge`` is not above 0 or the newcomer claims no class.
    """
    if not ridge > 0 or not len(own.classes):
        raise ValueError(f"ridge above 0 and a class are wanted, got ridge {ridge} and {len(own.classes)} classes")
    if not gate.columns.shape[1]:  # it tells no expert from another by features
        return Column(weight=torch.zeros(0), bias=torch.zeros(()))
    classes = torch.cat([other.classes for other in others]) if others else own.classes[:0]
    points = torch.cat([own.means, *(other.means for other in others)])  # [point, dim]
    unclaimed = ~torch.isin(own.classes, classes)
    shared = torch.isin(classes, own.classes)
    lift = torch.cat([margin * unclaimed, -margin * ~shared])  # [point]
    targets = (gate.scores(points).amax(dim=1) + lift).double()
    hidden = gate.hidden(points).double()
    known = hidden[len(own.classes) :] if others else hidden
    spread = (known - known.mean(dim=0)).square().sum(dim=1).mean()
    middle = hidden.mean(dim=0)
    centred = hidden - middle
    # w = H^T (H H^T + lambda I)^-1 t with H and t centred, so that b is not penalised; at most a few dozen points
    penalty = (ridge * spread).clamp_min(torch.finfo(torch.float32).eps)
    gram = centred @ centred.T + penalty * torch.eye(len(points), dtype=torch.float64)
    weight = centred.T @ torch.linalg.solve(gram, targets - targets.mean())
    return Column(weight=weight.float(), bias=(targets.mean() - middle @ weight).float())


class ExtendedGate:
    """A gate and the columns of newcomers, in the order they came; known experts keep their numbers, newcomers follow.

    Not for several threads at once.

    Args:
        gate: the trained gate; never changed.

    Attributes:
        names: newcomers in order; expert ``gate.num_experts + i`` is ``names[i]``.
        start: each newcomer's column as it was added.
        weights: the newcomers' weights now, [new, hidden].
        offsets: what calibration adds to each expert's score, [known + new].
    """

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.names: list[str] = []
        self.start: dict[str, Column] = {}
        self.weights = torch.zeros(0, gate.columns.shape[1])
        self.offsets = torch.zeros(gate.num_experts)

    @property
    def num_experts(self) -> int:
        """Number of experts scored, known and new."""
        return self.gate.num_experts + len(self.names)

    def add(self, name: str, column: Column) -> int:
        """Add a newcomer's column and return its expert number.

        Raises:
            ValueError: when the name is there already, or the column has another size or is not finite.
        """
        if name in self.start:
            raise ValueError(f"{name} has a column already")
        if column.weight.shape != self.weights.shape[1:] or column.bias.shape != ():
            wanted = list(self.weights.shape[1:])
            raise ValueError(f"a weight {wanted} and a bias [] are wanted, got {list(column.weight.shape)} and {list(column.bias.shape)}")
        if not bool(torch.isfinite(column.weight).all() and torch.isfinite(column.bias)):
            raise ValueError(f"the column of {name} is not finite")
        self.names.append(name)
        self.start[name] = column
        self.weights = torch.cat([self.weights, column.weight.unsqueeze(0)])
        self.offsets = torch.cat([self.offsets, self.offsets.new_zeros(1)])
        return self.num_experts - 1

    def remove(self, name: str) -> None:
        """Take a newcomer's column out; newcomers after it move up by one.

        Raises:
            ValueError: when there is none of that name.
        """
        if name not in self.start:
            raise ValueError(f"newcomer must be one of {', '.join(self.names) or 'none'}, got {name}")
        place = self.names.index(name)
        self.names.pop(place)
        del self.start[name]
        self.weights = torch.cat([self.weights[:place], self.weights[place + 1 :]])
        place += self.gate.num_experts
        self.offsets = torch.cat([self.offsets[:place], self.offsets[place + 1 :]])

    def scores(
        self, features: Float[Tensor, "batch dim"], *, snr_db: Float[Tensor, "batch expert"] | None = None
    ) -> Float[Tensor, "batch expert"]:
        """Score every expert, known and new, without noise; ``route`` takes it from there.

        Args:
            features: output of the extractor.
            snr_db: of the links to all of them, newcomers last, as ``Gate.scores`` takes it.

        Raises:
            ValueError: when there is not one SNR per sample and expert.
        """
        biases = torch.stack([self.start[name].bias for name in self.names]) if self.names else self.offsets[:0]
        new = self.gate.hidden(features) @ self.weights.T + biases  # [batch, new]
        scores = torch.cat([self.gate.scores(features), new], dim=1) + self.offsets
        if snr_db is None:
            return scores
        check_snr(snr_db, batch=len(features), num_experts=self.num_experts)
        return scores + self.gate.link_scores(features, snr_db)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Online correction of newcomers' columns, and of one offset per expert, by labels that come back.

    Attributes:
        mix: what the mixture averages.
        rate: by how much one label can change a score of its own sample, in log-odds, through the newcomer's weight.
        offset_rate: the same through the offset; small, since an offset acts on every sample.
        max_step: norm of one step over all weights and offsets; a longer one is shortened.
        max_drift: how far a weight may go from its start, as a share of the start's norm or of the known weights' mean norm, if larger.
        max_offset: most by which a known expert's score may be moved, and a newcomer's raised.
        max_fall: most by which a newcomer's score may be lowered; enough to take it out of every routing.
    """

    mix: Mix
    rate: float = 1.0
    offset_rate: float = 0.05
    max_step: float = 0.5
    max_drift: float = 0.5
    max_offset: float = 1.0
    max_fall: float = 20.0

    @torch.no_grad()
    def step(
        self,
        gate: ExtendedGate,
        features: Float[Tensor, "n dim"],
        experts: Int[Tensor, "n k"],
        logits: Float[Tensor, "n k class"],
        labels: Int[Tensor, " n"],
        *,
        snr_db: Float[Tensor, "n expert"] | None = None,
    ) -> None:
        """Take one gradient step on labelled samples, in place.

        Args:
            gate: what is corrected.
            features: output of the extractor.
            experts: who answered each sample, by number; -1 for nobody. Not only those routed to: an expert asked for the label's
                sake is learned about too.
            logits: their answers.
            labels: true classes, or what a caller says they are.
            snr_db: of the links when they were routed, as ``ExtendedGate.scores`` takes it.

        Raises:
            ValueError: when shapes do not fit, numbers are out of range, a sample has no answer, or something is not finite.
        """
        _check_feedback(gate, features, experts, logits, labels)
        slopes = gate.offsets.new_zeros(len(labels), gate.num_experts)
        slopes.scatter_add_(1, experts.clamp_min(0), self.slopes(gate.scores(features, snr_db=snr_db), experts, logits, labels))
        hidden, known = gate.gate.hidden(features), gate.gate.num_experts
        lengths = 1 + hidden.square().sum(dim=1, keepdim=True)  # [n, 1], as in normalised LMS
        turn = -self.rate * (slopes[:, known:] / lengths).T @ hidden  # [new, hidden]
        shift = -self.offset_rate * slopes.sum(dim=0)  # [expert]
        norm = torch.cat([turn.flatten(), shift]).norm()
        scale = (self.max_step / norm.clamp_min(self.max_step)).item()
        lowest = torch.full_like(gate.offsets, -self.max_offset)
        lowest[known:] = -self.max_fall
        gate.offsets = torch.minimum(torch.maximum(gate.offsets + scale * shift, lowest), torch.full_like(lowest, self.max_offset))
        if gate.names:
            start = torch.stack([gate.start[name].weight for name in gate.names])
            drift = gate.weights + scale * turn - start
            usual = gate.gate.columns.norm(dim=1).mean()
            limit = self.max_drift * start.norm(dim=1, keepdim=True).clamp_min(usual)
            gate.weights = start + drift * (limit / drift.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1)

    def slopes(
        self,
        scores: Float[Tensor, "n expert"],
        experts: Int[Tensor, "n k"],
        logits: Float[Tensor, "n k class"],
        labels: Int[Tensor, " n"],
    ) -> Float[Tensor, "n k"]:
        """Return the gradient of each sample's negative log-likelihood in the scores of those who answered, within -1 and 1."""
        silent = experts < 0
        chosen = scores.gather(1, experts.clamp_min(0)).masked_fill(silent, -torch.inf)  # [n, k]
        logits = logits.masked_fill(silent.unsqueeze(2), 0.0)
        share = chosen.softmax(dim=1)
        truth = labels.view(-1, 1, 1).expand(-1, logits.shape[1], 1)
        if self.mix is Mix.PROBABILITIES:
            evidence = logits.log_softmax(dim=2).gather(2, truth).squeeze(2)  # log p_j(y), [n, k]
            return share - (chosen + evidence).softmax(dim=1)  # g - r
        mixed = (logits * share.unsqueeze(2)).sum(dim=1).softmax(dim=1)  # [n, class]
        error = mixed - functional.one_hot(labels, logits.shape[2])
        blame = (logits * error.unsqueeze(1)).sum(dim=2)  # [n, k]
        return (share * (blame - (share * blame).sum(dim=1, keepdim=True))).clamp(-1, 1)  # logits are unbounded, so clamped


def _check_feedback(gate: ExtendedGate, features: Tensor, experts: Tensor, logits: Tensor, labels: Tensor) -> None:
    dim = gate.gate.feature_dim
    shapes = [list(tensor.shape) for tensor in (features, experts, logits, labels)]
    n, k, classes = len(labels), experts.shape[-1], logits.shape[-1]
    if shapes != [[n, dim], [n, k], [n, k, classes], [n]]:
        raise ValueError(f"features [n, {dim}], experts [n, k], logits [n, k, class] and labels [n] are wanted, got {shapes}")
    if bool(((experts < -1) | (experts >= gate.num_experts)).any()) or bool((experts < 0).all(dim=1).any()):
        raise ValueError(f"expert numbers must be between -1 and {gate.num_experts - 1}, and not all -1 for a sample")
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(f"labels must be between 0 and {classes - 1}, got {labels.tolist()}")
    if not bool(torch.isfinite(features).all()) or not bool(torch.isfinite(logits[experts >= 0]).all()):
        raise ValueError("features and logits must be finite")


class Quiz(NamedTuple):
    """Questions to a newcomer's expert: features, and the class each should be given."""

    features: Float[Tensor, "question dim"]
    expected: Int[Tensor, " question"]


def quiz(claimed: Prototypes, known: Sequence[Prototypes], *, generator: torch.Generator | None = None, noise: float = 0.25) -> Quiz:
    """Make the questions that a newcomer must answer: class means of the classes it claims, as others know them and as it says itself.

    What it catches: an expert that was never trained, or on other classes or other features than its card says; copied prototypes over
    such an expert; means that its own expert does not recognise. What it does not catch: a claim of classes that nobody else knows, beyond
    the newcomer's own means; an expert that says its one class always; one that recognises the questions, answers them right and
    traffic wrong. Means are public, so a look-up of the nearest one passes, and is an honest if poor expert; with ``generator`` the
    questions are moved a little, so that a look-up of exact rows does not. Such liars fall by ``Calibration``. Nodes admitted before
    can frame a newcomer by false means of their own: ask by many cards, not one.

    Args:
        claimed: the newcomer's prototypes, checked.
        known: those of the asking node and of other admitted ones.
        generator: moves every question in a random direction; None leaves them in place.
        noise: length of the move, as a share of the distance to the nearest mean of another class; below 0.5 the nearest mean stays.
    """
    means = torch.cat([*(one.means for one in known), claimed.means])  # [point, dim]
    classes = torch.cat([*(one.classes for one in known), claimed.classes])
    asked = torch.isin(classes, claimed.classes)
    features, expected = means[asked], classes[asked]
    if generator is None:
        return Quiz(features=features, expected=expected)
    apart = torch.cdist(features, means).masked_fill(expected.unsqueeze(1) == classes, torch.inf).amin(dim=1)  # [question]
    reach = apart.where(torch.isfinite(apart), features.norm(dim=1))  # all of one class: its own length serves
    direction = functional.normalize(torch.randn(features.shape, generator=generator), dim=1)
    return Quiz(features=features + noise * reach.unsqueeze(1) * direction, expected=expected)


def grade(logits: Float[Tensor, "question class"], expected: Int[Tensor, " question"]) -> float:
    """Return the share of questions answered right; an answer with NaN or infinity is wrong.

    Raises:
        ValueError: when there is no question, or not one answer to each.
    """
    if logits.ndim != 2 or logits.shape[0] != len(expected) or not len(expected):
        raise ValueError(f"one answer to each of at least one question is wanted, got {list(logits.shape)} to {list(expected.shape)}")
    right = (logits.argmax(dim=1) == expected) & torch.isfinite(logits).all(dim=1)
    return float(right.double().mean())


def pass_mark(expected: Int[Tensor, " question"]) -> float:
    """Return the share below which a card lies: half of the way from guessing among the classes asked to all right, (1 + 1/n) / 2."""
    return (1 + 1 / max(len(expected.unique()), 1)) / 2
