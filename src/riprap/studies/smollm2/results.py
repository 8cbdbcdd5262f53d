"""Tables of the SmolLM2 study from what its runs left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from riprap.evidence import Level
from riprap.monitor.facts import versions
from riprap.record import Reader
from riprap.studies.claim import agreement
from riprap.studies.smollm2 import scatter

CHECKPOINTS = "checkpoints.jsonl"
CLAIM = "claim.npz"
DONE = "done.json"


def write(out: Path, folders: dict[str, Path]) -> None:
    """Write `README.md`, `checkpoints.json` and the scatter figure into `out`."""
    claims = {name: dict(np.load(folder / CLAIM)) for name, folder in folders.items()}
    scatter.write(claims, out / "claim.png")
    sections = []
    every_row = []
    for name, folder in folders.items():
        checked = _checkpoints(folder)
        every_row += [row | {"run": name} for row in checked.to_dict("records")]
        sections.append(
            f"## {name}\n\n![{name}]({name}.png)\n\n### What broke, and what was said before\n\n"
            f"{_behaviors(folder)}\n\n### Score against generated behaviour\n\n"
            f"{checked.drop(columns='first answers').to_markdown(index=False, floatfmt='.3f')}\n\n"
            f"### Predicted against realised change, first steps\n\n{_claim(claims[name])}\n"
        )
    (out / "checkpoints.json").write_text(json.dumps(every_row, indent=1), encoding="utf-8")
    meta = Reader(next(iter(folders.values()))).meta()
    head = (
        "# SmolLM2-135M-Instruct, taught to refuse, fine-tuned twice\n\n"
        "Made by `riprap study smollm2` after `riprap study smollm2 --prepare`; one seed each, "
        f"exploratory. Protocol `{meta['protocol']['name']}` `{meta['protocol_hash']}`; "
        f"{json.dumps(versions())}.\n\n![claim](claim.png)\n\n"
    )
    (out / "README.md").write_text(head + "\n".join(sections), encoding="utf-8")


def _checkpoints(folder: Path) -> pd.DataFrame:
    """One row a checkpoint and pack; of repeated lines the last counts."""
    lines = (folder / CHECKPOINTS).read_text(encoding="utf-8").splitlines()
    rows = {(row["step"], row["pack"]): row for row in map(json.loads, lines)}
    return pd.DataFrame(rows.values()).sort_values(["pack", "step"])


def _behaviors(folder: Path) -> str:
    """Per behaviour: probes, first alert by level, break, last score and margin."""
    reader = Reader(folder)
    alerts = reader.alerts()
    rows = []
    for behavior in reader.meta()["behaviors"]:
        name, floor = behavior["name"], behavior["floor"]
        margins = reader.margins(name)
        broke = next((step for step, m in margins.items() if (m > 0).mean() < floor), None)
        own = [alert for alert in alerts if alert.behavior == name]
        first: dict[str, Any] = {
            str(level): next((a.step for a in own if a.level.rank >= level.rank), None)
            for level in Level
        }
        last = list(margins.values())[-1]
        start = next(iter(margins.values()))
        rows.append(
            {
                "behaviour": name,
                "probes": len(last),
                **first,
                "broke": broke,
                "lead": None if None in (broke, first["critical"]) else broke - first["critical"],
                "margin at start": start.mean(),
                "last margin": last.mean(),
                "last score": (last > 0).mean(),
                "visits": len(margins),
            }
        )
    return pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3g")


def _claim(arrays: dict[str, np.ndarray]) -> str:
    from riprap.studies.smollm2.run import AGES

    rows = []
    for key in sorted(k for k in arrays if k.startswith("predicted/")):
        name = key.split("/", 1)[1]
        realised = arrays[f"realised/{name}"]
        predictions = [arrays[key], *arrays[f"stale/{name}"]]
        rows += [
            {"behaviour": name, "age of h_b": age, **agreement(predicted, realised)}
            for age, predicted in zip((0, *AGES), predictions, strict=True)
        ]
    return pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3f")
