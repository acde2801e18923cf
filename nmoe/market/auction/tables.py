"""Tables of bids and layers: CSV files with a header line, read row by row; every mistake names its line."""

import csv
from pathlib import Path
from typing import NamedTuple

from nmoe.core.errors import BadFile


class BidTable(NamedTuple):
    """A table whose columns are still words.

    Attributes:
        path: where it was read.
        columns: words by column name, names in small letters; all columns are equally long.
        lines: the line of the file that each row ended on, counted from 1.
    """

    path: Path
    columns: dict[str, tuple[str, ...]]
    lines: tuple[int, ...]

    def where(self, row: int) -> str:
        """Return the place of a row, counted from 0, for a message."""
        return f"{self.path}, line {self.lines[row]}"

    def numbers(self, name: str) -> list[float]:
        """Return a column as numbers, NaN and infinity among them.

        Raises:
            BadFile: when a field is not a number, or is empty.
        """
        found = []
        for row, word in enumerate(self.columns[name]):
            try:
                found.append(float(word))
            except ValueError as error:
                raise BadFile(f"{self.where(row)}: {name} should be a number, it is {word!r}") from error
        return found

    def require(self, names: tuple[str, ...]) -> None:
        """Check that columns are there.

        Raises:
            BadFile: when one is missing.
        """
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise BadFile(f"{self.path} should have columns {', '.join(names)}; it lacks {', '.join(missing)}")


def read_bid_table(path: Path) -> BidTable:
    """Read a table; blank lines are left out, and a header without rows is a table without rows.

    ``nmoe.channel.table`` reads measurements likewise, but brings torch along, which is slower than clearing a market.

    Raises:
        BadFile: when the file cannot be read, is not UTF-8, has no header, names a column twice, or has a row of another length.
    """
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            for fields in reader:
                if fields:
                    rows.append([field.strip() for field in fields])
                    lines.append(reader.line_num)
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadFile(f"{path} is not a table of comma-separated values in UTF-8: {error}") from error
    if not header or len(set(header)) != len(header):
        raise BadFile(f"{path} should begin with a line that names every column once, got: {', '.join(header) or 'nothing'}")
    uneven = next((row for row, fields in enumerate(rows) if len(fields) != len(header)), None)
    if uneven is not None:
        raise BadFile(f"{path}, line {lines[uneven]}: {len(header)} fields wanted as in the header, got {len(rows[uneven])}")
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    return BidTable(path, dict(zip(header, columns, strict=True)), tuple(lines))
