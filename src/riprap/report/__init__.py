"""Figures and pages of runs, selections, diagnoses and predictions; needs `riprap[report]`."""

# ruff: noqa: E402
from riprap._extras import EXTRAS, require

require("report", *EXTRAS["report"])

from riprap.report import _style as style
from riprap.report._audit_page import (
    BINS_PER_DECADE,
    NORM_GROUPS,
    REJECTED,
    SELECTED,
    Audit,
    Group,
    HarmfulRow,
    audit_summary,
    group_rows,
    write_audit,
)
from riprap.report._basin import basin_figure, drift_figure, plane_figure
from riprap.report._card import write_card
from riprap.report._charts import apply_style, run_figure, save_figure
from riprap.report._diagnosis_page import write_diagnosis
from riprap.report._diagnosis_text import describe_repair, diagnosis_headline
from riprap.report._divergence import divergence_figure
from riprap.report._evals_text import evals_line, evals_of_behavior
from riprap.report._panels import inline_data
from riprap.report._preflight_page import write_preflight
from riprap.report._report_page import write_report
from riprap.report._run import load_run

__all__ = [
    "BINS_PER_DECADE",
    "NORM_GROUPS",
    "REJECTED",
    "SELECTED",
    "Audit",
    "Group",
    "HarmfulRow",
    "apply_style",
    "audit_summary",
    "basin_figure",
    "describe_repair",
    "diagnosis_headline",
    "divergence_figure",
    "drift_figure",
    "evals_line",
    "evals_of_behavior",
    "group_rows",
    "inline_data",
    "load_run",
    "plane_figure",
    "run_figure",
    "save_figure",
    "style",
    "write_audit",
    "write_card",
    "write_diagnosis",
    "write_preflight",
    "write_report",
]
