"""Clocks: how fast each layer should compute, given how fast the model arrives, so that the deadline holds at the least energy.

Source: G. Qu, T. Li, Q. Chen, X. Chen, S. Zhou, "SLIDE: simultaneous model downloading and inference", arXiv 2512.20946 (recursion and
decisions). Many problems, one per user and model, are solved at once; arrays are [layer, problem], padded after a model's last layer with
layers of no size and no work.

| symbol | here | unit |
|---|---|---|
| 1/(y B R) | pace | s per byte |
| D_m | arrived: all layers up to m | byte |
| X_m | work_left: at full clock, layers from m on | s |
| a_l, v_l | work, fixed: those of one layer | s |
| V_m | fixed_left: what no clock shortens, layers from m on | s |
| z_l | clock, share of the full one | 1 |
| eps | power: dynamic, at full clock | W |
| P0 | static_power | W |
| P_rx | receive_power | W |
| H_m | headroom: from the arrival of layer m to the deadline, less V_m | s |

Layer l computes for u_l = a_l / z_l, a_l its work at full clock. The deadline holds if and only if the u_l from m on add up to at most H_m,
for every m. The energy is sum_l eps a_l^3 / u_l^2 + P0 (v_l + u_l), plus P_rx for the time of the download.

Lemma 3: it is least where the u_l follow the lower convex hull of the points (0, 0) and (X_m, H_m): layers on an edge of slope s run at
z = 1/s, never below min_clock. Static power asks for at least z = (P0 / (2 eps))^(1/3) of every layer, which is one more lower limit.
Along the pace the least energy is convex, and its derivative is that of the hull's edges.

The work of an edge is the sum of its layers' own work, not a difference of two X_m: that of a first layer with a billionth of all work
would be lost in rounding, and its clock with it.

Departures: the lemma, its proof, the form of the energy and static power are ours; the paper's closed forms were not found.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, final

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

Vector = Float[ndarray, " problem"]
Layers = Float[ndarray, "layer problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks:
    """A batch of problems.

    Attributes:
        arrived: bytes that must have arrived before a layer can start: all layers up to it; or the whole model, to download first.
        work, fixed, work_left, fixed_left: s, as above.
        total_bytes: of the model.
        deadline: s.
        budget: energy, J.
        power, static_power, receive_power: W.
        lowest: clock allowed and sensible, in (0, 1].
    """

    arrived: Layers
    work: Layers
    fixed: Layers
    work_left: Layers
    fixed_left: Layers
    total_bytes: Vector
    deadline: Vector
    budget: Vector
    power: Vector
    static_power: Vector
    receive_power: Vector
    lowest: Vector

    def take(self, chosen: Int[ndarray, " chosen"]) -> "Tasks":
        """Return some of the problems."""
        return Tasks(**{field.name: getattr(self, field.name)[..., chosen] for field in fields(self)})

    def headroom(self, pace: Vector) -> Layers:
        """Return H_m, in s, at a pace at which the full clock meets the deadline: at least X_m, whatever rounding does."""
        return np.asarray(np.maximum(self.deadline - self.fixed_left - pace * self.arrived, self.work_left))

    def energy_beside(self, pace: Vector) -> Vector:
        """Return the energy in J that no clock changes: of receiving, and static while a layer does what no clock shortens."""
        return np.asarray(self.receive_power * pace * self.total_bytes + self.static_power * self.fixed_left[0])


class Clocks(ABC):
    """A way to choose clocks. At a pace at which the full clock meets the deadline, so do the clocks chosen."""

    @abstractmethod
    def energy(self, tasks: Tasks, pace: Vector) -> tuple[Vector, Vector]:
        """Return the energy in J and its derivative by the pace, in J byte/s."""

    @abstractmethod
    def choose(self, tasks: Tasks, pace: Vector) -> Layers:
        """Return the clocks, in [lowest, 1]; of layers without work and of padding any."""


@final
@dataclass(frozen=True, slots=True)
class PerLayer(Clocks):
    """Lemma 3: a clock for each layer, at the least energy of all; clocks never fall from a layer to the next."""

    def energy(self, tasks: Tasks, pace: Vector) -> tuple[Vector, Vector]:
        vertices, work, clock = _edges(tasks, pace)
        arrival = np.diff(_at(tasks.arrived, vertices), axis=0)  # [edge, problem]
        held = (clock > tasks.lowest) & (work > 0)  # by the deadline, not by the lowest clock
        clock = np.clip(clock, tasks.lowest, 1)
        multiplier = np.where(held, 2 * tasks.power * clock**3 - tasks.static_power, 0)
        slope = (multiplier * arrival).sum(0) + tasks.receive_power * tasks.total_bytes
        return _spent(tasks, work, clock).sum(0) + tasks.energy_beside(pace), slope

    def choose(self, tasks: Tasks, pace: Vector) -> Layers:
        vertices, work, clock = _edges(tasks, pace)
        layers, problems = tasks.work_left.shape
        marked = np.full((layers + 1, problems), np.nan)  # an edge's clock, at the first layer it holds for
        first = np.where(work > 0, vertices[1:], layers)
        np.put_along_axis(marked, first, clock, axis=0)
        marked[layers] = np.nan
        for layer in range(1, layers):
            marked[layer] = np.where(np.isnan(marked[layer]), marked[layer - 1], marked[layer])
        for layer in reversed(range(layers)):  # first layers without work
            marked[layer] = np.where(np.isnan(marked[layer]), marked[layer + 1], marked[layer])
        return np.clip(marked[:layers], tasks.lowest, 1)


@final
@dataclass(frozen=True, slots=True)
class UniformClock(Clocks):
    """One clock for all layers of a model: the slowest that meets the deadline."""

    def energy(self, tasks: Tasks, pace: Vector) -> tuple[Vector, Vector]:
        clock, tight = self._slowest(tasks, pace)
        work = tasks.work_left[0]
        arrived, work_left = (np.take_along_axis(each, tight[None], axis=0)[0] for each in (tasks.arrived, tasks.work_left))
        held = clock > tasks.lowest
        clock = np.clip(clock, tasks.lowest, 1)
        multiplier = np.where(held, 2 * tasks.power * clock**3 - tasks.static_power, 0)
        slope = multiplier * arrived * np.divide(work, work_left, out=np.zeros_like(work), where=work_left > 0)
        return _spent(tasks, work, clock) + tasks.energy_beside(pace), slope + tasks.receive_power * tasks.total_bytes

    def choose(self, tasks: Tasks, pace: Vector) -> Layers:
        clock, _ = self._slowest(tasks, pace)
        return np.broadcast_to(np.clip(clock, tasks.lowest, 1), tasks.work_left.shape)

    def _slowest(self, tasks: Tasks, pace: Vector) -> tuple[Vector, Int[ndarray, " problem"]]:
        """Return max_m X_m / H_m, and the m."""
        clocks = _ratio(tasks.work_left, tasks.headroom(pace))
        tight = clocks.argmax(0)
        return np.take_along_axis(clocks, tight[None], axis=0)[0], tight


@final
@dataclass(frozen=True, slots=True)
class FullClock(Clocks):
    """The full clock for all layers."""

    def energy(self, tasks: Tasks, pace: Vector) -> tuple[Vector, Vector]:
        work = tasks.work_left[0]
        return _spent(tasks, work, np.ones_like(work)) + tasks.energy_beside(pace), tasks.receive_power * tasks.total_bytes

    def choose(self, tasks: Tasks, pace: Vector) -> Layers:
        return np.ones_like(tasks.work_left)


def lower_hull(steps: Layers, up: Layers) -> tuple[Int[ndarray, "vertex problem"], Float[ndarray, "edge problem"]]:
    """Return the lower convex hull of the points (across, up) of all layers and of (0, 0), by gift wrapping.

    ``across`` is the sum of the steps from a layer to the last. The distance between two points is summed up from the steps between them.

    A monotone chain needs a step per layer whatever the hull; this needs one per edge, and hulls of real models have few.

    Args:
        steps: at least 0.
        up: at least 0 where ``across`` is 0.

    Returns:
        The layers that are vertices, from the origin, written as the number of layers, to one furthest across; then that again as padding.
        And how far across each edge goes; 0 for padding.
    """
    layers, problems = steps.shape
    vertices, lengths = [np.full(problems, layers)], []
    unfinished = np.flatnonzero((steps > 0).any(0))  # problems whose hull does not yet end
    step, y, y0 = steps[:, unfinished], up[:, unfinished], np.zeros(unfinished.size)
    vertex, furthest = vertices[0][unfinished], (step > 0).argmax(0)
    while unfinished.size:
        nearest = int(vertex.max())
        between = np.where(np.arange(nearest)[:, None] < vertex, step[:nearest], 0)
        right = np.cumsum(between[::-1], axis=0)[::-1]
        slope = np.divide(y[:nearest] - y0, right, out=np.full_like(right, np.inf), where=right > 0)
        vertex = slope.argmin(0)  # of equals the furthest
        vertices.append(vertices[-1].copy())
        vertices[-1][unfinished] = vertex
        lengths.append(np.zeros(problems))
        lengths[-1][unfinished] = np.take_along_axis(right, vertex[None], axis=0)[0]
        y0 = np.take_along_axis(y, vertex[None], axis=0)[0]
        going_on = np.flatnonzero(vertex > furthest)
        if going_on.size < unfinished.size:
            unfinished, step, y = unfinished[going_on], step[:, going_on], y[:, going_on]
            vertex, furthest, y0 = vertex[going_on], furthest[going_on], y0[going_on]
    return np.stack(vertices), np.array(lengths).reshape(len(lengths), problems)


def _edges(tasks: Tasks, pace: Vector) -> tuple[Int[ndarray, "vertex problem"], Layers, Layers]:
    """Return the hull's vertices, and each edge's work and clock (0 for padding)."""
    headroom = tasks.headroom(pace)
    vertices, work = lower_hull(tasks.work, headroom)
    return vertices, work, _ratio(work, np.diff(_at(headroom, vertices), axis=0))


def _at(points: Layers, vertices: Int[ndarray, "vertex problem"]) -> Float[ndarray, "vertex problem"]:
    """Return what the points are at the vertices; 0 at the origin."""
    values: Layers = np.take_along_axis(points, np.minimum(vertices, len(points) - 1), axis=0)
    values[vertices == len(points)] = 0
    return values


def _ratio(work: Layers, time: Layers) -> Layers:
    """Return the clocks that do some work in some time: 0 without work, infinite without time."""
    clocks: Layers = np.divide(work, time, out=np.full_like(work, np.inf), where=time > 0)
    clocks[work == 0] = 0
    return clocks


def _spent(tasks: Tasks, work: Any, clock: Any) -> Any:
    """Return the energy in J of some work at some clock."""
    static = np.divide(tasks.static_power * work, clock, out=np.zeros_like(work), where=work > 0)
    return tasks.power * work * clock**2 + static
