"""Pieces: which bytes of a model are wanted next, without any input or output.

Every tensor is cut into pieces of at most 4 MiB. The queue hands out runs: pieces that lie side by side in one file, from the first that is
missing on, in the order of execution. A run looks ahead only as far as a window, since neighbours in the file may be far apart in execution
(files are sorted by name), and every jump costs a request; what is asked for out of turn goes first.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum

from nmoe.deliver.layout import Layout

PIECE_BYTES = 4 << 20
MIN_WINDOW_BYTES, MAX_WINDOW_BYTES, WINDOWS = 256 << 10, 4 << 20, 64  # ours: a jump is hidden, and little is fetched out of turn


class PieceState(IntEnum):
    """How far a piece is."""

    MISSING = 0
    CACHED = 1  # the journal says that it is there; its hash has not been checked
    TAKEN = 2
    DONE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Bytes of one tensor.

    Attributes:
        file: which of the files.
        tensor: its name.
        start, end: bytes of the file; end is exclusive.
    """

    file: int
    tensor: str
    start: int
    end: int


class PieceQueue:
    """The pieces of all files, numbered as they lie. Not thread-safe: whoever shares it locks it.

    Args:
        layouts: of the files; tensors have different names.
        window_bytes: how far a run looks ahead; a 64th of all bytes, between 256 KiB and 4 MiB, if not given.
    """

    def __init__(self, layouts: Sequence[Layout], *, window_bytes: int | None = None) -> None:
        self.pieces = [
            Piece(file=file, tensor=place.name, start=start, end=min(start + PIECE_BYTES, place.end))
            for file, layout in enumerate(layouts)
            for place in layout.tensors
            for start in range(place.start, place.end, PIECE_BYTES)
        ]
        self._of: dict[str, list[int]] = {}
        for number, piece in enumerate(self.pieces):
            self._of.setdefault(piece.tensor, []).append(number)
        self._left = {tensor: len(numbers) for tensor, numbers in self._of.items()}
        self._state = [PieceState.MISSING] * len(self.pieces)
        total_bytes = sum(piece.end - piece.start for piece in self.pieces)
        self._window_bytes = window_bytes or min(max(total_bytes // WINDOWS, MIN_WINDOW_BYTES), MAX_WINDOW_BYTES)
        self._urgent: deque[int] = deque()
        self._order: list[int] = []
        self._turn: list[int] = []
        self._next = 0
        self.reorder(())

    def reorder(self, tensors: Sequence[str]) -> None:
        """Set the order of tensors; those not named follow in the order in which they lie."""
        named = dict.fromkeys(tensor for tensor in (*tensors, *self._of) if tensor in self._of)
        self._order = [number for tensor in named for number in self._of[tensor]]
        self._turn = [0] * len(self.pieces)
        for turn, number in enumerate(self._order):
            self._turn[number] = turn
        self._next = 0

    def numbers(self, tensor: str) -> list[int]:
        """Return the numbers of a tensor's pieces; an empty tensor has none."""
        return self._of.get(tensor, [])

    def hurry(self, tensor: str) -> None:
        """Put what is missing of a tensor first."""
        waiting = set(self._urgent)
        self._urgent.extend(number for number in self.numbers(tensor) if self._state[number] < PieceState.TAKEN and number not in waiting)

    def cached(self, number: int) -> None:
        """Say that a piece is in the cache, to be checked."""
        self._state[number] = PieceState.CACHED

    def take_cached(self) -> int | None:
        """Take the next piece that is to be checked; None when there is none."""
        number = self._first(PieceState.CACHED)
        if number is not None:
            self._state[number] = PieceState.TAKEN
        return number

    def take_run(self) -> list[int]:
        """Take the next run; empty when nothing is missing that is not being fetched."""
        seed = self._first(PieceState.MISSING)
        if seed is None:
            return []
        run = [seed]
        window = self._window(seed)
        for step in (-1, 1):
            run += self._beside(seed, step, window)
        return self._taken(sorted(run))

    def take_file(self) -> list[int]:
        """Take all that is missing of the file whose turn it is, for a server that only sends whole files."""
        seed = self._first(PieceState.MISSING)
        if seed is None:
            return []
        file = self.pieces[seed].file
        missing = enumerate(zip(self.pieces, self._state, strict=True))
        return self._taken([number for number, (piece, state) in missing if piece.file == file and state == PieceState.MISSING])

    def give_back(self, numbers: Collection[int]) -> None:
        """Say that pieces are missing after all: not fetched, or wrong."""
        for number in numbers:
            if self._state[number] == PieceState.DONE:
                self._left[self.pieces[number].tensor] += 1
            self._state[number] = PieceState.MISSING
            self._next = min(self._next, self._turn[number])

    def finish(self, number: int) -> bool:
        """Say that a piece is there; return whether its tensor is whole now."""
        tensor = self.pieces[number].tensor
        self._state[number] = PieceState.DONE
        self._left[tensor] -= 1
        return self._left[tensor] == 0

    def _taken(self, run: list[int]) -> list[int]:
        for number in run:
            self._state[number] = PieceState.TAKEN
        return run

    def _first(self, state: PieceState) -> int | None:
        """Return the first piece in a state: urgent ones, then in order."""
        while self._urgent and self._state[self._urgent[0]] >= PieceState.TAKEN:
            self._urgent.popleft()
        for number in self._urgent:
            if self._state[number] == state:
                return number
        while self._next < len(self._order) and self._state[self._order[self._next]] >= PieceState.TAKEN:
            self._next += 1
        for turn in range(self._next, len(self._order)):
            if self._state[self._order[turn]] == state:
                return self._order[turn]
        return None

    def _window(self, seed: int) -> set[int]:
        """Return the next missing pieces in order, the seed among them, up to the window's bytes."""
        window, num_bytes = {seed}, self.pieces[seed].end - self.pieces[seed].start
        for turn in range(self._turn[seed] + 1, len(self._order)):
            number = self._order[turn]
            num_bytes += self.pieces[number].end - self.pieces[number].start
            if num_bytes > self._window_bytes:
                break
            if self._state[number] == PieceState.MISSING:
                window.add(number)
        return window

    def _beside(self, seed: int, step: int, window: set[int]) -> list[int]:
        """Return the pieces on one side of the seed that belong to its run; a small gap is fetched along."""
        run: list[int] = []
        gap: list[int] = []
        gap_bytes, number = 0, seed + step
        while 0 <= number < len(self.pieces) and self.pieces[number].file == self.pieces[seed].file:
            if self._state[number] != PieceState.MISSING:
                break
            gap.append(number)
            if number in window:
                run += gap
                gap, gap_bytes = [], 0
            else:
                gap_bytes += self.pieces[number].end - self.pieces[number].start
                if gap_bytes > self._window_bytes // 16:  # ours: cheaper than another request on most links
                    break
            number += step
        return run
