"""The study of concentration: measure, then table, figure and verdicts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.concentration import tables as pages
from experiments.concentration.analysis import ROLES
from experiments.concentration.figure import figure
from experiments.concentration.plan import Plan
from experiments.concentration.simulate import REAL, TOY, Measured, simulate
from experiments.harness.jobs import run_jobs
from experiments.harness.preregistration import Preregistration
from riprap.errors import ConfigError
from riprap.integrations.smollm2 import REFUSING
from riprap.report import save


def run(out: Path, exploratory: bool = False, workers: int = 1) -> dict[str, Any]:
    """Measure what was not yet, and write table and figure.

    Args:
        out: folder of the results.
        exploratory: the toy world's exploratory seeds alone.
        workers: processes, one thread each; one with the real model needs 6 GB.

    Returns:
        the verdicts by model, and the path written.

    Raises:
        ProtocolError: the protocol was changed since it was frozen.
        ConfigError: the model that refuses has not been made.
    """
    preregistration = Preregistration.named("concentration")
    if not exploratory:
        preregistration.verify()
        if not REFUSING.is_dir():
            raise ConfigError(f"{REFUSING} is missing: run `riprap study smollm2 --prepare` first")
    plan = Plan.of(preregistration)
    seeds = plan.exploratory if exploratory else plan.confirmatory
    jobs = [(TOY, seed, role, plan) for seed in seeds for role in ROLES]
    jobs += [] if exploratory else [(REAL, 0, role, plan) for role in ROLES]
    found: list[Measured] = run_jobs(simulate, jobs, workers)
    out.mkdir(parents=True, exist_ok=True)
    kind = "exploratory" if exploratory else "confirmatory"
    save(figure(found), out / f"{kind}.png")
    page = "README.md" if not exploratory else "EXPLORED.md"
    (out / page).write_text(pages.page(found, plan, preregistration, kind))
    (out / f"{kind}.json").write_text(json.dumps([asdict(one) for one in found]))
    return {"out": str(out), "verdicts": pages.verdicts(found, plan)}
