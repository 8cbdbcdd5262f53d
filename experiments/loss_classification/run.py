"""The study of verdicts: checkpoints of known truth, diagnosed; then tables and figure."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.harness.jobs import run_jobs
from experiments.harness.preregistration import Preregistration, PreregistrationError
from experiments.loss_classification import tables as pages
from experiments.loss_classification.plan import Plan
from experiments.loss_classification.simulate import Found, simulate
from riprap.diagnosis.recovery import _verdict as verdict
from riprap.report import save_figure

THRESHOLDS = {  # of the verdict, by field of the plan
    "lost": verdict.MIN_SCORE_DROP,
    "shown": verdict.MIN_REFERENCE_KNOWLEDGE,
    "gone": verdict.LOST_BELOW,
    "kept": verdict.KEPT_ABOVE,
    "unsaid": verdict.UNSAID_SHARE,
    "all": verdict.ONE_ANSWER_SHARE,
    "habit": verdict.FORMAT_SHARE,
}


def run(out: Path, exploratory: bool = False, workers: int = 2) -> dict[str, Any]:
    """Diagnose the checkpoints that were not yet, and write tables and figure.

    Args:
        out: folder of the results.
        exploratory: the exploratory seeds, in place of the study itself.
        workers: processes, one thread each.

    Returns:
        the numbers of the summary, and the path written.

    Raises:
        ProtocolError: the protocol was changed since it was frozen, or the verdict's thresholds
            are not those that it names.
    """
    preregistration = Preregistration.named("loss_classification")
    if not exploratory:
        preregistration.verify()
    plan = Plan.of(preregistration)
    _check(plan)
    seeds = (plan.exploratory, () if exploratory else plan.confirmatory)
    jobs = [(name, seed, plan) for group in seeds for seed in group for name in plan.cases]
    every: list[Found] = run_jobs(simulate, jobs, workers)
    explored = [one for one in every if one.seed in plan.exploratory]
    found = explored if exploratory else [one for one in every if one.seed in plan.confirmatory]
    out.mkdir(parents=True, exist_ok=True)
    kind = "exploratory" if exploratory else "confirmatory"
    save_figure(pages.figure(found, plan), out / f"{kind}.png")
    text = pages.page(found, explored, plan, preregistration, kind)
    (out / ("EXPLORED.md" if exploratory else "README.md")).write_text(text)
    (out / f"{kind}.json").write_text(json.dumps([asdict(one) for one in found], indent=0))
    return {"out": str(out), "verdicts": pages.summary(found, plan)}


def _check(plan: Plan) -> None:
    """A verdict by other thresholds than the frozen ones would not be the study's."""
    named = {name: getattr(plan, name) for name in THRESHOLDS}
    if named != THRESHOLDS:
        raise PreregistrationError(
            f"protocol 'verdicts' names thresholds {named}, and the code has {THRESHOLDS}"
        )
