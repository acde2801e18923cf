"""A client process of the delivery demo: ``python -m nmoe.recipes.deliver_client``. Orders come on standard input, answers go out, as JSON.

It ends when standard input does, so it never outlives who started it.
"""

import os
import queue
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from nmoe.core.bundle import ModelSpec
from nmoe.core.errors import NmoeError
from nmoe.core.seeds import torch_generator
from nmoe.deliver.arriving import build_empty
from nmoe.deliver.execution import traceable_copy
from nmoe.deliver.member import DeliveryMember, GivenShare, LayerTimes
from nmoe.deliver.scenario import parse_receiver
from nmoe.moe.build import build

CALLS = 3  # of a model when it is timed, at least


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What a client is told when it starts.

    Attributes:
        models: how to build each of its models.
        batch: images of its task.
        image_size: of an image.
        seed: of the images.
        cache: folder for the file it fetches.
    """

    models: dict[str, ModelSpec]
    batch: int
    image_size: int
    seed: int
    cache: str


class Calibrate(msgspec.Struct, frozen=True, tag=True):
    """Order: time the models here, again and again for so many seconds, so that all clients that are told to do it at once."""

    for_s: float


class Enlist(msgspec.Struct, frozen=True, tag=True):
    """Order: register with a server as a receiver, given as the table of a scenario."""

    server: str
    receiver: dict[str, Any]


class Start(msgspec.Struct, frozen=True, tag=True):
    """Order: stream and run the model that was given, on a device slower by these factors; then leave."""

    slowdown: dict[str, float]


class Timed(msgspec.Struct, frozen=True, tag=True):
    """Answer: processor time of the slowest call of each model, in s."""

    call_s: dict[str, float]


class Enlisted(msgspec.Struct, frozen=True, tag=True):
    """Answer: the allocation."""

    given: GivenShare


class Ended(msgspec.Struct, frozen=True, tag=True):
    """Answer: what came of the task; times from the registration. Without a share there are none."""

    given: GivenShare
    finish_s: float | None
    layers: tuple[LayerTimes, ...]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Answer: why an order could not be carried out."""

    reason: str


Order = Calibrate | Enlist | Start
Report = Timed | Enlisted | Ended | Failed


def main() -> None:
    """Carry out orders until there are no more."""
    torch.set_num_threads(1)
    orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    client = _Client(msgspec.json.decode(sys.argv[1], type=Setting))
    _say(b"ready")
    while True:
        order = orders.get()
        try:
            report = client.carry_out(order)
        except (NmoeError, ValueError) as error:
            report = Failed(str(error))
        _say(msgspec.json.encode(report))


def _listen(orders: "queue.SimpleQueue[Order]") -> None:
    for line in sys.stdin.buffer:
        orders.put(msgspec.json.decode(line, type=Order))
    os._exit(0)  # whoever gave orders is gone, whatever goes on here


def _say(line: bytes) -> None:
    os.write(1, line + b"\n")


class _Client:
    """Carries out orders."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._member: DeliveryMember | None = None
        self._warm = False

    def carry_out(self, order: Order) -> Report:
        """Carry out one order.

        Raises:
            NmoeError: when the world is in the way.
            ValueError: when the order makes no sense.
        """
        if isinstance(order, Calibrate):
            return Timed(self._time(order.for_s))
        if isinstance(order, Enlist):
            self._member = DeliveryMember(order.server, parse_receiver(order.receiver)).__enter__()
            return Enlisted(self._member.given)
        if self._member is None:
            raise ValueError("a client registers before it starts")
        try:
            return self._run(self._member, order)
        finally:
            self._member.__exit__()

    def _run(self, member: DeliveryMember, order: Start) -> Ended:
        given = member.refresh()
        if given.model is None:
            return Ended(given, None, ())
        spec = self._setting.models[given.model]
        run = member.run(
            lambda: build(spec, generator=torch.Generator()),
            self._images(),
            cache_dir=Path(self._setting.cache),
            slowdown=order.slowdown[given.model],
        )
        return Ended(given, run.finish_s, run.layers)

    def _images(self) -> Tensor:
        side = self._setting.image_size
        return torch.rand(self._setting.batch, 3, side, side, generator=torch_generator(self._setting.seed, "images"))

    def _time(self, for_s: float) -> dict[str, float]:
        """Return the processor time of the slowest call of each model, in s. Of a new model each time: a device runs it once."""
        specs, images = self._setting.models, self._images()
        if not self._warm:
            for spec in specs.values():  # torch imports some of itself when it is needed first: here, before time counts
                traceable_copy(build_empty(partial(build, spec, generator=torch.Generator())))
                _call_s(spec, images)
            self._warm = True
        slowest = dict.fromkeys(specs, 0.0)
        calls, until_s = 0, time.monotonic() + for_s
        while calls < CALLS or time.monotonic() < until_s:
            slowest = {name: max(slowest[name], _call_s(spec, images)) for name, spec in specs.items()}
            calls += 1
        return slowest


def _call_s(spec: ModelSpec, images: Tensor) -> float:
    """Return the processor time of a new model's first call, in s."""
    model = build(spec, generator=torch.Generator()).eval()
    with torch.no_grad():
        began_s = time.thread_time()
        model(images)
        return time.thread_time() - began_s


if __name__ == "__main__":
    main()
