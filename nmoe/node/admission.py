"""Admission: how much may wait for a node's threads before the next is refused at once."""

import threading


class Admission:
    """Counts what waits; safe to use from several threads.

    Args:
        max_items: items that may wait.
        max_bytes: bytes that may wait; a larger item is taken only when it is alone.
    """

    def __init__(self, *, max_items: int, max_bytes: int) -> None:
        self.max_items = max_items
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._items = 0
        self._bytes = 0

    def enter(self, size: int) -> bool:
        """Take an item in, if there is room; then ``leave`` must follow."""
        with self._lock:
            if self._items >= self.max_items or (self._items and self._bytes + size > self.max_bytes):
                return False
            self._items += 1
            self._bytes += size
            return True

    def leave(self, size: int) -> None:
        """An item taken in has been dealt with."""
        with self._lock:
            self._items -= 1
            self._bytes -= size
