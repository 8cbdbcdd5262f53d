"""Write the page of a diagnosis: one self-contained HTML file that begins with the verdicts."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from riprap.diagnosis import Diagnosis
from riprap.errors import ConfigError
from riprap.evals import TaskChange
from riprap.report import _diagnosis_text as text
from riprap.report import _evals_text as evals_text
from riprap.report._bundle import Head, render_page, write_page
from riprap.report._charts import save_figure
from riprap.report._diagnosis_figures import evidence_figure, repairs_figure
from riprap.report._divergence import divergence_figure

PAGE = "report.html"


def write_diagnosis(diagnosis: Diagnosis, folder: Path, changes: Sequence[TaskChange] = ()) -> Path:
    """Write the page `report.html` into a folder, and return its path.

    Args:
        changes: from evals of the base to those of the tuned model.

    Raises:
        ConfigError: the folder cannot be written, or `report.html` is no diagnosis.
    """
    divergence = diagnosis.divergence
    examined = [
        behavior
        for behavior in diagnosis.behaviors
        if behavior.recovery is not None or behavior.linear_path is not None
    ]
    tried = list(diagnosis.repairs)
    html = render_page(
        "diagnosis.html",
        _head(diagnosis, changes),
        diagnosis=diagnosis,
        text=text,
        examined=examined,
        evals_text=evals_text,
        changes=changes,
        evals=evals_text.eval_rows(changes),
        repairs=text.repair_rows(diagnosis),
        cheapest=next((i for i, own in enumerate(tried) if own is diagnosis.cheapest_repair), None),
        figures={b.name: to_base64_png(evidence_figure(b)) for b in examined},
        divergence=None if divergence is None else to_base64_png(divergence_figure(divergence)),
        repairs_image=to_base64_png(repairs_figure(diagnosis)) if len(tried) > 1 else None,
    )
    try:
        write_page(folder / PAGE, "diagnosis", html)
    except OSError as error:
        raise ConfigError(f"cannot write the diagnosis to {folder}: {error}") from error
    return folder / PAGE


def _head(diagnosis: Diagnosis, changes: Sequence[TaskChange]) -> Head:
    measured = [own for own in diagnosis.behaviors if own.probes]
    kept = [own for own in measured if not own.is_broken]
    numbers = {"behaviors above their floors": f"{len(kept)} of {len(measured)}"}
    if measured:
        worst = min(measured, key=lambda own: own.score_now - own.score_before)
        pair = (text.format_share(s) for s in (worst.score_before, worst.score_now))
        numbers[f"probes of {worst.name} that pass"] = " → ".join(pair)
        repair = diagnosis.cheapest_repair
        if repair is not None and worst.name in repair.scores:
            numbers["after the cheapest repair"] = text.format_share(repair.scores[worst.name])
    return Head(
        "diagnosis",
        diagnosis.tuned,
        f"{text.first_line(diagnosis)} {evals_text.evals_line(changes)}".strip(),
        numbers,
        text.repair_summary(diagnosis) if diagnosis.repairs else "",
        "It is about these behaviors and their probes only: what no behavior measures may have "
        "changed as well."
        if not changes
        else "It is about these behaviors, their probes, and the rows of these tasks only: what "
        "none of them measures may have changed as well.",
        (f"Compared with its base model, {diagnosis.base}.",),
    )


def to_base64_png(chart: Any) -> str:
    """Render a figure as a base64-encoded PNG."""
    with tempfile.TemporaryDirectory() as folder:
        png = save_figure(chart, Path(folder) / "figure.png").read_bytes()
    return base64.b64encode(png).decode()
