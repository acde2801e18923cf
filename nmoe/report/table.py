"""The results of a run for a terminal of 80 columns, readable without colour."""

from collections.abc import Mapping

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from nmoe.report.run import Results, to_results
from nmoe.report.summary import Section, sections


def results_table(results: Results | Mapping[str, object]) -> Group:
    """Return the tables of a run, ready for ``rich.console.Console.print``.

    Args:
        results: the record, or the mapping that ``results.json`` holds.

    Raises:
        ValueError: when ``results`` lacks a key or holds an impossible value.
    """
    # a table's own title would wrap at the table's width
    parts = [(Text(section.title, style="bold"), _table(section)) for section in sections(to_results(results))]
    return Group(*(part for pair in parts for part in pair))


def _table(section: Section) -> Table:
    """Render one section; the highlighted row carries a mark, for terminals without colour."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    marked = any(row.highlight for row in section.rows)
    for number, column in enumerate(section.columns):
        left = section.prose or number == 0
        heading = f"  {column}" if marked and number == 0 else column
        table.add_column(Text(heading), justify="left" if left else "right", overflow="fold")
    for row in section.rows:
        mark = ("> " if row.highlight else "  ") if marked else ""
        cells = (mark + row.cells[0], *row.cells[1:])
        table.add_row(*(Text(cell) for cell in cells), style="bold cyan" if row.highlight else None)
    return table
