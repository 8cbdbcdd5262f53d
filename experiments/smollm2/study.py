"""What erodes in SmolLM2 that was taught to refuse, when, and what was forecast?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from experiments.harness.interference_claim import agreement
from experiments.harness.markdown import fill, number
from experiments.harness.plan import StudyPlan
from experiments.harness.study import Session, Study
from experiments.smollm2.simulate import AGES, CHECKPOINTS, EXAMPLES, simulate
from experiments.smollm2.teaching import make, require_taught_model
from riprap.detectors import AlertPolicy, score
from riprap.record import Reader
from riprap.report import run_figure
from riprap.types import Level


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: folder of the record.
        arrays: those of `InterferenceComparison`.
        checkpoints: rows of `GenerationCheckpoints`, one a checkpoint and probe set.
    """

    name: str
    folder: Path
    arrays: dict[str, np.ndarray]
    checkpoints: list[dict[str, Any]]

    @classmethod
    def load(cls, name: str, folder: Path, arrays: dict[str, np.ndarray]) -> Run:
        """Read the checkpoints of a run; of repeated lines the last counts."""
        lines = (folder / CHECKPOINTS).read_text(encoding="utf-8").splitlines()
        rows = {(row["pack"], row["step"]): row for row in map(json.loads, lines)}
        return cls(name, folder, arrays, [rows[key] for key in sorted(rows)])


def sections(runs: Sequence[Run], _plan: Any) -> dict[str, Any]:
    """Return the policy and the sections of the page."""
    parts = [
        fill(
            Path(__file__).with_name("run.md"),
            name=run.name,
            behaviors=_behaviors(run.folder),
            agreement=_agreement(run.checkpoints),
            comparison=_comparison(run.arrays),
        )
        for run in runs
    ]
    return {"policy": AlertPolicy.default().hash, "runs": "\n".join(parts)}


def _agreement(checked: list[dict[str, Any]]) -> list[dict[str, object]]:
    return [
        {
            "pack": row["pack"],
            "step": row["step"],
            **{key: number(row[key], 3) for key in ("score", "generated", "agreement")},
            "mean margin": number(row["margin"], 2),
        }
        for row in checked
    ]


def _behaviors(folder: Path) -> list[dict[str, object]]:
    """Return by behavior: probes, first alert by level, break, first and last margin."""
    reader = Reader(folder)
    alerts = reader.alerts()
    rows = []
    for behavior in reader.meta()["behaviors"]:
        name, floor = behavior["name"], behavior["floor"]
        margins = reader.margins(name)
        first, last = next(iter(margins.values())), list(margins.values())[-1]
        broke = next((step for step, m in margins.items() if score(m) < floor), None)
        own = [alert for alert in alerts if alert.behavior == name]
        alerted = {
            level: next((a.step for a in own if a.level.rank >= level.rank), None)
            for level in Level
        }
        critical = alerted[Level.CRITICAL]
        lead = None if broke is None or critical is None else broke - critical
        rows.append(
            {
                "behavior": name,
                "probes": len(last),
                **{f"first {level}": number(step) for level, step in alerted.items()},
                "broke": number(broke),
                "lead": number(lead),
                "mean margin, start": number(first.mean(), 2),
                "end": number(last.mean(), 2),
                "score, end": number(score(last), 2),
                "visits": len(margins),
            }
        )
    return rows


def _comparison(arrays: dict[str, np.ndarray]) -> list[dict[str, object]]:
    rows = []
    for key in sorted(k for k in arrays if k.startswith("predicted/")):
        name = key.split("/", 1)[1]
        predictions = [arrays[key], *arrays[f"stale/{name}"]]
        for age, predicted in zip((0, *AGES), predictions, strict=True):
            agreed = agreement(predicted, arrays[f"realised/{name}"])
            rows.append(
                {
                    "behavior": name,
                    "age of h_b": age,
                    "correlation": number(agreed["correlation"], 3),
                    "slope": number(agreed["slope"], 2),
                    "steps": number(agreed["n"]),
                }
            )
    return rows


def claim_figure(runs: Sequence[Run]) -> alt.HConcatChart:
    """Plot one panel a run; a point is one step of one behavior, the line is equality."""
    rows = [
        {"run": run.name, "behavior": name, "step": step + 1, "predicted": p, "realized": r}
        for run in runs
        for name in sorted(k.split("/", 1)[1] for k in run.arrays if k.startswith("predicted/"))
        for step, (p, r) in enumerate(
            zip(run.arrays[f"predicted/{name}"], run.arrays[f"realised/{name}"], strict=True)
        )
    ]
    frame = pd.DataFrame(rows)
    low = float(frame[["predicted", "realized"]].min().min())
    high = float(frame[["predicted", "realized"]].max().max())
    ends = alt.Chart(pd.DataFrame({"predicted": [low, high], "realized": [low, high]}))
    diagonal = ends.mark_line(color="#999", strokeDash=[4, 3]).encode(x="predicted", y="realized")
    points = alt.Chart(frame).mark_point(filled=True, size=45)
    points = points.encode(
        x=alt.X("predicted", title="predicted ⟨h_b, Δθ⟩ (logits)"),
        y=alt.Y("realized", title="realized change of the mean margin (logits)"),
        color=alt.Color("behavior", scale=alt.Scale(scheme="tableau10")),
        tooltip=["behavior", "step", "predicted", "realized"],
    )
    panels = [
        alt.layer(diagonal, points.transform_filter(alt.datum.run == run.name)).properties(
            title=run.name, width=300, height=300
        )
        for run in runs
    ]
    return alt.hconcat(*panels)


class Plan(StudyPlan):
    """One run of each example, on the seed of its configuration."""

    exploratory: tuple[int, ...] = ()
    confirmatory: tuple[int, ...] = (0,)


def collect(arrays: list[dict[str, np.ndarray]], _session: Session[Plan]) -> list[Run]:
    """Read the runs' folders."""
    return [
        Run.load(name, simulate.path(name).parent, own)
        for name, own in zip(EXAMPLES, arrays, strict=True)
    ]


STUDY = Study(
    name="smollm2",
    plan=Plan,
    preregistered=False,
    check=lambda _: require_taught_model(),
    jobs=lambda _: [(name,) for name in EXAMPLES],
    simulate=simulate,
    collect=collect,
    sections=sections,
    figures={
        "claim": lambda runs, _: claim_figure(runs),
        "affirmative": lambda runs, _: run_figure(runs[0].folder),
        "gsm8k": lambda runs, _: run_figure(runs[1].folder),
    },
    documents={"checkpoints.json": lambda runs, _: {run.name: run.checkpoints for run in runs}},
    actions={"prepare": make},
)
