"""Progress of a delivery: one bar for what has arrived, one for how far the computation is."""

import threading
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from nmoe.deliver.delivery import Delivery

REFRESH_S = 0.1


class DeliveryBars:
    """Shows a delivery on a terminal while it goes on; use it as a context manager. Elsewhere it shows nothing.

    Args:
        delivery: that is shown.
        console: where; standard error by default, so that results can be piped.
    """

    def __init__(self, delivery: Delivery, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._delivery = delivery
        columns = (
            TextColumn("{task.description:<20}"),
            BarColumn(bar_width=26),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
        )
        self._bars = Progress(*columns, TextColumn("{task.fields[waiting]}"), console=console, disable=not console.is_terminal)
        total = delivery.progress().total_bytes
        self._tasks = [self._bars.add_task(name, total=total, waiting="") for name in ("weights arrived", "weights computed on")]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="nmoe-delivery-bars", daemon=True)

    def _follow(self) -> None:
        while not self._over.wait(REFRESH_S):
            self._update()

    def _update(self) -> None:
        progress = self._delivery.progress()
        self._bars.update(self._tasks[0], completed=progress.arrived_bytes)
        self._bars.update(
            self._tasks[1], completed=progress.needed_bytes, waiting=f"waits for {progress.waiting}" if progress.waiting else ""
        )

    def __enter__(self) -> Self:
        self._bars.start()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._update()
        self._bars.stop()
