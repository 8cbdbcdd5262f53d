"""The continual study: a search of the guards' knobs, then the confirmatory runs and pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.continual import analysis as judging
from experiments.continual import claims
from experiments.continual import tables as pages
from experiments.continual.audit import Group
from experiments.continual.figure import figure
from experiments.continual.methods import GUARDS, PLAIN
from experiments.continual.plan import GIVEN, Job, Plan
from experiments.continual.simulate import Run, simulate
from experiments.harness.jobs import run_jobs
from experiments.harness.preregistration import Preregistration, PreregistrationError
from riprap.report import save_figure


def search(out: Path, workers: int = 2) -> dict[str, Any]:
    """Try every value of every guard's knob on the exploratory seeds.

    Returns:
        the chosen values, which go into the protocol, and the path written.
    """
    plan = Plan.of(Preregistration.named("continual"))
    tried = [(PLAIN, 1.0)] + [(name, v) for name, entry in GUARDS.items() for v in entry.values]
    jobs = [(name, value, GIVEN, seed) for seed in plan.exploratory for name, value in tried]
    runs = _made(jobs, plan, workers)
    chosen = judging.choose(runs, plan.learned)
    out.mkdir(parents=True, exist_ok=True)
    (out / "search.json").write_text(json.dumps([asdict(one) for one in runs]))
    (out / "SEARCH.md").write_text(pages.search_page(runs, chosen, plan))
    return {"out": str(out), "knobs": chosen}


def run(out: Path, workers: int = 2) -> dict[str, Any]:
    """Make the confirmatory runs that are missing, and write tables and figure.

    Returns:
        the paper's claims with their verdicts, and the path written.

    Raises:
        ProtocolError: the protocol was changed since it was frozen, or has no knobs yet.
    """
    preregistration = Preregistration.named("continual")
    preregistration.verify()
    plan = Plan.of(preregistration)
    missing = [guard for guard in GUARDS if guard not in plan.knobs]
    if missing:
        raise PreregistrationError(
            f"protocol 'continual' has no knob for {missing[0]!r}: `riprap study continual "
            "--search` finds it, and `riprap protocol amend` puts it in"
        )
    runs = _made(plan.jobs(), plan, workers)
    found = judging.rows(runs)
    groups = [group for run in runs for group in run.audit]
    return _write(out, runs, found, groups, plan, preregistration)


def _write(
    out: Path,
    runs: Sequence[Run],
    found: Sequence[judging.Row],
    groups: Sequence[Group],
    plan: Plan,
    preregistration: Preregistration,
) -> dict[str, Any]:
    verdicts = [asdict(one) for one in claims.claims(found, groups, plan)]
    out.mkdir(parents=True, exist_ok=True)
    save_figure(figure(claims.main_rows(found, plan)), out / "continual.png")
    (out / "README.md").write_text(pages.page(found, groups, plan, preregistration))
    slim = [{k: v for k, v in asdict(run).items() if k != "audit"} for run in runs]
    audit = [asdict(group) for group in groups]
    (out / "continual.json").write_text(
        json.dumps({"claims": verdicts, "runs": slim, "audit": audit})
    )
    return {"out": str(out), "claims": verdicts}


def _made(jobs: Sequence[Job], plan: Plan, workers: int) -> list[Run]:
    """All runs, in the order of the jobs; those that exist are read."""
    return run_jobs(simulate, [(*job, plan) for job in jobs], workers)
