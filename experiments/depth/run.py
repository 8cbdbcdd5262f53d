"""The depth study: every run of its frozen protocol, then a table, a figure and a verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.depth import analysis as judging
from experiments.depth.analysis import Installed
from experiments.depth.figure import depth_figure
from experiments.depth.plan import Plan
from experiments.depth.simulate import simulate
from experiments.harness import markdown
from experiments.harness.jobs import run_jobs
from experiments.harness.markdown import commit, number
from experiments.harness.preregistration import Preregistration
from riprap.monitor import versions
from riprap.report import save


def run(out: Path, exploratory: bool = False, workers: int = 2) -> dict[str, Any]:
    """Make the runs that are missing, and write table, figure and verdict.

    Args:
        out: folder of the results.
        exploratory: use the exploratory seeds, whose results are never reported as the study's.
        workers: processes, one thread each.

    Returns:
        the verdict and the path written.

    Raises:
        ProtocolError: the protocol was changed since it was frozen.
    """
    preregistration = Preregistration.named("depth")
    preregistration.verify()
    pairs = Plan.of(preregistration).runs(exploratory)
    run_jobs(simulate, [(*pair, preregistration) for pair in pairs], workers)
    found = [Installed.load(*pair, preregistration) for pair in pairs]
    out.mkdir(parents=True, exist_ok=True)
    save(depth_figure(found), out / "depth.png")
    (out / "README.md").write_text(_page(found, preregistration, exploratory))
    return {"out": str(out), "verdict": judging.verdict(found)}


def _page(found: Sequence[Installed], preregistration: Preregistration, exploratory: bool) -> str:
    kind = "exploratory" if exploratory else "confirmatory"
    command = "riprap study depth" + (" --exploratory" if exploratory else "")
    rows = [
        {
            "steps": one.degree.steps,
            "weight decay": f"{one.degree.decay:g}",
            "share of B": f"{one.degree.share:g}",
            "seed": one.seed,
            "depth ‖g_b‖": f"{one.depth:.2g}",
            "margin at the start": number(one.margin, 2),
            "first warning": number(one.warned),
            "break": number(one.broke),
            "window": number(one.window) + ("" if one.broke is not None else " or more"),
        }
        for one in found
    ]
    return (
        f"# Depth, {kind} seeds\n\nMade by `{command}` at commit `{commit()}`, protocol "
        f"`depth` `{preregistration.hash}`, {json.dumps(versions())}.\n\n"
        "The prediction: a more deeply installed behaviour, one whose loss gradient ‖g_b‖ at the "
        "start is smaller, leaves a longer detection window, from the first `warning` to the "
        "break. What it means is in `FINDINGS.md` beside this file.\n\n"
        f"**Verdict: {judging.verdict(found)}**\n\n"
        f"{markdown.table(judging.correlations(found))}\n\n"
        "Spearman's rank correlation with its 95 % interval (10,000 bootstraps over runs). "
        "A run that did not break counts with the window that it had at its end; one without a "
        "warning before its break, with 0.\n\n"
        f"![depth](depth.png)\n\n## Every run\n\n{markdown.table(rows)}\n"
    )
