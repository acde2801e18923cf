"""Flight: requests that were scored together and are answered together, and the messages sent for them. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np

from nmoe.node.events import ExpertGroup, Finish, Used
from nmoe.node.plan import mixture_weights, row_weights


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
        groups = self.groups
        self.rows = len(groups[0].rows) if len(groups) == 1 else sum(len(group.rows) for group in groups)


@dataclass(slots=True, eq=False)
class Request:
    """One request in progress; ``flight`` once it is scored."""

    number: int
    rows: int
    deadline_s: float
    k: int
    flight: int | None = None


_WAITING, _ANSWERED, _CHOSEN = (
    State.WAITING,
    State.ANSWERED,
    Role.CHOSEN,
)  # in Python 3.11 finding a member takes ten times as long as finding a name


class Flight:
    """Requests on their way together.

    Args:
        number: of this flight.
        requests: number and first row of every request scored.
        open_requests: those of them that still want an answer; of one k, their deadlines close together.
        scores: the gate's, [rows, experts].
    """

    __slots__ = (
        "_chosen",
        "asked",
        "barred",
        "deadline_s",
        "dispatches",
        "full",
        "k",
        "needs_own",
        "number",
        "open_requests",
        "own_done",
        "own_failed",
        "own_fill",
        "requests",
        "row",
        "row_scores",
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
        self.deadline_s = open_requests[0].deadline_s if len(open_requests) == 1 else min(request.deadline_s for request in open_requests)
        self._chosen: np.ndarray | None = None
        self.row: list[int] | None = None  # what is chosen for a single sample: the common case, without numpy's calls
        self.row_scores: list[float] = []  # and its scores
        self.full = False  # whether k could be asked for every sample
        self.needs_own = False  # whether the own expert is among those chosen
        self.taken: np.ndarray | None = None  # [rows, experts]: those in use for a sample; made when first needed
        self.dispatches: list[Dispatch] = []
        self.asked: set[str] = set()
        self.barred: set[str] = set()  # those who failed this flight, or were asked a second time, to stand in for one who did
        self.waiting = 0
        self.own_done = False
        self.own_failed: str | None = None  # why there will be nothing of it
        self.own_fill: list[ExpertGroup] = []  # slots the own expert takes over, if nobody else fills them

    @property
    def chosen(self) -> np.ndarray:
        """The experts of every sample, [rows, k] int64, -1 where fewer could be asked."""
        if self._chosen is None:
            self._chosen = np.empty((0, 0), dtype=np.int64) if self.row is None else np.array([self.row], dtype=np.int64)
        return self._chosen

    def choose(self, chosen: np.ndarray) -> None:
        """Fill in the experts of every sample."""
        self._chosen = chosen

    def choose_row(self, row: list[int], scores: list[float]) -> None:
        """Fill in the experts of the only sample, with its scores as a list."""
        self.row, self.row_scores = row, scores

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
        if not at_deadline and (self.own_fill or self.needs_own):
            return False
        if self.row is not None:
            return any(dispatch.state is _ANSWERED for dispatch in self.dispatches)
        if self._as_chosen():
            return True
        return bool((self._filled(None)[0] >= 0).any(axis=1).all())

    def unanswered(self) -> list[Request]:
        """Return the open requests with a sample that no peer answered."""
        missing: np.ndarray = np.nonzero((self._filled(None)[0] < 0).all(axis=1))[0]
        starts = dict(self.requests)
        return [one for one in self.open_requests if ((missing >= (start := starts[one.number])) & (missing < start + one.rows)).any()]

    def finish(self, own: int | None) -> Finish:
        """Return the answer, from what is there now."""
        own_used = self.own_done and own is not None
        if self.row is not None:
            return self._finish_row(self.row, own if self.own_done else None)
        if as_chosen := self._as_chosen():
            experts, degraded = self.chosen, False
            used = tuple([Used(dispatch.index, dispatch.groups) for dispatch in self.dispatches if dispatch.state is _ANSWERED])
        else:
            experts, used = self._filled(own if self.own_done else None)
            degraded = not np.array_equal(experts, self.chosen) or bool((experts < 0).any())
        if own_used and not as_chosen:
            alone = (experts < 0).all(axis=1)  # samples that only the own expert can answer
            experts[alone, 0] = own
        return Finish(
            flight=self.number,
            requests=self._still_open(),
            rows=len(experts),
            experts=experts,
            weights=mixture_weights(self.scores, experts),
            used=used,
            own=own_used,
            degraded=degraded,
        )

    def _as_chosen(self) -> bool:
        """Say whether the gate's first choice stands behind every sample: the usual case, told cheaply."""
        if not self.full or self.own_fill or (self.needs_own and not self.own_done):
            return False
        for dispatch in self.dispatches:
            if dispatch.role is _CHOSEN:
                if dispatch.state is State.FAILED or dispatch.state is _WAITING:
                    return False
            elif dispatch.role is not Role.REPLICA or dispatch.state is State.FAILED:
                return False
        return True

    def _finish_row(self, row: list[int], own: int | None) -> Finish:
        """Return the answer to a single sample."""
        filled = [-1] * len(row)
        if own is not None:
            for slot, expert in enumerate(row):
                if expert == own:
                    filled[slot] = own
            for group in self.own_fill:
                for slot in group.slots:
                    filled[slot] = own
        answered = self._answered()
        for dispatch in answered:
            for group in dispatch.groups:
                for slot in group.slots:
                    filled[slot] = group.expert
        degraded = filled != row or -1 in filled
        if own is not None and max(filled) < 0:
            filled[0] = own
        return Finish(
            self.number,
            self._still_open(),
            1,
            np.array([filled], dtype=np.int64),
            np.array([row_weights(self.row_scores, filled)], dtype=np.float32),
            tuple([Used(dispatch.index, dispatch.groups) for dispatch in answered]),
            own is not None,
            degraded,
        )

    def _still_open(self) -> tuple[tuple[int, int], ...]:
        if len(self.open_requests) == len(self.requests):
            return tuple(self.requests)
        still_open = {request.number for request in self.open_requests}
        return tuple(pair for pair in self.requests if pair[0] in still_open)

    def _answered(self) -> list[Dispatch]:
        """Return the messages answered, in the order in which they are filled in."""
        answered = [dispatch for dispatch in self.dispatches if dispatch.state is _ANSWERED]
        if len(answered) > 1:
            answered.sort(key=lambda dispatch: dispatch.role.value)
        return answered

    def _filled(self, own: int | None) -> tuple[np.ndarray, tuple[Used, ...]]:
        """Return the expert that fills each slot [rows, k], -1 for none, and the replies used, in order."""
        filled = np.full(self.chosen.shape, -1, dtype=np.int64)
        if own is not None:
            for group in self.own_fill:
                filled[group.rows, group.slots] = own
            filled[self.chosen == own] = own
        answered = self._answered()
        for dispatch in answered:
            for group in dispatch.groups:
                filled[group.rows, group.slots] = group.expert
        return filled, tuple([Used(dispatch.index, dispatch.groups) for dispatch in answered])
