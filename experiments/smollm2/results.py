"""Tables of the SmolLM2 study from what its runs left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness.interference_claim import agreement
from experiments.harness.markdown import number, table
from experiments.smollm2 import scatter
from riprap.detectors import score
from riprap.monitor import versions
from riprap.record import Reader
from riprap.types import Level

CHECKPOINTS = "checkpoints.jsonl"
CLAIM = "claim.npz"
DONE = "done.json"
AGES = (1, 2, 3, 4, 8)  # how stale, in steps, h_b is made on purpose


def write(out: Path, folders: dict[str, Path]) -> None:
    """Write `README.md`, `checkpoints.json` and the scatter figure into `out`.

    Args:
        folders: of the finished runs, by name.
    """
    claims = {name: dict(np.load(folder / CLAIM)) for name, folder in folders.items()}
    scatter.write(claims, out / "claim.png")
    checked = {name: _checkpoints(folder) for name, folder in folders.items()}
    (out / "checkpoints.json").write_text(json.dumps(checked, indent=1), encoding="utf-8")
    meta = Reader(next(iter(folders.values()))).meta()
    head = (
        "# SmolLM2-135M-Instruct, taught to refuse, fine-tuned twice\n\n"
        "Made by `riprap study smollm2` after `riprap study smollm2 --prepare`; one seed a run. "
        f"Protocol `{meta['protocol']['name']}` `{meta['protocol_hash']}`; "
        f"{json.dumps(versions())}. What it means is in `FINDINGS.md` beside this file.\n\n"
        "![claim](claim.png)\n\n"
    )
    sections = [_section(name, folders[name], checked[name], claims[name]) for name in folders]
    (out / "README.md").write_text(head + "\n".join(sections), encoding="utf-8")


def _section(
    name: str, folder: Path, checked: list[dict[str, Any]], claim: dict[str, np.ndarray]
) -> str:
    return (
        f"## {name}\n\n![{name}]({name}.png)\n\n### What broke, and what was said before\n\n"
        f"{table(_behaviors(folder))}\n\n### Score against generated behaviour\n\n"
        f"{table(_agreement(checked))}\n\n"
        f"### Predicted against realised change, first steps\n\n{table(_claim(claim))}\n"
    )


def _checkpoints(folder: Path) -> list[dict[str, Any]]:
    """One row a checkpoint and pack; of repeated lines the last counts."""
    lines = (folder / CHECKPOINTS).read_text(encoding="utf-8").splitlines()
    rows = {(row["pack"], row["step"]): row for row in map(json.loads, lines)}
    return [rows[key] for key in sorted(rows)]


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
    """Per behaviour: probes, first alert by level, break, first and last margin."""
    reader = Reader(folder)
    alerts = reader.alerts()
    rows = []
    for behavior in reader.meta()["behaviors"]:
        name, floor = behavior["name"], behavior["floor"]
        margins = reader.margins(name)
        first, last = next(iter(margins.values())), list(margins.values())[-1]
        broke = next((step for step, m in margins.items() if score(m) < floor), None)
        said = {
            level: next(
                (a.step for a in alerts if a.behavior == name and a.level.rank >= level.rank), None
            )
            for level in Level
        }
        critical = said[Level.CRITICAL]
        lead = None if broke is None or critical is None else broke - critical
        rows.append(
            {
                "behaviour": name,
                "probes": len(last),
                **{f"first {level}": number(step) for level, step in said.items()},
                "broke": number(broke),
                "lead": number(lead),
                "mean margin, start": number(first.mean(), 2),
                "end": number(last.mean(), 2),
                "score, end": number(score(last), 2),
                "visits": len(margins),
            }
        )
    return rows


def _claim(arrays: dict[str, np.ndarray]) -> list[dict[str, object]]:
    rows = []
    for key in sorted(k for k in arrays if k.startswith("predicted/")):
        name = key.split("/", 1)[1]
        predictions = [arrays[key], *arrays[f"stale/{name}"]]
        for age, predicted in zip((0, *AGES), predictions, strict=True):
            found = agreement(predicted, arrays[f"realised/{name}"])
            rows.append(
                {
                    "behaviour": name,
                    "age of h_b": age,
                    "correlation": number(found["correlation"], 3),
                    "slope": number(found["slope"], 2),
                    "steps": number(found["n"]),
                }
            )
    return rows
