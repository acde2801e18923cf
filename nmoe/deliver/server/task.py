"""Task: what one user still has to download and to compute at some moment, so that it can be planned anew. Time is an argument.

Symbols as in ``nmoe.deliver.allocate``. Of a user in mid-download the plan is made with what remains:

* a layer's bytes are those that have not been sent;
* layers whose computing has begun are over for the planner. The server does not see it begin: it follows the recursion
  t_l = max(arrived_l, t_(l-1)) + T_l(z_l) with the times at which it sent the layers and the clocks it planned. What is left of the one
  that computes now stands in front as a layer of no bytes;
* the time to the deadline and the energy are what is left of them;
* the model is fixed.

Departures: all of this is ours; the paper plans once, before the first byte.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from nmoe.deliver.scenario import ModelProfile, Receiver
from nmoe.deliver.server.ranges import SentBytes, Stretch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedModel:
    """A model file that can be planned for.

    Attributes:
        profile: what each layer weighs and costs; named as the model.
        layers: where each layer's bytes lie in the file; what all need (the file's header) belongs to the first.
    """

    profile: ModelProfile
    layers: tuple[tuple[Stretch, ...], ...]


class RestOfTask(NamedTuple):
    """What is left of a task, as the planner takes it.

    Attributes:
        receiver: with the time and energy that are left, the margin kept in hand; ``models`` are the names below.
        latest_s: time that is left without a margin.
        profiles: what is left of each model, by the model's own name.
        spent_j: energy of what is over.
    """

    receiver: Receiver
    latest_s: float
    profiles: dict[str, ModelProfile]
    spent_j: float


class DeliveryTask:
    """One user's task.

    Args:
        receiver: as it registered.
        models: those of its models that can be planned for, by name.
        now_s: the time, from which deadline and energy count.
        sent: what it has been sent before, by model.
    """

    def __init__(
        self, receiver: Receiver, models: dict[str, PackedModel], now_s: float, *, sent: dict[str, SentBytes] | None = None
    ) -> None:
        self.receiver = receiver
        self.models = models
        self.began_s = now_s
        self.sent = {name: pieces for name, pieces in (sent or {}).items() if name in models}
        self.planned: str | None = None
        self.started = False
        self.clocks: tuple[float, ...] = ()
        self._arrived_s: list[float] = []  # of the layers that are there, and all before them
        self._begun = 0  # layers that compute or have computed
        self._ready_s = now_s  # when the last of them is done
        self._spent_j = 0.0

    @property
    def complete(self) -> bool:
        """Whether the model it was planned for has been sent whole."""
        return self.planned is not None and len(self._arrived_s) == len(self.models[self.planned].layers)

    def overtime(self, now_s: float) -> bool:
        """Say whether the deadline has passed."""
        return now_s - self.began_s >= self.receiver.deadline_s

    def sent_bytes(self, name: str) -> int:
        """Return how many bytes of a model's layers have been sent."""
        model = self.models[name]
        return int(sum(model.profile.layer_bytes)) - sum(_missing(self.sent.get(name), layer) for layer in model.layers)

    def plan(self, name: str, clocks: tuple[float, ...], now_s: float) -> None:
        """Take a plan: compute ``name`` at these clocks, those of the layers that have not begun (and of the one that computes).

        Args:
            name: of the model.
            clocks: one per layer of the profile that ``rest`` gave.
            now_s: the time.
        """
        if self.planned != name:
            self.planned, self._arrived_s = name, []
        left = len(self.models[name].layers) - self._begun
        self.clocks = self.clocks[: self._begun] + clocks[len(clocks) - left :]
        self._note_arrivals(now_s)

    def send(self, name: str, start: int, stop: int, now_s: float) -> None:
        """Take note of bytes ``start`` to ``stop`` of a model's file that were sent."""
        if name not in self.models:
            return
        self.sent.setdefault(name, SentBytes()).add(start, stop)
        if name == self.planned:
            self.started = True
            self._note_arrivals(now_s)

    def rest(self, now_s: float, *, spectral_efficiency: float, margin: float) -> RestOfTask | str:
        """Return what is left to plan, or why nothing can be.

        Args:
            now_s: the time.
            spectral_efficiency: of the link as last measured, in bit/s/Hz.
            margin: share of the time to the deadline that is kept in hand as long as any of the rest is left, in [0, 1).
        """
        self._begin_layers(now_s)
        latest_s = self.began_s + self.receiver.deadline_s - now_s
        time_s = latest_s - margin * self.receiver.deadline_s
        spent_j = self._spent_j + self.receiver.receive_power_w * (now_s - self.began_s)
        if latest_s <= 0:
            return f"the deadline of {self.receiver.deadline_s:g} s has passed"
        fixed = self.planned if self.started or self._begun else None
        profiles, computing_j = {}, 0.0
        for name in [fixed] if fixed is not None else self.models:
            profiles[name], computing_j = self._remaining(name, now_s)
        spent_j -= computing_j
        if spent_j >= self.receiver.energy_j:
            return f"the energy of {self.receiver.energy_j:g} J is spent"
        receiver = replace(
            self.receiver,
            deadline_s=time_s if time_s > 0 else latest_s,
            energy_j=self.receiver.energy_j - spent_j,
            spectral_efficiency=spectral_efficiency,
            models=tuple(profiles),
        )
        return RestOfTask(receiver, latest_s, profiles, spent_j)

    def _remaining(self, name: str, now_s: float) -> tuple[ModelProfile, float]:
        """Return what is left of a model, and the energy already counted for what is in front of it."""
        model = self.models[name]
        pieces = self.sent.get(name)
        if pieces is None and not self._begun:
            return model.profile, 0.0
        sizes = [float(_missing(pieces, layer)) for layer in model.layers[self._begun :]]
        work = list(model.profile.layer_flops[self._begun :])
        computing_j = 0.0
        left_s = self._ready_s - now_s - self.receiver.layer_overhead_s
        if self._begun and left_s > 0:
            clock = self.clocks[self._begun - 1]
            flops = left_s * clock * self.receiver.device_flops / self.receiver.batch
            computing_j = self._cost(flops, clock)[1]
            sizes, work = [0.0, *sizes], [flops, *work]
        if not any(sizes):
            sizes[-1] = 1.0  # all is there: a byte, as a model of none is no model
        if not any(work):
            work[-1] = 1.0
        return replace(model.profile, layer_bytes=tuple(sizes), layer_flops=tuple(work)), computing_j

    def _note_arrivals(self, now_s: float) -> None:
        assert self.planned is not None, "only a planned model arrives"
        layers, pieces = self.models[self.planned].layers, self.sent.get(self.planned)
        while len(self._arrived_s) < len(layers) and not _missing(pieces, layers[len(self._arrived_s)]):
            self._arrived_s.append(now_s)
        self._begin_layers(now_s)

    def _begin_layers(self, now_s: float) -> None:
        """Let every layer begin that would have by now; from then on its clock is settled and its energy spent."""
        while self._begun < len(self._arrived_s):
            start_s = max(self._arrived_s[self._begun], self._ready_s)
            if start_s > now_s:
                return
            assert self.planned is not None, "a layer has arrived"
            flops = self.models[self.planned].profile.layer_flops[self._begun]
            seconds, joules = self._cost(flops, self.clocks[self._begun])
            self._ready_s = start_s + seconds
            self._spent_j += joules
            self._begun += 1

    def _cost(self, flops: float, clock: float) -> tuple[float, float]:
        """Return time and energy of computing a layer: T = v + a / z and E = eps a z^2 + P0 T, with a = b W / f."""
        told = self.receiver
        full_s = told.batch * flops / told.device_flops
        seconds = told.layer_overhead_s + (full_s / clock if clock > 0 else math.inf if full_s else 0.0)
        return seconds, told.power_w * full_s * clock**2 + told.static_power_w * seconds


def _missing(pieces: SentBytes | None, layer: tuple[Stretch, ...]) -> int:
    """Return how many of a layer's bytes have not been sent."""
    return sum(one.size if pieces is None else pieces.missing(*one) for one in layer)
