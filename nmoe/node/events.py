"""Events and effects: what can happen to a node, and what it can decide to do. The words of ``protocol.Origin.step``.

Times are seconds on one clock of whoever carries effects out. Arrays are numpy: nothing here computes with torch.
"""

from enum import StrEnum

import msgspec
import numpy as np

from nmoe.node.messages import ExpertCard, RefusalCode, TensorFormat


class Failure(StrEnum):
    """Why an asked peer did not answer an expert request."""

    GONE = "gone"  # it went away
    TIMEOUT = "timeout"  # nothing in time
    FULL = "full"  # as much as allowed was on its way to it already: not sent
    BUSY = "busy"
    LATE = "late"
    LEAVING = "leaving"
    REFUSED = "refused"  # it said no for another reason
    UNREADABLE = "unreadable"  # its reply was no message, or to another request
    BAD_SHAPE = "bad shape"  # its reply had other rows or another width
    NOT_FINITE = "not finite"  # its reply held NaN or infinity


HONEST = frozenset({Failure.GONE, Failure.TIMEOUT, Failure.FULL, Failure.BUSY, Failure.LATE, Failure.LEAVING})  # the others are nonsense


class _Record(msgspec.Struct, frozen=True, gc=False):
    """Cheap to make: a simulation makes tens of millions of them."""


# What happened


class PeerUp(_Record, frozen=True, gc=False):
    """A node has announced itself."""

    peer: str


class PeerDown(_Record, frozen=True, gc=False):
    """A node's announcement has ended."""

    peer: str


class CardArrived(_Record, frozen=True, gc=False):
    """A peer has said what it serves; ``round_trip_s`` is what that took."""

    peer: str
    card: ExpertCard
    round_trip_s: float


class PeerRejected(_Record, frozen=True, gc=False):
    """A peer is not to be asked: its card does not fit, or it failed the examination."""

    peer: str
    reason: str


class InferArrived(_Record, frozen=True, gc=False):
    """A client's request of ``rows`` samples; ``deadline_s`` is on the same clock as every other time here."""

    request: int
    rows: int
    deadline_s: float
    k: int | None = None


class Scored(_Record, frozen=True, gc=False):
    """The gate's scores [rows, experts] of some requests' samples: from here on they fly together.

    ``flight``: a new number; ``requests``: number and first row of each, in order; they agree in k.
    """

    flight: int
    requests: tuple[tuple[int, int], ...]
    scores: np.ndarray


class OwnAnswered(_Record, frozen=True, gc=False):
    """The own expert's logits for all rows of a flight are there."""

    flight: int


class OwnFailed(_Record, frozen=True, gc=False):
    """The own expert cannot be computed on a flight: it raised, or put out NaN."""

    flight: int
    reason: str


class ComputeFailed(_Record, frozen=True, gc=False):
    """This node cannot compute these requests: it raised, or (``busy``) its workers have no room."""

    requests: tuple[int, ...]
    reason: str
    code: RefusalCode = RefusalCode.FAILED


class PeerAnswered(_Record, frozen=True, gc=False):
    """A peer's reply of the right shape and finite, with its load."""

    flight: int
    dispatch: int
    wait_s: float
    compute_s: float
    queue_rows: int
    bytes_received: int
    draining: bool = False


class PeerFailed(_Record, frozen=True, gc=False):
    """A peer will not answer this dispatch; ``queue_rows`` is what it said of its load, 0 if nothing."""

    flight: int
    dispatch: int
    why: Failure
    queue_rows: int = 0


class TimerFired(_Record, frozen=True, gc=False):
    """A request's timer has run out."""

    request: int


class ProbeDue(_Record, frozen=True, gc=False):
    """It is time to try a peer whose circuit is open."""

    peer: str


class Probed(_Record, frozen=True, gc=False):
    """A probe came back, or did not."""

    peer: str
    alive: bool


Event = (
    PeerUp
    | PeerDown
    | CardArrived
    | PeerRejected
    | InferArrived
    | Scored
    | OwnAnswered
    | OwnFailed
    | ComputeFailed
    | PeerAnswered
    | PeerFailed
    | TimerFired
    | ProbeDue
    | Probed
)


# What is to be done


class FetchCard(_Record, frozen=True, gc=False):
    """Ask a peer for its card; then ``CardArrived`` or ``PeerRejected``."""

    peer: str


class Queue(_Record, frozen=True, gc=False):
    """Let a request be scored when a worker is free; then ``Scored`` or ``ComputeFailed``."""

    request: int


class RunOwn(_Record, frozen=True, gc=False):
    """Run the own expert on every row of a flight; then ``OwnAnswered`` or ``OwnFailed``."""

    flight: int


class ExpertGroup(_Record, frozen=True, gc=False):
    """Rows of a flight for one expert, and the slot (0 to k - 1) each fills; ``expert`` indexes the gate's outputs."""

    expert: int
    rows: tuple[int, ...] | np.ndarray
    slots: tuple[int, ...] | np.ndarray


class Send(_Record, frozen=True, gc=False):
    """Send rows of a flight's features to a peer; then ``PeerAnswered`` or ``PeerFailed``."""

    flight: int
    dispatch: int
    peer: str
    groups: tuple[ExpertGroup, ...]
    format: TensorFormat
    deadline_s: float


class SetTimer(_Record, frozen=True, gc=False):
    """Let ``TimerFired`` happen at this time."""

    request: int
    at_s: float


class Probe(_Record, frozen=True, gc=False):
    """Ask a peer for a sign of life; then ``Probed``."""

    peer: str


class SetProbe(_Record, frozen=True, gc=False):
    """Let ``ProbeDue`` happen at this time."""

    peer: str
    at_s: float


class Used(_Record, frozen=True, gc=False):
    """A dispatch whose reply goes into an answer, and what it fills."""

    dispatch: int
    groups: tuple[ExpertGroup, ...]


class Finish(_Record, frozen=True, gc=False):
    """The answer to every request of a flight.

    Attributes:
        flight: its number.
        requests: with the first row of each, in order.
        rows: samples altogether.
        experts: [rows, k] the experts behind each sample, -1 where none.
        weights: [rows, k] adding up to 1 in each row that has an expert, 0 where none.
        used: replies to fill in, in order: a later one overwrites an earlier.
        own: whether the own expert's logits are to be filled in, where ``experts`` names it.
        degraded: something other than the gate's first choice stands behind some sample, or less.
    """

    flight: int
    requests: tuple[tuple[int, int], ...]
    rows: int
    experts: np.ndarray
    weights: np.ndarray
    used: tuple[Used, ...]
    own: bool
    degraded: bool


class Refuse(_Record, frozen=True, gc=False):
    """The one answer to a request that cannot be answered."""

    request: int
    code: RefusalCode
    reason: str


Effect = FetchCard | Queue | RunOwn | Send | SetTimer | Probe | SetProbe | Finish | Refuse
