"""Outbox: threads that send what their callers must not wait for; and which threads are a transport's own."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

_thread = threading.local()  # how many callbacks of a transport this thread is in


@dataclass(slots=True)
class Outbox:
    """A thread that sends, so that nobody else waits for a full link."""

    name: str
    queue: SimpleQueue[Callable[[], None] | None] = field(default_factory=SimpleQueue)
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, name=self.name)
        self.thread.start()

    def _run(self) -> None:
        while (send := self.queue.get()) is not None:
            send()

    def close(self) -> None:
        """Send what waits and end the thread."""
        self.queue.put(None)
        self.thread.join()


class Callback:
    """Marks its thread as the transport's while it runs."""

    def __enter__(self) -> None:
        _thread.depth = self._depth() + 1

    def __exit__(self, *_: object) -> None:
        _thread.depth -= 1

    @staticmethod
    def _depth() -> int:
        depth: int = _thread.__dict__.get("depth", 0)
        return depth

    @classmethod
    def running(cls) -> bool:
        """Say whether this thread runs one."""
        return cls._depth() > 0
