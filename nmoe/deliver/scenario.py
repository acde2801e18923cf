"""Scenario: the models, the users and the bandwidth that a delivery is planned for, from code or from a TOML file.

Symbols as in ``nmoe.deliver.allocate``, which has the card. Everything is checked where it is made, so that the planner need not: an error
names the user or model, the field, and what came. A number that is neither 0 nor infinite lies within 1e-30 and 1e30, but for weights.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from nmoe.core.errors import BadFile

LEAST, MOST = 1e-30, 1e30  # beyond any quantity; within, no sum, product or cube in the planner is lost
MOST_EFFICIENCY = 100.0  # bit/s/Hz, an SNR of 300 dB


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """What each layer of a model weighs and costs, in the order in which layers run and are downloaded.

    Attributes:
        name: of the model, unique in a scenario.
        layer_bytes: size of each layer, at least 0 and not all 0.
        layer_flops: work of each layer per sample, at least 0 and not all 0.
    """

    name: str
    layer_bytes: tuple[float, ...]
    layer_flops: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check the layers.

        Raises:
            ValueError: when there are none, their lists are of unequal length, or a number is negative or not finite.
        """
        owner = f"model {self.name!r}"
        _check_name(owner, "name", self.name)
        if len(self.layer_bytes) != len(self.layer_flops):
            raise ValueError(
                f"{owner}: layer_bytes and layer_flops of one length wanted, got {len(self.layer_bytes)} and {len(self.layer_flops)}"
            )
        if not self.layer_bytes:
            raise ValueError(f"{owner}: at least one layer wanted, layer_bytes is empty")
        for field, values in (("layer_bytes", self.layer_bytes), ("layer_flops", self.layer_flops)):
            for position, value in enumerate(values):
                _check_number(owner, f"{field}[{position}]", value, zero=True)
            if not sum(values) > 0:
                raise ValueError(f"{owner}: {field} must not be all 0, got {list(values)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """A user: a device behind a link, which wants one of some models by a deadline and within an energy budget.

    Attributes:
        id: unique in a scenario.
        spectral_efficiency: of the link over the whole band, in bit/s/Hz, above 0 and at most 100.
        deadline_s: from the start of the download to the end of inference, above 0.
        energy_j: the most that computing (and receiving) may take, above 0; infinite for no limit.
        batch: samples of the task, at least 1.
        device_flops: FLOP/s at full clock, above 0.
        power_w: dynamic power while computing at full clock, above 0.
        layer_overhead_s: time per layer that no clock shortens (data movement, instantiation), at least 0.
        min_clock: lowest clock as a share of the full one, in [0, 1].
        models: names of the models that would do, at least one.
        static_power_w: power while computing that does not depend on the clock, at least 0.
        receive_power_w: power while downloading, at least 0.
        weight: worth of serving this user, above 0; only the method ``slide-weighted`` looks at it.
        fixed_power: what is sent to the user has one power, however small its share, so that a small share has a better SNR; otherwise it
            has one power per Hz, and its rate is linear in its share.
    """

    id: str
    spectral_efficiency: float
    deadline_s: float
    energy_j: float
    batch: int
    device_flops: float
    power_w: float
    layer_overhead_s: float
    min_clock: float = 0.0
    models: tuple[str, ...]
    static_power_w: float = 0.0
    receive_power_w: float = 0.0
    weight: float = 1.0
    fixed_power: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: when a number is out of its range or not finite, or no model is named.
        """
        owner = f"user {self.id!r}"
        _check_name(owner, "id", self.id)
        for field in ("spectral_efficiency", "deadline_s", "device_flops", "power_w"):
            _check_number(owner, field, getattr(self, field))
        if self.spectral_efficiency > MOST_EFFICIENCY:
            raise ValueError(f"{owner}: spectral_efficiency must be at most {MOST_EFFICIENCY:g} bit/s/Hz, got {self.spectral_efficiency:g}")
        _check_number(owner, "weight", self.weight, bounded=False)
        _check_number(owner, "energy_j", self.energy_j, infinite=True)
        for field in ("layer_overhead_s", "min_clock", "static_power_w", "receive_power_w"):
            _check_number(owner, field, getattr(self, field), zero=True)
        if self.min_clock > 1:
            raise ValueError(f"{owner}: min_clock must be in [0, 1], got {self.min_clock:g}")
        _check_count(owner, "batch", self.batch)
        _check_flag(owner, "fixed_power", self.fixed_power)
        if not self.models:
            raise ValueError(f"{owner}: models must name at least one model, got none")
        for name in self.models:
            _check_name(owner, "models", name)
        if len(set(self.models)) < len(self.models):
            raise ValueError(f"{owner}: models must name each model once, got {list(self.models)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is planned for.

    Attributes:
        bandwidth_hz: shared by all users, above 0.
        models: by name, at least one.
        users: with different ids; may be empty.
    """

    bandwidth_hz: float
    models: Mapping[str, ModelProfile]
    users: tuple[Receiver, ...]

    def __post_init__(self) -> None:
        """Check that users and models belong together.

        Raises:
            ValueError: when the bandwidth is not above 0, there is no model, a model goes by another name, two users have one id, or a user
                names a model that is not there.
        """
        _check_number("scenario", "bandwidth_hz", self.bandwidth_hz)
        if not self.models:
            raise ValueError("scenario: models must hold at least one model, got none")
        for name, model in self.models.items():
            if name != model.name:
                raise ValueError(f"model {model.name!r}: filed under another name, {name!r}")
        if len({user.id for user in self.users}) < len(self.users):
            raise ValueError(f"user {_first_twice([user.id for user in self.users])!r}: id is there twice")
        for user in self.users:
            for name in user.models:
                if name not in self.models:
                    raise ValueError(f"user {user.id!r}: models names {name!r}, which is not among {', '.join(self.models)}")


def read_scenario(path: Path) -> Scenario:
    """Read a scenario from a TOML file: ``bandwidth_hz``, ``[[models]]`` and ``[[users]]``, with the fields of the classes above.

    Raises:
        BadFile: when the file is missing or not TOML.
        ValueError: when a field is missing, unknown or out of its range; names the user or model and the field.
    """
    try:
        tables = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BadFile(f"{path} is not valid TOML: {error}") from error
    return parse_scenario(tables)


def parse_scenario(tables: Mapping[str, Any]) -> Scenario:
    """Return the scenario that a file's tables describe; see ``read_scenario``.

    Raises:
        ValueError: as ``read_scenario``.
    """
    _check_fields("scenario", tables, Scenario)
    models = [parse_profile(table) for table in _tables("models", tables["models"])]
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ValueError(f"model {_first_twice(names)!r}: name is there twice")
    users = tuple(parse_receiver(table) for table in _tables("users", tables["users"]))
    return Scenario(bandwidth_hz=tables["bandwidth_hz"], models=dict(zip(names, models, strict=True)), users=users)


def parse_profile(table: Mapping[str, Any]) -> ModelProfile:
    """Return a model from its table, as TOML and JSON give it.

    Raises:
        ValueError: when a field is missing, unknown or out of its range.
    """
    owner = f"model {table.get('name')!r}"
    _check_fields(owner, table, ModelProfile)
    sizes, work = (_listed(owner, table, field) for field in ("layer_bytes", "layer_flops"))
    return ModelProfile(name=table["name"], layer_bytes=sizes, layer_flops=work)


def parse_receiver(table: Mapping[str, Any]) -> Receiver:
    """Return a user from its table, as TOML and JSON give it.

    Raises:
        ValueError: when a field is missing, unknown or out of its range.
    """
    owner = f"user {table.get('id')!r}"
    _check_fields(owner, table, Receiver)
    return Receiver(**{**table, "models": _listed(owner, table, "models")})


def _check_number(owner: str, field: str, value: Any, *, zero: bool = False, infinite: bool = False, bounded: bool = True) -> None:
    """Raise ValueError unless the value is a number above 0 (or 0), finite (or not), and of a size that can be worked with (or any)."""
    wanted = f"a number {'of at least' if zero else 'above'} 0"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{owner}: {field} must be {wanted}, got {value!r}")
    number = _as_float(value)
    high_enough = number >= 0 if zero else number > 0  # False of NaN
    if not high_enough or (math.isinf(number) and not infinite):
        raise ValueError(f"{owner}: {field} must be {wanted}{'' if infinite else ' and finite'}, got {number:g}")
    if bounded and number and math.isfinite(number) and not LEAST <= number <= MOST:
        raise ValueError(f"{owner}: {field} must be within {LEAST:g} and {MOST:g}{' or 0' if zero else ''}, got {number:g}")


def _as_float(value: Real) -> float:
    """Return the nearest float; of a whole number that is too large infinity."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _check_count(owner: str, field: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= int(value) < 2**63:
        raise ValueError(f"{owner}: {field} must be a whole number of at least 1, got {value!r}")


def _check_flag(owner: str, field: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{owner}: {field} must be true or false, got {value!r}")


def _check_name(owner: str, field: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{owner}: {field} must be text that is not empty, got {value!r}")


def _check_fields(owner: str, table: Mapping[str, Any], kind: type[Scenario | ModelProfile | Receiver]) -> None:
    """Raise ValueError for a field that is missing or unknown."""
    known = [field.name for field in fields(kind)]
    for field in fields(kind):
        if field.default is MISSING and field.name not in table:
            raise ValueError(f"{owner}: {field.name} is missing")
    for name in table:
        if name not in known:
            raise ValueError(f"{owner}: {name} is no field, known are {', '.join(known)}")


def _tables(field: str, value: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise ValueError(f"scenario: {field} must be a list of tables ([[{field}]]), got {value!r}")
    return value


def _listed(owner: str, table: Mapping[str, Any], field: str) -> tuple[Any, ...]:
    if not isinstance(table[field], list | tuple):
        raise ValueError(f"{owner}: {field} must be a list, got {table[field]!r}")
    return tuple(table[field])


def _first_twice(names: Sequence[str]) -> str:
    """Return the first of the names that is there twice."""
    return next(name for name in names if names.count(name) > 1)
