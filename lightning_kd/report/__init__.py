"""Reports: what a run found, on the terminal and in ``report/``; many runs side by side."""

from lightning_kd.report.selection import choose_sizes, standard_error
from lightning_kd.report.summary import Result, Summary, environment
from lightning_kd.report.tables import compare
from lightning_kd.report.writing import read_references, show, write_report

__all__ = [
    "Result",
    "Summary",
    "choose_sizes",
    "compare",
    "environment",
    "read_references",
    "show",
    "standard_error",
    "write_report",
]
