"""Progress: a bar with time left for every stage on a terminal, one line per finished stage elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

WORDS = {
    "features": "stage 1: shared extractor",
    "experts": "stage 2: personal experts",
    "gates": "stage 3: gates",
    "bundles": "writing bundles",
    "naive_gates": "control: naive gates",
    "fedavg": "control: FedAvg",
    "controls": "scores",
    "central": "control: central mixture",
    "start": "starting node processes",
    "serving": "answering over the mesh",
    "alone": "answering without links",
    "report": "report",
}


class StageProgress:
    """Shows how far each stage is; use it as a context manager.

    Args:
        console: where to show it; progress goes to standard error by default, so that results can be piped.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description:<27}"),
            BarColumn(bar_width=26),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}

    def stage(self, name: str, done: int, total: int) -> None:
        """Say that ``done`` of ``total`` steps of a stage have ended; a new name opens a new bar."""
        words = WORDS.get(name, name)
        if name not in self._tasks:
            self._began[name] = time.monotonic()
            self._tasks[name] = self._bars.add_task(words, total=total)
        self._bars.update(self._tasks[name], completed=done, total=total)
        if done == total and not self._console.is_terminal:
            self._console.print(f"{words}: {total} steps, {time.monotonic() - self._began[name]:.1f} s", highlight=False)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()
