"""What became of a model's behaviours: a page that needs no network, first line the verdict."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from riprap.diagnosis.evidence import Along, Decodability, Divergence, Forced
from riprap.diagnosis.recovery import Recovery
from riprap.diagnosis.repair import Repair
from riprap.errors import ConfigError
from riprap.report import _diagnosis_text as say
from riprap.report import _formatting as words
from riprap.report._charts import save
from riprap.report._diagnosis_figures import evidence_figure, repairs_figure
from riprap.report._divergence import divergence_figure

_HERE = Path(__file__).parent
_TEMPLATES = Environment(
    loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
PAGE = "report.html"


@dataclass
class Diagnosed:
    """One behaviour.

    Attributes:
        probes: how many measured it; 0 where the base model has too little of it.
        before, now: score of the base and of the tuned model.
        margin_before, margin_now: mean margins.
        missing: why a kind of evidence (recovery, forced prefix, decodability, path) was not run.
    """

    name: str
    floor: float
    probes: int = 0
    before: float = float("nan")
    now: float = float("nan")
    margin_before: float = float("nan")
    margin_now: float = float("nan")
    recovery: Recovery | None = None
    forced: Forced | None = None
    decoded: Decodability | None = None
    along: Along | None = None
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def broke(self) -> bool:
        """Whether the score is under its floor."""
        return self.probes > 0 and self.now < self.floor


@dataclass
class Diagnosis:
    """Two models compared.

    Attributes:
        repairs: the first is the model as it is; empty where nothing is lost.
        cheapest: of those that bring all behaviours to their floors.
        price: what a repair is said to take, in words.
        seconds: by part.
        peak: memory, in words.
    """

    base: str
    tuned: str
    behaviors: list[Diagnosed]
    divergence: Divergence | None
    repairs: Sequence[Repair]
    cheapest: Repair | None
    price: str
    settings: dict[str, Any]
    seconds: dict[str, float]
    peak: str

    @property
    def floors(self) -> dict[str, float]:
        """Of the behaviours that were measured."""
        return {one.name: one.floor for one in self.behaviors if one.probes}


def write_diagnosis(found: Diagnosis, folder: Path) -> Path:
    """Write the page `report.html` into a folder; returns its path.

    Raises:
        ConfigError: it cannot be written there.
    """
    shown = [one for one in found.behaviors if one.recovery is not None or one.along is not None]
    text = _TEMPLATES.get_template("diagnosis.html").render(
        found=found,
        say=say,
        number=words.number,
        shown=shown,
        figures={one.name: picture(evidence_figure(one)) for one in shown},
        divergence=None
        if found.divergence is None
        else picture(divergence_figure(found.divergence)),
        repairs=picture(repairs_figure(found)) if len(found.repairs) > 1 else None,
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PAGE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write the diagnosis to {folder}: {error}") from error
    return folder / PAGE


def picture(chart: Any) -> str:
    """A figure as the text of a PNG."""
    with tempfile.TemporaryDirectory() as folder:
        return base64.b64encode(save(chart, Path(folder) / "one.png").read_bytes()).decode()
