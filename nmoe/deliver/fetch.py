"""Fetching: threads that bring a model's tensors from its servers into the cache, those that are waited for first.

Each source has a few connections, and each takes the next run of missing pieces: so several sources share the work by how fast they are.
A transfer that breaks goes on where it stopped. A source that fails again and again is dropped while there is another; with the last one
it is tried until nothing has come for a while. A tensor is ready once all its pieces are there and, where its hash is known, have it; the
last tensor of a file whose hash alone is known waits until the whole file has been checked.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial

from nmoe.core.errors import BadFile, NmoeError
from nmoe.deliver.address import shown
from nmoe.deliver.http import BrokenTransfer, DeliveryError, Pace
from nmoe.deliver.pieces import PieceQueue
from nmoe.deliver.supply import FIRST_PAUSE_S, LONGEST_PAUSE_S, TRIES, FetchedFile, Filling, Supplier

WRONG_HASHES = 3  # of a tensor, until it is given up


class Fetcher:
    """Fetches files until they are whole; ``start`` begins, ``close`` ends it early. All methods may be called from any thread.

    Args:
        files: begun in the cache, with different tensors.
        suppliers: the sources, the first of which has opened all files.
        hashes: the SHA-256 of tensors, where known.
        pace: bounds the rate.
        connections: per source; 1 is used where the server sends whole files only.
        deadline_s: when nothing new has come for so long, and the last source breaks, it is given up.
        notice: told what a user should know.
    """

    def __init__(
        self,
        files: Sequence[FetchedFile],
        suppliers: Sequence[Supplier],
        *,
        hashes: Mapping[str, str],
        pace: Pace,
        connections: int,
        deadline_s: float,
        notice: Callable[[str], None],
    ) -> None:
        self._files, self._suppliers, self._hashes, self._pace = files, suppliers, hashes, pace
        self._connections, self._deadline_s, self._notice = connections, deadline_s, notice
        self._places = {place.name: (file, place) for file in files for place in file.layout.tensors}
        self._queue = PieceQueue([file.layout for file in files])
        self._sequential = not all(remote.ranges for remote in suppliers[0].remotes.values())
        self._news = threading.Condition()
        self._closed = threading.Event()
        self._failure: NmoeError | None = None
        self._threads: list[threading.Thread] = []
        self._running = 0
        self._files_left = len(files)
        self._journal: dict[int, str] = {}
        self._supplied: dict[int, Supplier] = {}
        self._wrong: Counter[str] = Counter()
        self._began_s = self._news_s = time.monotonic()
        self.total_bytes = sum(piece.end - piece.start for piece in self._queue.pieces)
        self.fetched_bytes = self.cached_bytes = 0
        self.arrived_s: dict[str, float] = {}
        self.finished = threading.Event()

    def reorder(self, tensors: Sequence[str]) -> None:
        """Fetch tensors in this order from now on."""
        with self._news:
            self._queue.reorder(tensors)

    def start(self, cached: Sequence[Mapping[tuple[int, int], str]]) -> None:
        """Begin to fetch.

        Args:
            cached: for each file what its journal says.
        """
        for file in self._files:
            file.tensors_left = sum(place.end > place.start for place in file.layout.tensors)
        for number, piece in enumerate(self._queue.pieces):
            sha256 = cached[piece.file].get((piece.start, piece.end))
            if sha256 is not None:
                self._journal[number] = sha256
                self._queue.cached(number)
        work: list[Callable[[], None]] = [self._finish_empty]
        if self._journal:
            work.append(self._check_cached)
        for supplier in self._suppliers:
            work += [partial(self._fetch, supplier)] * (1 if self._sequential else self._connections)
        self._running = len(work)
        self._began_s = self._news_s = time.monotonic()
        threads = [threading.Thread(target=self._run, args=(task,), name="nmoe-fetch", daemon=True) for task in work]
        for thread in threads:
            thread.start()
        self._threads = threads  # only now: what is closed meanwhile is told by ``stop``, and cannot be joined before it was started

    def wait(self, tensor: str) -> None:
        """Wait until a tensor is ready, and put it first until then.

        Raises:
            NmoeError: why it will not come.
        """
        with self._news:
            if not self._ready(tensor):
                self._queue.hurry(tensor)
                self._news.notify_all()
            while not self._ready(tensor):
                if self._failure is not None:
                    raise type(self._failure)(str(self._failure)) from self._failure
                if self._closed.is_set():
                    raise DeliveryError(f"the delivery was closed before {tensor} had arrived")
                self._news.wait()

    def wait_all(self) -> None:
        """Wait until every file is whole and checked.

        Raises:
            NmoeError: why they will not be.
        """
        with self._news:
            while not self.finished.is_set():
                if self._failure is not None:
                    raise type(self._failure)(str(self._failure)) from self._failure
                if self._closed.is_set():
                    raise DeliveryError("the delivery was closed before everything had arrived")
                self._news.wait()

    def over_within(self, seconds: float) -> bool:
        """Wait for at most so long; say whether the download has ended, well or badly."""
        with self._news:
            return self._news.wait_for(self._over, timeout=seconds)

    def stop(self) -> None:
        """Tell all threads to end, and return at once."""
        self._closed.set()
        for supplier in self._suppliers:
            supplier.source.close()
        with self._news:
            self._news.notify_all()

    def close(self) -> None:
        """End all threads. What has arrived stays in the cache."""
        self.stop()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _ready(self, tensor: str) -> bool:
        return tensor in self.arrived_s or not self._queue.numbers(tensor)

    def _over(self) -> bool:
        return self._closed.is_set() or self._failure is not None or self.finished.is_set()

    def _run(self, task: Callable[[], None]) -> None:
        """Run a thread's task; the last to end tidies up, and nobody is left waiting whatever happens."""
        try:
            task()
        except NmoeError as error:
            self._fail(error)
        finally:
            with self._news:
                self._running -= 1
                last = self._running == 0
                if last and not self._over():
                    self._failure = DeliveryError("the download ended before everything had arrived")
                self._news.notify_all()
            if last:
                for supplier in self._suppliers:
                    supplier.source.close()
                for file in self._files:
                    file.entry.close()

    def _fail(self, error: NmoeError) -> None:
        with self._news:
            if not self._over():
                self._failure = error
            self._news.notify_all()
        for supplier in self._suppliers:
            supplier.source.close()

    def _finish_empty(self) -> None:
        """Finish files that have no bytes of data."""
        for file in self._files:
            if all(place.end == place.start for place in file.layout.tensors):
                self._check_file(file)
                self._finish_file(file)

    def _check_cached(self) -> None:
        """Check the pieces that the journal claims, in the order in which they are wanted."""
        while not self._over():
            with self._news:
                number = self._queue.take_cached()
            if number is None:
                return
            piece = self._queue.pieces[number]
            entry = self._files[piece.file].entry
            if entry.digest(piece.start, piece.end) == self._journal[number]:
                self.cached_bytes += piece.end - piece.start
                self._piece_done(number, self._journal[number])
            else:
                entry.record(piece.start, piece.end, None)
                self._notice(
                    f"bytes {piece.start} to {piece.end} of {self._files[piece.file].name} in the cache are damaged: fetched again"
                )
                self._give_back([number])

    def _fetch(self, supplier: Supplier) -> None:
        """Fetch run after run from one source, until there is nothing left or the source is dropped."""
        while run := self._take(supplier):
            number = self._queue.pieces[run[0]].file
            filling = Filling(self._files[number], run, self._queue.pieces, lambda piece, sha256: self._arrived(piece, sha256, supplier))
            try:
                while filling.left and not self._over() and not supplier.dropped:
                    self._transfer(supplier, number, filling)
            finally:
                if filling.left:
                    self._give_back(filling.left)

    def _take(self, supplier: Supplier) -> list[int]:
        with self._news:
            while not self._over() and not supplier.dropped:
                run = self._queue.take_file() if self._sequential else self._queue.take_run()
                if run:
                    return run
                self._news.wait()
        return []

    def _transfer(self, supplier: Supplier, number: int, filling: Filling) -> None:
        """Read once from a source; a failure is counted, and ends in a pause, in dropping the source, or in giving up."""
        try:
            remote = supplier.remote(number, self._files[number])
            with closing(supplier.source.read(remote, filling.at, filling.end)) as chunks:
                for chunk in chunks:
                    new_bytes = filling.feed(chunk)
                    with self._news:
                        self.fetched_bytes += len(chunk)
                        if new_bytes:
                            supplier.failures, self._news_s = 0, time.monotonic()
                    if self._closed.wait(self._pace.book(len(chunk))):
                        return
            if filling.left:
                raise BrokenTransfer(f"{shown(remote.url)} ended at byte {filling.at}")
        except DeliveryError as error:
            self._closed.wait(self._after(error, supplier, number, filling.at))

    def _after(self, error: DeliveryError, supplier: Supplier, number: int, at: int) -> float:
        """Decide what follows a failure; return for how many seconds to pause."""
        name, passing = shown(supplier.urls[number]), isinstance(error, BrokenTransfer)
        with self._news:
            if self._over():
                return 0.0
            supplier.failures += 1
            if self._others(supplier) and (not passing or supplier.failures >= TRIES):
                self._drop(supplier, str(error))
                return 0.0
            quiet_s = time.monotonic() - self._news_s
            if not passing:
                self._failure = error
            elif quiet_s > self._deadline_s:
                self._failure = DeliveryError(f"gave up on {name} at byte {at}: nothing came for {quiet_s:.1f} s; last, {error}")
            self._news.notify_all()
            wanted_s = error.retry_after_s if isinstance(error, BrokenTransfer) else 0.0
            pause_s = min(FIRST_PAUSE_S * 2.0 ** min(supplier.failures - 1, 10), LONGEST_PAUSE_S)
        return max(pause_s, min(wanted_s, self._deadline_s - quiet_s))

    def _others(self, supplier: Supplier) -> bool:
        return any(not other.dropped and other is not supplier for other in self._suppliers)

    def _drop(self, supplier: Supplier, reason: str) -> None:
        if not supplier.dropped:
            supplier.dropped = True
            self._notice(f"source {shown(supplier.urls[0])} is dropped: {reason}")
            self._news.notify_all()

    def _give_back(self, numbers: Sequence[int]) -> None:
        with self._news:
            self._queue.give_back(numbers)
            self._news.notify_all()

    def _arrived(self, number: int, sha256: str, supplier: Supplier) -> None:
        """Enter a piece that has come over the network."""
        piece = self._queue.pieces[number]
        self._files[piece.file].entry.record(piece.start, piece.end, sha256)
        self._supplied[number] = supplier
        self._piece_done(number, sha256)

    def _piece_done(self, number: int, sha256: str) -> None:
        """Note a piece; check its tensor when that is whole, and its file when that is."""
        with self._news:
            whole = self._queue.finish(number)
        if not whole:
            return
        tensor = self._queue.pieces[number].tensor
        file, place = self._places[tensor]
        if tensor in self._hashes:
            single = len(self._queue.numbers(tensor)) == 1
            if (sha256 if single else file.entry.digest(place.start, place.end)) != self._hashes[tensor]:
                self._wrong_hash(tensor, file)
                return
        with self._news:
            file.tensors_left -= 1
            last = file.tensors_left == 0
        if last:
            self._check_file(file)
        with self._news:
            self.arrived_s[tensor] = time.monotonic() - self._began_s
            self._news.notify_all()
        if last:
            self._finish_file(file)

    def _wrong_hash(self, tensor: str, file: FetchedFile) -> None:
        """Fetch a tensor again whose hash is wrong, without the source it came from where there is another."""
        numbers = self._queue.numbers(tensor)
        for number in numbers:
            file.entry.record(self._queue.pieces[number].start, self._queue.pieces[number].end, None)
        self._wrong[tensor] += 1
        if self._wrong[tensor] >= WRONG_HASHES:
            raise BadFile(f"tensor {tensor} of {file.name} does not have the card's SHA-256, fetched {WRONG_HASHES} times")
        self._notice(f"tensor {tensor} of {file.name} does not have the card's SHA-256: fetched again")
        with self._news:
            for supplier in {id(self._supplied[number]): self._supplied[number] for number in numbers if number in self._supplied}.values():
                if self._others(supplier):
                    self._drop(supplier, f"it sent a wrong {tensor}")
        self._give_back(numbers)

    def _check_file(self, file: FetchedFile) -> None:
        """Check the hash of a whole file, where it is known and its tensors' are not."""
        if file.sha256 and (found := file.entry.digest(0, file.layout.file_bytes)) != file.sha256:
            file.entry.discard()
            raise BadFile(f"{file.name} has SHA-256 {found}, {file.sha256} wanted; it is thrown away")

    def _finish_file(self, file: FetchedFile) -> None:
        file.entry.finish()
        with self._news:
            self._files_left -= 1
            if not self._files_left:
                self.finished.set()
            self._news.notify_all()
