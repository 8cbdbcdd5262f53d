"""Views of a record: figures, the HTML report, the live table in the terminal."""

from riprap.report._audit_page import (
    DECADE,
    LEFT,
    NORMS,
    TAKEN,
    Audit,
    Group,
    Worst,
    facts,
    group_rows,
    write_audit,
)
from riprap.report._basin import basin_figure, drift_figure, plane_figure
from riprap.report._charts import lanes, save, styled
from riprap.report._diagnosis_page import Diagnosed, Diagnosis, write_diagnosis
from riprap.report._diagnosis_text import fell
from riprap.report._divergence import divergence_figure
from riprap.report._report_page import write_page
from riprap.report._terminal import LiveTable, Row

__all__ = [
    "DECADE",
    "LEFT",
    "NORMS",
    "TAKEN",
    "Audit",
    "Diagnosed",
    "Diagnosis",
    "Group",
    "LiveTable",
    "Row",
    "Worst",
    "basin_figure",
    "divergence_figure",
    "drift_figure",
    "facts",
    "fell",
    "group_rows",
    "lanes",
    "plane_figure",
    "save",
    "styled",
    "write_audit",
    "write_diagnosis",
    "write_page",
]
