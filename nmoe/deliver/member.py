"""Member: a user of a paced server. It registers, streams the model that it is given, computes at the clocks it is given, and leaves.

No clock of this machine is touched. A clock z, and a device slower than this machine by a factor s, are emulated by a duty cycle: a layer
that took c seconds of this thread's processor time (torch must compute on one thread) lasts c s / z, the rest of which is slept behind it.
With s = 1 and a core of its own that is a sleep of c (1 / z - 1). Processor time, since what others do on this machine is not the device's.

What the planner calls a layer begins when the first of its weights is touched and ends when the next layer's is
(``nmoe.deliver.execution``). A layer whose first weight is owned by a module with children has no place to sleep at, and runs at the clock
of the layer before.
"""

import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urljoin, urlsplit

import msgspec
import torch
from torch import nn

from nmoe.deliver.card import DeliveryCard, card_url, parse_card
from nmoe.deliver.delivery import Delivery, delivery_of
from nmoe.deliver.execution import Inputs, LayerGroup, call_arguments
from nmoe.deliver.http import DeliveryError
from nmoe.deliver.scenario import Receiver
from nmoe.deliver.stream import stream_model

USER_HEADER = "X-Nmoe-User"
REFRESH_S = 0.25  # how often a member asks for its allocation, which may change while it downloads
ANSWER_S = 10.0  # a server has this long to answer


class GivenShare(msgspec.Struct, frozen=True, kw_only=True):
    """What the server says of a user: its allocation, see ``Allocation``.

    Attributes:
        id, served, model, bandwidth_share, clocks, energy_j, slack_s, reason: as there.
        finish_s: counted from the registration.
        file: path of the model's file; None if not served.
        rate_bps: pace of its transfers.
        spectral_efficiency: that it is planned with.
        sent_bytes: of the model's layers.
    """

    id: str
    served: bool
    model: str | None
    file: str | None
    bandwidth_share: float
    rate_bps: float
    clocks: tuple[float, ...]
    finish_s: float | None
    energy_j: float | None
    slack_s: float | None
    reason: str
    spectral_efficiency: float
    sent_bytes: int


class LayerTimes(NamedTuple):
    """When a layer had arrived, began and ended, in s from the registration."""

    downloaded_s: float
    started_s: float
    finished_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberRun:
    """What became of a member's task.

    Attributes:
        given: its allocation when it began.
        finish_s: when its answer was there, from the registration.
        layers: of the model, in order.
        output: of the model.
    """

    given: GivenShare
    finish_s: float
    layers: tuple[LayerTimes, ...]
    output: Any


