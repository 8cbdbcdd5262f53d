"""Write the page of a diagnosis: one self-contained HTML file that begins with the verdicts."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from riprap._formatting import format_number
from riprap.diagnosis import Diagnosis
from riprap.errors import ConfigError
from riprap.report import _diagnosis_text as text
from riprap.report._charts import save_figure
from riprap.report._diagnosis_figures import evidence_figure, repairs_figure
from riprap.report._divergence import divergence_figure

_HERE = Path(__file__).parent
_TEMPLATES = Environment(
    loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
PAGE = "report.html"


def write_diagnosis(diagnosis: Diagnosis, folder: Path) -> Path:
    """Write the page `report.html` into a folder, and return its path.

    Raises:
        ConfigError: the folder cannot be written.
    """
    divergence = diagnosis.divergence
    examined = [
        behavior
        for behavior in diagnosis.behaviors
        if behavior.recovery is not None or behavior.linear_path is not None
    ]
    html = _TEMPLATES.get_template("diagnosis.html").render(
        diagnosis=diagnosis,
        text=text,
        number=format_number,
        examined=examined,
        figures={b.name: to_base64_png(evidence_figure(b)) for b in examined},
        divergence=None if divergence is None else to_base64_png(divergence_figure(divergence)),
        repairs=to_base64_png(repairs_figure(diagnosis)) if len(diagnosis.repairs) > 1 else None,
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PAGE).write_text(html, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write the diagnosis to {folder}: {error}") from error
    return folder / PAGE


def to_base64_png(chart: Any) -> str:
    """Render a figure as a base64-encoded PNG."""
    with tempfile.TemporaryDirectory() as folder:
        png = save_figure(chart, Path(folder) / "figure.png").read_bytes()
    return base64.b64encode(png).decode()
