"""Records: what nodes and clients say to each other. ``wire`` turns them into bytes and back.

Expert features and outputs are numpy arrays: the hot path computes nothing with torch. Arrays that ``decode`` returns may be read-only.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

import msgspec
import numpy as np
from jaxtyping import Float, Float32, Int, Int32, Shaped
from torch import Tensor

from nmoe.node.messages.formats import TensorFormat
from nmoe.node.view import NodeView

MAX_REASON = 200  # characters
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RefusalCode(StrEnum):
    """Why a node did not do what it was asked."""

    BUSY = "busy"
    BAD_SHAPE = "bad shape"
    LATE = "late"
    LEAVING = "leaving"
    FORBIDDEN = "forbidden"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertRows:
    """What one expert is asked for.

    Attributes:
        expert: its name.
        version: of its weights; empty for whatever is served.
        rows: the rows of the message's features that go to it, each once, in rising order; None for all of them.
    """

    expert: str
    version: str = ""
    rows: Int32[np.ndarray, " part"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertRequest:
    """Features for a peer's experts.

    Attributes:
        request: the origin's number for it.
        origin: the node that asks.
        deadline_s: what is left of the origin's time when this is sent, in seconds.
        format: how features travel, and outputs are to travel back, but for int4, which is answered in int8.
        experts: who is asked for what; no expert stands twice.
        features: every row that any expert needs, once.
        trace: W3C ``traceparent``, at most 64 printable characters; empty for none.
    """

    request: int
    origin: str
    deadline_s: float
    format: TensorFormat
    experts: tuple[ExpertRows, ...]
    features: Float32[np.ndarray, "rows dim"]
    trace: str = ""

    @property
    def num_pairs(self) -> int:
        """Rows over all experts: as many outputs are to come back."""
        rows = len(self.features)
        return sum(rows if part.rows is None else len(part.rows) for part in self.experts)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertReply:
    """The experts' outputs, and how loaded the node is. Values that are not finite travel: whoever asked must see them.

    Attributes:
        request: the number in the request.
        format: how outputs travel.
        outputs: in the order of the request's experts and their rows.
        wait_s, compute_s: seconds from arrival to computation, and of computation.
        queue_rows: rows that wait there now.
        draining: the node is about to leave.
    """

    request: int
    format: TensorFormat
    outputs: Float32[np.ndarray, "pairs width"]
    wait_s: float
    compute_s: float
    queue_rows: int
    draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientRequest:
    """Ask for the derivative, with respect to ``forward.features``, of the sum of the outputs times ``gradients``.

    Attributes:
        forward: the request whose outputs are meant; its format is how the features travel. Gradients travel as float32.
        gradients: one row per output, in the order of the reply.
    """

    forward: ExpertRequest
    gradients: Float32[np.ndarray, "pairs width"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientReply:
    """The derivative with respect to every feature row that was sent."""

    request: int
    gradients: Float32[np.ndarray, "rows dim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The answer to anything that was not done; ``request`` is 0 when the request was not read; ``queue_rows`` wait at the node."""

    request: int
    code: RefusalCode
    reason: str
    queue_rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """Images for a node to classify together with its peers.

    Attributes:
        images: uint8, or float32 between 0 and 1.
        deadline_s: from the message's arrival.
        k: experts per sample; None takes the node's own number.
        identity: a name that feedback may refer to, at most 64 printable characters; empty for none.
        trace: W3C ``traceparent``, at most 64 printable characters; empty for none.
    """

    images: Shaped[Tensor, "batch height width channel"]
    deadline_s: float
    k: int | None = None
    identity: str = ""
    trace: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferReply:
    """A classified batch.

    Attributes:
        probabilities: class probabilities.
        labels: the most probable class of each sample.
        experts: the experts behind each sample, as indices into ``names``; -1 where fewer than k answered.
        weights: their weights, adding up to 1 in each row; 0 where absent.
        names: the experts the node knows.
        degraded: something other than the gate's first choice stands behind some sample, or less.
        bytes_sent, bytes_received: whole messages from this node to its peers and back, for this request.
        seconds: from the request's arrival at the node to its answer.
    """

    probabilities: Float[Tensor, "batch classes"]
    labels: Int[Tensor, " batch"]
    experts: Int[Tensor, "batch k"]
    weights: Float[Tensor, "batch k"]
    names: tuple[str, ...]
    degraded: bool
    bytes_sent: int
    bytes_received: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CardRequest:
    """Ask a node what it serves."""


class ExpertCard(msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """What a node serves.

    Attributes:
        node: its name.
        version: of its experts' weights.
        experts: their names, at least one.
        classes: the classes it claims to know, in the order of the prototypes' rows.
        class_list: name or hash of the list of classes; nodes with another do not work together.
        num_classes: of that list.
        in_dim, out_dim: numbers per row of features and of outputs.
        formats: it reads and writes, at least one.
        max_rows: of one request.
        rows_per_s: its capacity, as it estimates it; 0 for unknown.
        gradients: whether it answers gradient requests.
        draining: it is about to leave.
    """

    node: str
    version: str
    experts: tuple[str, ...]
    classes: tuple[int, ...]
    class_list: str
    num_classes: int
    in_dim: int
    out_dim: int
    formats: tuple[TensorFormat, ...]
    max_rows: int
    rows_per_s: float
    gradients: bool
    draining: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CardReply:
    """A node's card, and the mean feature vector of each class it claims (no rows when it has none to show)."""

    card: ExpertCard
    prototypes: Float32[np.ndarray, "classes dim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRequest:
    """Ask a node what it knows of itself and its neighbours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReply:
    """What it knows."""

    view: NodeView


@dataclass(frozen=True, slots=True, kw_only=True)
class PingRequest:
    """Ask a node for a sign of life."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PingReply:
    """A sign of life, and how many rows wait there."""

    queue_rows: int


Message = (
    ExpertRequest
    | ExpertReply
    | GradientRequest
    | GradientReply
    | Refusal
    | InferRequest
    | InferReply
    | CardRequest
    | CardReply
    | StatusRequest
    | StatusReply
    | PingRequest
    | PingReply
)


def check_name(name: str, what: str) -> str:
    """Return a node's or mesh's name, which must be one word of letters, digits, ``_`` and ``-``.

    Raises:
        ValueError: when it is not.
    """
    if NAME.fullmatch(name) is None:
        raise ValueError(f"{what} must be 1 to 64 letters, digits, '_' or '-', got {name!r}")
    return name


def one_line(text: str, longest: int) -> str:
    """Return a text's beginning as one line of printable characters."""
    line = " ".join(text[: 4 * longest].split())[:longest].rstrip()
    return line if line.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in line)


def refusal(code: RefusalCode, reason: str, *, request: int = 0, queue_rows: int = 0) -> Refusal:
    """Return a refusal whose reason is one line of bounded length."""
    return Refusal(request=request, code=code, reason=one_line(reason, MAX_REASON), queue_rows=queue_rows)
