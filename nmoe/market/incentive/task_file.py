"""Task file: a game as a user writes it down, in TOML, its owners and workers as tables or in CSV files beside it.

    lambda = 100.0              # what training is worth to the publisher
    value = "log"               # log, power:A with 0 < A < 1, or saturating:B; log if not given
    owners = "owners.csv"       # or [[owners]] tables: id, quality, unit_cost, and stock (0 if not given)
    workers = "workers.csv"     # or [[workers]] tables: id, alpha, beta, and cap (none if not given) and owner (pool if not given)

``owner`` is an owner's id or ``pool``. An owner without workers of its own buys from the pool. There may be no workers.
"""

import csv
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from nmoe.core.errors import BadFile
from nmoe.market.incentive.base import POOL, BadRecruitment, DataValue, Owners, Publisher, Recruitment, Workers
from nmoe.market.incentive.data_value import LogValue, PowerValue, SaturatingValue

POOL_NAME = "pool"
FIELDS = ("lambda", "owners", "value", "workers")
OWNER_FIELDS = {"id": None, "quality": None, "unit_cost": None, "stock": 0.0}  # with what stands for a field that is not given
WORKER_FIELDS = {"id": None, "alpha": None, "beta": None, "cap": float("inf"), "owner": POOL_NAME}
VALUES = "log, power:A or saturating:B"

Tables = Sequence[Mapping[str, Any]]


def read_recruitment(path: Path) -> Recruitment:
    """Read a game.

    Raises:
        BadFile: when a file is missing, or not TOML or CSV.
        BadRecruitment: when a field is missing, unknown or out of its range; names the owner or worker and the field.
    """
    try:
        task = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BadFile(f"{path} is not valid TOML: {error}") from error
    return parse_recruitment(task, folder=path.parent)


def parse_recruitment(task: Mapping[str, Any], *, folder: Path) -> Recruitment:
    """Return the game that a file's tables describe; see ``read_recruitment``.

    Args:
        task: what the TOML file holds.
        folder: of CSV files that it names.
    """
    unknown = sorted(task.keys() - set(FIELDS))
    if unknown:
        raise BadRecruitment(f"a task has {', '.join(FIELDS)}, got {unknown[0]!r}")
    for field in ("lambda", "owners"):
        if field not in task:
            raise BadRecruitment(f"the task has no {field}")
    publisher = Publisher(factor=_number("task", "lambda", task["lambda"]), data_value=parse_value(task.get("value", "log")))
    owners = _checked("owner", _tables("owners", task["owners"], folder), OWNER_FIELDS)
    workers = _checked("worker", _tables("workers", task.get("workers", []), folder), WORKER_FIELDS)
    names = _ids("owner", owners)
    if POOL_NAME in names:
        raise BadRecruitment(f"an owner cannot be called {POOL_NAME}, for that is where workers without an owner are")
    places = {name: place for place, name in enumerate(names)} | {POOL_NAME: POOL}
    for worker in workers:
        if str(worker["owner"]) not in places:
            raise BadRecruitment(f"worker {worker['id']!r}: owner must be an owner's id or {POOL_NAME}, got {worker['owner']!r}")
    return Recruitment(
        publisher=publisher,
        owners=Owners(
            ids=names,
            quality=_column("owner", owners, "quality"),
            unit_cost=_column("owner", owners, "unit_cost"),
            stock=_column("owner", owners, "stock"),
        ),
        workers=Workers(
            ids=_ids("worker", workers),
            alpha=_column("worker", workers, "alpha"),
            beta=_column("worker", workers, "beta"),
            cap=_column("worker", workers, "cap"),
            owner=np.array([places[str(worker["owner"])] for worker in workers], dtype=int),
        ),
    )


def parse_value(text: Any) -> DataValue:
    """Read ``log``, ``power:A`` or ``saturating:B``.

    Raises:
        BadRecruitment: when it is none of them or its number is out of range.
    """
    kind, _, number = str(text).partition(":")
    if text == "log":
        return LogValue()
    if kind == "power":
        return PowerValue(exponent=_number("value", kind, number))
    if kind == "saturating":
        return SaturatingValue(limit=_number("value", kind, number))
    raise BadRecruitment(f"value must be {VALUES}, got {text!r}")


def example_task(recruitment: Recruitment) -> str:
    """Return a game without caps as the TOML text that reads as the same game, its numbers to three digits."""
    owners, workers = recruitment.owners, recruitment.workers
    lines = ["# Who trains how much for what pay: nmoe market recruit FILE.toml", f"lambda = {recruitment.publisher.factor:.3f}"]
    for row, name in enumerate(owners.ids):
        lines += ["", "[[owners]]", f'id = "{name}"', f"quality = {owners.quality[row]:.3f}", f"unit_cost = {owners.unit_cost[row]:.3f}"]
        lines.append(f"stock = {owners.stock[row]:.3f}")
    for row, name in enumerate(workers.ids):
        owner = POOL_NAME if workers.owner[row] == POOL else owners.ids[workers.owner[row]]
        lines += ["", "[[workers]]", f'id = "{name}"', f"alpha = {workers.alpha[row]:.3f}", f"beta = {workers.beta[row]:.3f}"]
        lines.append(f'owner = "{owner}"')
    return "\n".join(lines) + "\n"


def _tables(field: str, given: Any, folder: Path) -> Tables:
    if isinstance(given, str):
        return _rows(folder / given)
    if not isinstance(given, list) or not all(isinstance(table, dict) for table in given):
        raise BadRecruitment(f"{field} must be [[{field}]] tables or the name of a CSV file, got {given!r}")
    return given


def _rows(path: Path) -> Tables:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadFile(f"{path} is not CSV: {error}") from error
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise BadFile(f"{path}: row {number} does not have one cell per column, {len(reader.fieldnames or ())}")
    return [{name: cell for name, cell in row.items() if cell.strip()} for row in rows]  # an empty cell is not given


def _checked(kind: str, tables: Tables, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Check the fields of tables and fill in those that need not be given."""
    for number, table in enumerate(tables, 1):
        name = f"{kind} {table['id']!r}" if "id" in table else f"{kind} in row {number}"
        unknown = sorted(str(field) for field in table.keys() - fields.keys())
        if unknown:
            raise BadRecruitment(f"{name}: the fields are {', '.join(fields)}, got {unknown[0]!r}")
        missing = [field for field, default in fields.items() if default is None and field not in table]
        if missing:
            raise BadRecruitment(f"{name} has no {missing[0]}")
    return [{**fields, **table} for table in tables]


def _ids(kind: str, tables: Tables) -> tuple[str, ...]:
    for number, table in enumerate(tables, 1):
        if not isinstance(table["id"], str):
            raise BadRecruitment(f"{kind} in row {number}: id must be text, got {table['id']!r}")
    return tuple(table["id"] for table in tables)


def _column(kind: str, tables: Tables, field: str) -> Float[ndarray, " row"]:
    return np.array([_number(f"{kind} {table['id']!r}", field, table[field]) for table in tables], dtype=float)


def _number(name: str, field: str, value: Any) -> float:
    """Read a number; CSV has it as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise BadRecruitment(f"{name}: {field} must be a number, got {value!r}")
    try:
        return float(value)
    except (ValueError, OverflowError) as error:
        raise BadRecruitment(f"{name}: {field} must be a number, got {value!r}") from error
