"""Tables: CSV files, plain or gzipped, with a header line, read column by column. Every mistake names its line."""

import csv
import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from nmoe.core.errors import BadFile


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """A table whose columns are still words.

    Attributes:
        path: where it was read.
        columns: words by column name, names in small letters; all columns are equally long.
        lines: the line of the file that each row ended on, counted from 1.
    """

    path: Path
    columns: Mapping[str, tuple[str, ...]]
    lines: Sequence[int]

    def where(self, row: int) -> str:
        """Return the place of a row, counted from 0, for a message."""
        return f"{self.path}, line {self.lines[row]}"

    def require(self, names: Sequence[str]) -> None:
        """Check that columns are there.

        Raises:
            BadFile: when one is missing.
        """
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise BadFile(f"{self.path} should have columns {', '.join(names)}; it lacks {', '.join(missing)}")

    def first_of(self, names: Sequence[str]) -> str | None:
        """Return the first of these names that is a column, or None."""
        return next((name for name in names if name in self.columns), None)

    def floats(self, name: str) -> list[float]:
        """Return a column as numbers, NaN and infinity among them, for whoever checks them later.

        Raises:
            BadFile: when a field is not a number, or is empty.
        """
        wrong = next((row for row, word in enumerate(self.columns[name]) if not _is_number(word)), None)
        if wrong is not None:
            raise self._bad(name, wrong, "a number")
        return [float(word) for word in self.columns[name]]

    def numbers(self, name: str, *, low: float, high: float, missing: bool) -> Float64[np.ndarray, " row"]:
        """Return a column as numbers.

        Args:
            name: of the column.
            low: least number allowed.
            high: greatest number allowed.
            missing: whether fields may be empty; they become NaN.

        Raises:
            BadFile: when a field is not a number within the bounds, or empty against ``missing``.
        """
        words = self.columns[name]
        try:
            values = np.array([float(word or "nan") for word in words])
        except ValueError as error:
            row = next(row for row, word in enumerate(words) if not _is_number(word or "nan"))
            raise self._bad(name, row, "a number") from error
        wrong = ~((values >= low) & (values <= high))
        for row in np.flatnonzero(wrong).tolist():
            if not missing or words[row]:
                raise self._bad(name, row, f"a number in {low:g}..{high:g}")
        return values

    def _bad(self, name: str, row: int, wanted: str) -> BadFile:
        return BadFile(f"{self.where(row)}: {name} should be {wanted}, it is {self.columns[name][row]!r}")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def read_table(path: Path, *, empty: bool = False) -> Table:
    """Read a table.

    Args:
        path: a ``.csv`` file, or a gzipped one whose name ends in ``.gz``.
        empty: whether it may have no rows.

    Returns:
        Its columns; blank lines are left out.

    Raises:
        BadFile: when the file cannot be read, has no header, names a column twice, or has no row or one of another length than its header.
    """
    header, rows, lines = _read_rows(path)
    names = [name.strip().lower() for name in header]
    if not rows and not empty:
        raise BadFile(f"{path} should have a header line and at least one row below it")
    if not names or len(set(names)) != len(names):
        raise BadFile(f"{path} should begin with a line that names every column once, got: {', '.join(names) or 'nothing'}")
    uneven = next((row for row, fields in enumerate(rows) if len(fields) != len(names)), None)
    if uneven is not None:
        raise BadFile(f"{path}, line {lines[uneven]}: {len(names)} fields wanted as in the header, got {len(rows[uneven])}")
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return Table(path=path, columns=dict(zip(names, columns, strict=True)), lines=lines)


def _read_rows(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    rows, lines = [], []
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig", newline="") as file
        ):
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            header = next(reader, [])
            for fields in reader:
                if fields:
                    rows.append([field.strip() for field in fields])
                    lines.append(reader.line_num)
    except OSError as error:  # gzip.BadGzipFile is one, without strerror
        raise BadFile(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error, EOFError, zlib.error) as error:
        raise BadFile(f"{path} is not a table of comma-separated values in UTF-8: {error}") from error
    return header, rows, lines
