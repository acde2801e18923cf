"""Candidates: all pairs of a user and a model it accepts, as one batch of problems, and what each needs."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from nmoe.deliver.clocks import Layers, Tasks, Vector
from nmoe.deliver.power import rate_of_share, share_of_rate
from nmoe.deliver.scenario import ModelProfile, Receiver, Scenario

ROUNDING = 1e-12  # budgets are loosened by this share, so that no rounding refuses what they just allow
LEAST_CLOCK = 1e-12  # so that a layer has one above 0, however little it has to do


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Problems in the order of the users, and of each user's list of models.

    Attributes:
        user: of each problem, as its place in the scenario.
        slot: of each problem's model, as its place in the user's list.
        tasks: the problems, budgets loosened against rounding.
        bandwidth_hz: of the whole band.
        spectral_efficiency, fixed_power: of each problem's link; see ``Receiver``.
    """

    user: Int[ndarray, " problem"]
    slot: Int[ndarray, " problem"]
    tasks: Tasks
    bandwidth_hz: float
    spectral_efficiency: Vector
    fixed_power: Bool[ndarray, " problem"]

    def take(self, chosen: Int[ndarray, " chosen"]) -> "Candidates":
        """Return some of the problems."""
        return Candidates(
            user=self.user[chosen],
            slot=self.slot[chosen],
            tasks=self.tasks.take(chosen),
            bandwidth_hz=self.bandwidth_hz,
            spectral_efficiency=self.spectral_efficiency[chosen],
            fixed_power=self.fixed_power[chosen],
        )

    def share_of_rate(self, rate: Vector) -> Vector:
        """Return the shares of the band that rates in bytes/s need."""
        return share_of_rate(
            rate, bandwidth_hz=self.bandwidth_hz, spectral_efficiency=self.spectral_efficiency, fixed_power=self.fixed_power
        )

    def pace_of_share(self, share: Vector) -> Vector:
        """Return the paces in s per byte that shares of the band, above 0, give."""
        return 1 / rate_of_share(
            share, bandwidth_hz=self.bandwidth_hz, spectral_efficiency=self.spectral_efficiency, fixed_power=self.fixed_power
        )

    def table(self, values: Vector, *, fill: float) -> Float[ndarray, "user slot"]:
        """Return a value per problem as a table; ``fill`` beyond the end of a user's list."""
        table = np.full((int(self.user.max()) + 1, int(self.slot.max()) + 1), fill)
        table[self.user, self.slot] = values
        return table

    def find(self, slots: Int[ndarray, " user"]) -> Int[ndarray, " user"]:
        """Return the problem of every user with the model in a place of its list."""
        return np.asarray(np.flatnonzero(self.slot == 0) + slots)


def candidates(scenario: Scenario, *, whole: bool) -> Candidates:
    """Return all pairs of a scenario that has users.

    Args:
        scenario: the models and users.
        whole: inference waits for the whole model to be downloaded.
    """
    users = scenario.users
    places = {name: place for place, name in enumerate(scenario.models)}
    user = np.repeat(np.arange(len(users)), [len(each.models) for each in users])
    slot = np.concatenate([np.arange(len(each.models)) for each in users])
    model = np.array([places[name] for each in users for name in each.models])
    return Candidates(
        user=user,
        slot=slot,
        tasks=_tasks(scenario, user, model, whole=whole),
        bandwidth_hz=float(scenario.bandwidth_hz),
        spectral_efficiency=_column(users, "spectral_efficiency")[user],
        fixed_power=np.array([each.fixed_power for each in users])[user],
    )


def _tasks(scenario: Scenario, user: Int[ndarray, " problem"], model: Int[ndarray, " problem"], *, whole: bool) -> Tasks:
    profiles, users = list(scenario.models.values()), scenario.users
    layer_bytes, layer_flops = (_padded(profiles, field) for field in ("layer_bytes", "layer_flops"))  # [layer, model]
    arrived = np.cumsum(layer_bytes, axis=0)
    if whole:
        arrived = np.broadcast_to(arrived[-1], arrived.shape)
    depths = np.array([len(profile.layer_bytes) for profile in profiles])
    layers_left = np.maximum(depths - np.arange(len(layer_bytes))[:, None], 0)
    work = layer_flops[:, model] * (_column(users, "batch") / _column(users, "device_flops"))[user]
    overhead = _column(users, "layer_overhead_s")[user]
    power, static_power = _column(users, "power_w"), _column(users, "static_power_w")
    sensible = np.cbrt(static_power / (2 * power))  # slower ones take longer and more energy
    per_user = {
        "deadline": _column(users, "deadline_s"),
        "budget": _column(users, "energy_j") * (1 + ROUNDING),
        "power": power,
        "static_power": static_power,
        "receive_power": _column(users, "receive_power_w"),
        "lowest": np.clip(np.maximum(_column(users, "min_clock"), sensible), LEAST_CLOCK, 1),
    }
    return Tasks(
        arrived=arrived[:, model],
        work=work,
        fixed=(layers_left > 0)[:, model] * overhead,
        work_left=np.cumsum(work[::-1], axis=0)[::-1],
        fixed_left=layers_left[:, model] * overhead,
        total_bytes=arrived[-1, model],
        **{name: values[user] for name, values in per_user.items()},
    )


def _column(users: tuple[Receiver, ...], field: str) -> Float[ndarray, " user"]:
    return np.array([getattr(user, field) for user in users], dtype=float)


def _padded(profiles: list[ModelProfile], field: str) -> Layers:
    """Return the layers of all models, with zeros after the last ones, [layer, model]."""
    rows = [np.array(getattr(profile, field), dtype=float) for profile in profiles]
    longest = max(len(row) for row in rows)
    return np.stack([np.pad(row, (0, longest - len(row))) for row in rows], axis=1)
