"""Reports: tables for the terminal, figures and one self-contained HTML page, all made from the files of a run folder.

Figures live in ``nmoe.report.figures`` and are not imported from here, so that importing this package never imports matplotlib.
"""

from nmoe.report.html import write_report
from nmoe.report.run import Results, Round, Run, Serving, read_run
from nmoe.report.table import results_table

__all__ = ["Results", "Round", "Run", "Serving", "read_run", "results_table", "write_report"]
