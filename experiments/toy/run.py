"""The toy study: every run of its frozen protocol, then its tables and figures. Resumable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.harness.jobs import run_jobs
from experiments.harness.markdown import commit, table
from experiments.harness.preregistration import Preregistration
from experiments.toy import figures, tables, verdicts
from experiments.toy.analysis import Run, judge
from experiments.toy.plan import Plan
from experiments.toy.simulate import simulate
from riprap.monitor import versions
from riprap.report import save

RAW = Path("runs/toy")  # records and truths; not committed


def run(out: Path, exploratory: bool = False, workers: int = 2) -> dict[str, Any]:
    """Make what is missing of the study's runs, and write tables and figures.

    Args:
        out: folder of the results.
        exploratory: use the exploratory seeds, whose results are never reported as the study's.
        workers: processes, one thread each.

    Returns:
        the acceptance rows and the paths written.

    Raises:
        ProtocolError: the protocol is not frozen, or was changed since.
    """
    preregistration = Preregistration.named("toy")
    if not exploratory:
        preregistration.verify()
    pairs = Plan.of(preregistration).runs(exploratory)
    _simulate_all(pairs, preregistration, workers)
    runs = [Run.load(folder_of(*pair), *pair) for pair in pairs]
    frame = pd.concat([judge(one, preregistration) for one in runs], ignore_index=True)
    out.mkdir(parents=True, exist_ok=True)
    frame.to_json(out / "rows.json", orient="records", indent=1)
    _draw(runs, out)
    accepted = verdicts.acceptance(frame)
    (out / "README.md").write_text(_page(runs, frame, accepted, preregistration, exploratory))
    return {"out": str(out), "acceptance": accepted}


def folder_of(condition: str, seed: int) -> Path:
    """Where a run's record lies."""
    return RAW / f"{condition}-{seed}"


def _simulate_all(
    pairs: list[tuple[str, int]], preregistration: Preregistration, workers: int
) -> None:
    run_jobs(simulate, [(*pair, folder_of(*pair), preregistration) for pair in pairs], workers)


def _draw(runs: list[Run], out: Path) -> None:
    save(figures.behavior_figure(runs), out / "behavior.png")
    save(figures.signals_figure(runs), out / "signals.png")
    save(figures.claim_figure(runs), out / "claim.png")
    save(figures.staleness_figure(runs), out / "staleness.png")


def _page(
    runs: list[Run],
    frame: pd.DataFrame,
    accepted: list[dict[str, Any]],
    preregistration: Preregistration,
    exploratory: bool,
) -> str:
    kind = "exploratory" if exploratory else "confirmatory"
    command = "riprap study toy" + (" --exploratory" if exploratory else "")
    sections = {
        "What it must show": table(accepted),
        "Leads and false alarms by detector": tables.by_detector(frame),
        "What interference adds over slope": tables.interference_gain(frame, runs),
        "Predicted against realised change": tables.claim_table(runs),
        "How stale the protected gradient may grow": tables.staleness_table(runs),
        "The forecast, judged as a forecast": tables.forecast_quality(runs, preregistration),
        "Subspace overlap of A and B": tables.overlap_table(runs),
        "Every run": tables.per_run(frame),
    }
    head = (
        f"# Toy study, {kind} seeds\n\n"
        f"Made by `{command}` at commit `{commit()}`, protocol `toy` "
        f"`{preregistration.hash or preregistration.content_hash()}`, "
        f"{json.dumps(versions())}.\n\n"
        "What it means is in `FINDINGS.md` beside this file.\n\n"
        "![behaviour](behavior.png)\n\n![signals](signals.png)\n\n"
        "![claim](claim.png)\n\n![staleness](staleness.png)\n"
    )
    return head + "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items())
