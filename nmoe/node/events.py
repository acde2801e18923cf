"""Events and effects: what can happen to a node, and what it can decide to do. The words of ``protocol.step``.

Times are seconds on one clock of whoever carries effects out.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from nmoe.node.messages import RefusalCode

# What happened


@dataclass(frozen=True, slots=True)
class PeerUp:
    """A node has announced itself."""

    peer: str


@dataclass(frozen=True, slots=True)
class PeerDown:
    """A node's announcement has ended."""

    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InferArrived:
    """A client's request; ``deadline_s`` is on the same clock as every other time here."""

    request: int
    num_rows: int
    deadline_s: float
    k: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """Features and routing of a request are computed."""

    request: int
    features: Float[Tensor, "batch dim"]
    experts: Int[Tensor, "batch k"]
    weights: Float[Tensor, "batch k"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalAnswered:
    """The own expert's logits for all rows are computed."""

    request: int
    logits: Float[Tensor, "batch classes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeFailed:
    """This node's own computation raised."""

    request: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAnswered:
    """A peer's logits for the rows it was sent."""

    request: int
    peer: str
    logits: Float[Tensor, "rows classes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRefused:
    """A peer said no, or what it said was no answer."""

    request: int
    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerGone:
    """A peer will not answer this request: no reply, or none in time."""

    request: int
    peer: str


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """A request's timer has run out."""

    request: int


Event = PeerUp | PeerDown | InferArrived | Routed | LocalAnswered | ComputeFailed | PeerAnswered | PeerRefused | PeerGone | DeadlinePassed


# What is to be done


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeRouting:
    """Extract features and route with these experts reachable; then ``Routed``."""

    request: int
    mask: tuple[bool, ...]
    k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeExpert:
    """Run the own expert; then ``LocalAnswered``."""

    request: int
    features: Float[Tensor, "batch dim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SendExpertRequest:
    """Send these features to a peer; then ``PeerAnswered``, ``PeerRefused`` or ``PeerGone``."""

    request: int
    peer: str
    features: Float[Tensor, "rows dim"]
    deadline_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTimer:
    """Let ``DeadlinePassed`` happen at this time."""

    request: int
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The one answer to a request; shapes as in ``messages.InferReply``. ``degraded``: fewer than k experts stand behind some sample."""

    request: int
    probabilities: Float[Tensor, "batch classes"]
    experts: Int[Tensor, "batch k"]
    weights: Float[Tensor, "batch k"]
    degraded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The one answer to a request that cannot be answered."""

    request: int
    code: RefusalCode
    reason: str


Effect = ComputeRouting | ComputeExpert | SendExpertRequest | SetTimer | Answer | Refuse
