"""Tables of the SmolLM2 experiment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness.interference_claim import agreement
from experiments.harness.markdown import number, table
from riprap.detectors import score
from riprap.record import Reader
from riprap.types import Level

CHECKPOINTS = "checkpoints.jsonl"  # in a run's folder
AGES = (1, 2, 3, 4, 8)  # of the stale h_b that are compared, in steps


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


def sections(runs: Sequence[Run], _plan: Any) -> list[str]:
    """Return the figures and tables of the page."""
    return [
        "![claim](claim.png)\n",
        *(
            f"## {run.name}\n\n![{run.name}]({run.name}.png)\n\n"
            f"### What broke, and what was said before\n\n{table(_behaviors(run.folder))}\n\n"
            f"### Score against generated behavior\n\n{table(_agreement(run.checkpoints))}\n\n"
            "### Predicted against realized change, first steps\n\n"
            f"{table(_comparison(run.arrays))}\n"
            for run in runs
        ),
    ]


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
        alerted = {
            level: next(
                (a.step for a in alerts if a.behavior == name and a.level.rank >= level.rank), None
            )
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
