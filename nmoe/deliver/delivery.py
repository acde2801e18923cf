"""Delivery: what goes on behind a model that is being streamed, for whoever wants to watch, wait or end it."""

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from nmoe.deliver.fetch import Fetcher
from nmoe.deliver.layout import TensorPlace
from nmoe.deliver.mapped import MappedFile

GRACE_S = 0.2  # a download that ends sooner needs no order

Order = Literal["card", "traced", "module tree"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryProgress:
    """How far a delivery is.

    Attributes:
        total_bytes: of all tensors.
        arrived_bytes: of those, over the network or from the cache.
        fetched_bytes: over the network, repetitions too.
        needed_bytes: of the tensors that the computation has reached.
        waiting: the tensor that it is waiting for; empty if for none.
        finished: whether everything has arrived and been checked.
    """

    total_bytes: int
    arrived_bytes: int
    fetched_bytes: int
    needed_bytes: int
    waiting: str
    finished: bool


class Delivery:
    """A model's delivery. Times are in seconds since it began.

    Attributes:
        notices: what a user should know, such as a server without Range or a source that was dropped.
        order: where the order of fetching comes from.
        arrived_s: when each tensor of the files was ready; empty where everything was in the cache.
        needed_s: when the computation touched each tensor first.
        waited_s: for how long it then waited.
    """

    def __init__(self, *, notify: Callable[[str], None] | None) -> None:
        self.notices: list[str] = []
        self.order: Order = "module tree"
        self.arrived_s: Mapping[str, float] = {}
        self.needed_s: dict[str, float] = {}
        self.waited_s: dict[str, float] = {}
        self.paths: tuple[Path, ...] = ()
        self._notify = notify
        self._fetcher: Fetcher | None = None
        self._places: dict[str, tuple[MappedFile, TensorPlace]] = {}
        self._fetched: frozenset[str] = frozenset()
        self._arrived: dict[str, Tensor] = {}
        self._beside: threading.Thread | None = None
        self._waiting = ""
        self._lock = threading.Lock()
        self._began_s = time.monotonic()

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self  # a copied model was delivered by the same delivery

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Delivery, notify=None), ()  # a pickled model has its weights: there is nothing left to deliver

    def notice(self, text: str) -> None:
        """Note something that a user should know, and tell it at once where that is wanted."""
        self.notices.append(text)
        if self._notify is not None:
            self._notify(text)

    def attach(self, places: Mapping[str, tuple[MappedFile, TensorPlace]], paths: Sequence[Path]) -> None:
        """Say where tensors lie."""
        self._places, self.paths, self._began_s = dict(places), tuple(paths), time.monotonic()

    def follow(self, fetcher: Fetcher, fetched: Collection[str]) -> None:
        """Say who brings which of them."""
        self._fetcher, self._fetched, self.arrived_s = fetcher, frozenset(fetched), fetcher.arrived_s

    def take(self, name: str, placeholder: Tensor) -> Tensor:
        """Return a tensor, as a parameter where the placeholder is one, waiting until it is there.

        Raises:
            NmoeError: why it will not come.
        """
        if name not in self._arrived:
            began_s = time.monotonic()
            self.needed_s.setdefault(name, began_s - self._began_s)
            if self._fetcher is not None and name in self._fetched:
                self._waiting = name
                self._fetcher.wait(name)
                self._waiting = ""
            self.waited_s.setdefault(name, time.monotonic() - began_s)
        with self._lock:
            if name not in self._arrived:
                pages, place = self._places[name]
                tensor = pages.tensor(place)
                if isinstance(placeholder, nn.Parameter):
                    floats = tensor.is_floating_point() or tensor.is_complex()
                    with torch.inference_mode(False):  # fit for autograd, whatever mode the caller is in
                        tensor = nn.Parameter(tensor, requires_grad=placeholder.requires_grad and floats)
                self._arrived[name] = tensor
            return self._arrived[name]

    def forget(self) -> None:
        """Drop the tensors: the model holds them now."""
        with self._lock:
            self._arrived = {}

    def reorder(self, names: Sequence[str]) -> None:
        """Fetch in this order, which was traced, from now on."""
        if self._fetcher is not None:
            self._fetcher.reorder(names)
            self.order = "traced"

    def beside(self, work: Callable[[], None]) -> None:
        """Do something in a thread that ``close`` waits for, unless all has arrived in a moment."""
        fetcher = self._fetcher
        assert fetcher is not None

        def run() -> None:
            if not fetcher.over_within(GRACE_S):
                work()

        thread = threading.Thread(target=run, name="nmoe-trace", daemon=True)
        thread.start()
        self._beside = thread  # only now, since another thread may be closing

    @property
    def finished(self) -> bool:
        """Whether everything has arrived and been checked."""
        return self._fetcher is None or self._fetcher.finished.is_set()

    def progress(self) -> DeliveryProgress:
        """Return how far it is."""
        sizes = {name: place.end - place.start for name, (_, place) in self._places.items()}
        coming = [name for name in self._fetched if name not in self.arrived_s]
        total_bytes = sum(sizes.values())
        return DeliveryProgress(
            total_bytes=total_bytes,
            arrived_bytes=total_bytes - sum(sizes[name] for name in coming),
            fetched_bytes=0 if self._fetcher is None else self._fetcher.fetched_bytes,
            needed_bytes=sum(sizes[name] for name in list(self.needed_s)),
            waiting=self._waiting,
            finished=self.finished,
        )

    def wait(self) -> None:
        """Wait until everything has arrived and been checked.

        Raises:
            NmoeError: why it will not.
        """
        if self._fetcher is not None:
            self._fetcher.wait_all()

    def stop(self) -> None:
        """Tell the threads to end; what has arrived stays in the cache."""
        if self._fetcher is not None:
            self._fetcher.stop()

    def close(self) -> None:
        """End the threads, and wait until they have ended; what has arrived stays in the cache."""
        if self._fetcher is not None:
            self._fetcher.close()
        if self._beside is not None and self._beside is not threading.current_thread():
            self._beside.join()


def delivery_of(model: nn.Module) -> Delivery:
    """Return the delivery of a model from ``stream_model``.

    Raises:
        ValueError: when it is not one.
    """
    delivery = vars(model).get("delivery")
    if not isinstance(delivery, Delivery):
        raise ValueError(f"a model from stream_model wanted, got {type(model).__name__}")
    return delivery