class DeliveryMember:
    """A user of a server, from ``with`` to its end: registered, and heard of every ``REFRESH_S``.

    Args:
        server: its address, such as ``http://127.0.0.1:8080``.
        receiver: as it registers.

    Raises:
        ValueError: when the address is none.
        DeliveryError: on entering, when the server does not take it.
    """

    def __init__(self, server: str, receiver: Receiver) -> None:
        parts = urlsplit(server)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"the address of a server looks like http://127.0.0.1:8080, got {server!r}")
        self.server = server
        self.receiver = receiver
        self.registered_s = 0.0
        self._host, self._port = parts.hostname, parts.port or 80
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_fresh, name="nmoe-member", daemon=True)
        self._given: GivenShare | None = None

    @property
    def given(self) -> GivenShare:
        """The allocation as last heard of."""
        if self._given is None:
            raise ValueError("the member is not registered; use it inside its with block")
        return self._given

    def __enter__(self) -> Self:
        told = {name: value for name, value in asdict(self.receiver).items() if name != "id"}
        self.registered_s = time.monotonic()
        self._given = self._ask("PUT", told)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        with suppress(DeliveryError):  # silence unregisters, too; and what went wrong before is worth more than this
            self._send("DELETE", None)

    def refresh(self) -> GivenShare:
        """Ask for the allocation now.

        Raises:
            DeliveryError: when the server does not tell.
        """
        self._given = self._ask("GET", None)
        return self._given

    def run(self, build: Callable[[], nn.Module], inputs: Inputs, *, cache_dir: Path, slowdown: float = 1.0) -> MemberRun:
        """Stream the model that was given, run it once, and say what came of it.

        Args:
            build: makes that model.
            inputs: of the one call.
            cache_dir: where the file is kept.
            slowdown: how many times slower than this machine the device is, at least 1.

        Raises:
            ValueError: when no model was given, or it is another one than ``build`` makes.
            NmoeError: when the delivery fails.
        """
        given = self.given
        if given.file is None:
            raise ValueError(f"user {self.receiver.id} is not served: {given.reason}")
        if not slowdown >= 1:
            raise ValueError(f"slowdown must be at least 1, got {slowdown}")
        url = urljoin(self.server, given.file)
        card = parse_card(self._send("GET", None, path=urlsplit(card_url(url)).path), name=card_url(url))
        model = stream_model(
            build,
            url,
            card=card,
            cache_dir=cache_dir,
            headers={USER_HEADER: self.receiver.id},
            connections=1,  # layers in order: several would share one pace
            deadline_s=self.receiver.deadline_s + ANSWER_S,
        )
        streaming_s = time.monotonic()
        delivery = delivery_of(model)
        clocks = ClockedLayers(model.eval(), card.layers, delivery, clock=self._clock, slowdown=slowdown)
        args, keywords = call_arguments(inputs)
        with torch.no_grad():
            output = model(*args, **keywords)
        finish_s = time.monotonic() - self.registered_s
        delivery.close()
        layers = _layer_times(card, delivery.arrived_s, clocks, streaming_s=streaming_s, registered_s=self.registered_s)
        return MemberRun(given=given, finish_s=finish_s, layers=layers, output=output)

    def _clock(self, layer: int) -> float:
        """Return a layer's clock as last planned; full where there is no plan any more."""
        clocks = self.given.clocks
        return clocks[layer] if layer < len(clocks) and clocks[layer] > 0 else 1.0

    def _keep_fresh(self) -> None:
        while not self._over.wait(REFRESH_S):
            try:
                self.refresh()
            except DeliveryError:
                continue  # the download says what is wrong with the server, if it stays so

    def _ask(self, method: str, body: Mapping[str, Any] | None) -> GivenShare:
        answer = self._send(method, body)
        try:
            return msgspec.json.decode(answer, type=GivenShare)
        except msgspec.DecodeError as error:
            raise DeliveryError(f"{self.server} is no delivery server: {error}") from error

    def _send(self, method: str, body: Mapping[str, Any] | None, *, path: str | None = None) -> bytes:
        """Ask the server once.

        Raises:
            DeliveryError: when it cannot be reached or refuses.
        """
        connection = http.client.HTTPConnection(self._host, self._port, timeout=ANSWER_S)
        try:
            written = None if body is None else json.dumps(body).encode()
            connection.request(method, path or f"/users/{self.receiver.id}", written, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise DeliveryError(f"cannot reach {self.server}: {error or type(error).__name__}") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise DeliveryError(f"{self.server} answers {answer.status}: {data[:400].decode('utf-8', 'replace')}")
        return data


class ClockedLayers:
    """Makes a model's layers take as long as they would at given clocks on a slower device, by sleeping between them.

    Args:
        model: from ``stream_model``; it is given hooks, and should be called once.
        layers: of its card.
        delivery: of the model: what a layer waited for its weights is not computing.
        clock: of a layer by its number, in (0, 1]; asked for when it ends.
        slowdown: see ``DeliveryMember.run``.
        sleep: for so many seconds.
        now: clock on the wall, in s.
        busy: processor time of this thread, in s.

    Attributes:
        spans: first and last layer between two places to sleep at, when it began and when it ended (``now``).
    """

    def __init__(
        self,
        model: nn.Module,
        layers: tuple[LayerGroup, ...],
        delivery: Delivery,
        *,
        clock: Callable[[int], float],
        slowdown: float,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
        busy: Callable[[], float] = time.thread_time,
    ) -> None:
        self._layers, self._waited_s = layers, delivery.waited_s
        self._clock, self._slowdown = clock, slowdown
        self._sleep, self._now, self._busy = sleep, now, busy
        self._first, self._since_s, self._busy_s = 0, now(), busy()
        self.spans: list[tuple[int, int, float, float]] = []
        owners: set[str] = set()
        modules = dict(model.named_modules())
        for number, layer in enumerate(layers):
            owner = layer.tensors[0].rpartition(".")[0]
            if number and owner in modules and owner not in owners and not any(modules[owner].children()):
                modules[owner].register_forward_pre_hook(lambda *_, reached=number: self._end(reached))
            owners.add(owner)
        model.register_forward_pre_hook(lambda *_: self._begin())
        model.register_forward_hook(lambda *_: self._end(len(layers)))

    def _begin(self) -> None:
        self._first, self._since_s, self._busy_s = 0, self._now(), self._busy()

    def _end(self, reached: int) -> None:
        """Take note that the layers before ``reached`` have computed, and sleep for what they would have taken beyond that."""
        if reached <= self._first:
            return
        span = range(self._first, reached)
        waited_s = sum(self._waited_s.get(tensor, 0.0) for layer in span for tensor in self._layers[layer].tensors)
        lasting_s = (self._busy() - self._busy_s) * self._slowdown / self._clock(self._first)
        self._sleep(max(0.0, lasting_s + waited_s - (self._now() - self._since_s)))
        ended_s = self._now()
        self.spans.append((span.start, span.stop - 1, min(self._since_s + waited_s, ended_s), ended_s))
        self._first, self._since_s, self._busy_s = reached, ended_s, self._busy()


def _layer_times(
    card: DeliveryCard, arrived_s: Mapping[str, float], clocks: ClockedLayers, *, streaming_s: float, registered_s: float
) -> tuple[LayerTimes, ...]:
    """Return the times of all layers from the registration. Layers of one span share its beginning and end."""
    times = []
    for first, last, began_s, ended_s in clocks.spans:
        for layer in card.layers[first : last + 1]:
            there_s = max((arrived_s.get(tensor, 0.0) for tensor in layer.tensors), default=0.0)
            times.append(LayerTimes(streaming_s - registered_s + there_s, began_s - registered_s, ended_s - registered_s))
    return tuple(times)
