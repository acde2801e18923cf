"""Checks: what the fields of a header must be, beyond their types."""

from collections.abc import Sequence

import numpy as np

from nmoe.core.errors import MessageError
from nmoe.node.messages.records import NAME

MAX_DEADLINE_S = 3600.0
MAX_EXPERTS = 64  # of one request, and of one node
MAX_NAMES = 4096  # experts a node's answer may speak of
MAX_WORD = 64  # characters of a version, trace or identity
MAX_COUNT = 2**63 - 1


def number(value: float, what: str, low: float, high: float) -> float:
    """Return a number that must lie between two others; NaN does not."""
    if low <= value <= high:
        return value
    raise MessageError(f"{what} must be between {low} and {high}, got {value}", fault="number")


def count(value: int, what: str) -> int:
    """Return a count, which is not negative and fits into 63 bits."""
    if 0 <= value <= MAX_COUNT:
        return value
    raise MessageError(f"{what} must be between 0 and {MAX_COUNT}, got {value}", fault="number")


def word(name: str, what: str) -> str:
    """Return a name: a node's or an expert's."""
    if NAME.fullmatch(name) is None:
        raise MessageError(f"{what} must be 1 to 64 letters, digits, '_' or '-'", fault="name")
    return name


def text(value: str, what: str, longest: int) -> str:
    """Return one line of printable characters, or an empty one."""
    if value and (len(value) > longest or not value.isprintable()):
        raise MessageError(f"{what} must be at most {longest} printable characters", fault="name")
    return value


def one_of_each(names: Sequence[str], what: str) -> None:
    """Check that no name stands twice."""
    if len(set(names)) != len(names):
        raise MessageError(f"{what} must each be named once", fault="name")


def within(values: np.ndarray, what: str, low: float, high: float) -> None:
    """Check that every number lies between two others; NaN does not."""
    if values.size and not (low <= values.min() and values.max() <= high):
        raise MessageError(f"{what} must be between {low} and {high}", fault="number")
