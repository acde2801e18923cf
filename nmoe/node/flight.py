"""Flight: requests that were scored together and are answered together, and the messages sent for them. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np

from nmoe.node.events import ExpertGroup, Finish, Used
from nmoe.node.plan import mixture_weights


class Role(Enum):
    """What a message is for; in the order in which replies are filled in, later over earlier."""

    STANDBY = auto()  # the next best expert, should the chosen one not answer in time; nobody waits for it
    SUBSTITUTE = auto()  # the next best expert, as the chosen one's node failed
    REPLICA = auto()  # a hedge: the chosen expert on another node
    CHOSEN = auto()


class State(Enum):
    """Where a message stands."""

    WAITING = auto()
    ANSWERED = auto()
    FAILED = auto()
    OVERTAKEN = auto()  # its twin was sooner


@dataclass(slots=True)
class Dispatch:
    """One message to a peer; ``twin`` is the other one of a hedged pair, ``hedge_at_s`` when to hedge it."""

    index: int
    peer: str
    groups: tuple[ExpertGroup, ...]
    role: Role
    sent_s: float
    state: State = State.WAITING
    twin: int | None = None
    hedge_at_s: float | None = None
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = sum(len(group.rows) for group in self.groups)


@dataclass(slots=True, eq=False)
class Request:
    """One request in progress; ``flight`` once it is scored."""

    number: int
    rows: int
    deadline_s: float
    k: int
    flight: int | None = None


class Flight:
    """Requests on their way together.

    Args:
        number: of this flight.
        requests: number and first row of every request scored.
        open_requests: those of them that still want an answer; of one k, their deadlines close together.
        scores: the gate's, [rows, experts].
    """

    __slots__ = (
        "asked",
        "chosen",
        "deadline_s",
        "dispatches",
        "k",
        "number",
        "open_requests",
        "own_done",
        "own_fill",
        "requests",
        "scores",
        "taken",
        "waiting",
    )

    def __init__(self, number: int, requests: Sequence[tuple[int, int]], open_requests: list[Request], scores: np.ndarray) -> None:
        self.number = number
        self.requests = requests
        self.open_requests = open_requests
        self.scores = scores
        self.k = open_requests[0].k
        self.deadline_s = min(request.deadline_s for request in open_requests)
        self.chosen = np.empty((0, 0), dtype=np.int64)  # [rows, k], -1 where fewer could be asked
        self.taken: np.ndarray | None = None  # [rows, experts]: those in use for a sample; made when first needed
        self.dispatches: list[Dispatch] = []
        self.asked: set[str] = set()
        self.waiting = 0
        self.own_done = False
        self.own_fill: list[ExpertGroup] = []  # slots the own expert takes over, if nobody else fills them

    def take(self) -> np.ndarray:
        """Return which experts are in use for each sample."""
        if self.taken is None:
            self.taken = np.zeros(self.scores.shape, dtype=bool)
            rows, slots = np.nonzero(self.chosen >= 0)
            self.taken[rows, self.chosen[rows, slots]] = True
        return self.taken

    def can_answer(self, own: int | None, *, at_deadline: bool) -> bool:
        """Say whether every sample has an answer; before the deadline the own expert's must be there wherever it was chosen."""
        if self.own_done or own is None:
            return True
        if not at_deadline and (self.own_fill or (self.chosen == own).any()):
            return False
        return bool((self._filled(None)[0] >= 0).any(axis=1).all())

    def finish(self, own: int | None) -> Finish:
        """Return the answer, from what is there now."""
        experts, used = self._filled(own if self.own_done else None)
        degraded = not np.array_equal(experts, self.chosen) or bool((experts < 0).any())
        own_used = self.own_done and own is not None
        if own_used:
            alone = (experts < 0).all(axis=1)  # samples that only the own expert can answer
            experts[alone, 0] = own
        still_open = {request.number for request in self.open_requests}
        return Finish(
            flight=self.number,
            requests=tuple(pair for pair in self.requests if pair[0] in still_open),
            rows=len(experts),
            experts=experts,
            weights=mixture_weights(self.scores, experts),
            used=used,
            own=own_used,
            degraded=degraded,
        )

    def _filled(self, own: int | None) -> tuple[np.ndarray, tuple[Used, ...]]:
        """Return the expert that fills each slot [rows, k], -1 for none, and the replies used, in order."""
        filled = np.full(self.chosen.shape, -1, dtype=np.int64)
        if own is not None:
            for group in self.own_fill:
                filled[group.rows, group.slots] = own
            filled[self.chosen == own] = own
        answered = [dispatch for dispatch in self.dispatches if dispatch.state is State.ANSWERED]
        if len(answered) > 1:
            answered.sort(key=lambda dispatch: dispatch.role.value)
        for dispatch in answered:
            for group in dispatch.groups:
                filled[group.rows, group.slots] = group.expert
        return filled, tuple([Used(dispatch.index, dispatch.groups) for dispatch in answered])
