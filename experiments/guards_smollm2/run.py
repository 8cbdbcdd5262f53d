"""Guards on the real model: runs, table, figure, verdicts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.guards_smollm2 import tables as pages
from experiments.guards_smollm2.methods import PLAIN
from experiments.guards_smollm2.plan import Plan
from experiments.guards_smollm2.simulate import Run, simulate
from experiments.harness.jobs import run_jobs
from experiments.harness.preregistration import Preregistration
from riprap.errors import ConfigError
from riprap.integrations.smollm2 import REFUSING
from riprap.report import save_figure


def run(out: Path, exploratory: bool = False, workers: int = 2) -> dict[str, Any]:
    """Make the runs that are missing, and write table and figure.

    Args:
        out: folder of the results.
        exploratory: try the guards on the exploratory seeds, in place of the study itself.
        workers: processes, one thread each; a run needs 3 GB.

    Returns:
        the verdicts by seed, and the path written.

    Raises:
        ProtocolError: the protocol was changed since it was frozen.
        ConfigError: the model that refuses has not been made.
    """
    if not REFUSING.is_dir():
        raise ConfigError(f"{REFUSING} is missing: run `riprap study smollm2 --prepare` first")
    preregistration = Preregistration.named("guards_smollm2")
    if not exploratory:
        preregistration.verify()
    plan = Plan.of(preregistration)
    seeds = plan.exploratory if exploratory else plan.confirmatory
    names = plan.tried if exploratory else plan.guards
    jobs = [(name, seed, plan) for seed in seeds for name in (PLAIN, *names)]
    found: list[Run] = run_jobs(simulate, jobs, workers)
    out.mkdir(parents=True, exist_ok=True)
    kind = "exploratory" if exploratory else "confirmatory"
    save_figure(pages.figure(found, plan), out / f"{kind}.png")
    page = "README.md" if not exploratory else "EXPLORED.md"
    (out / page).write_text(pages.page(found, plan, preregistration, kind))
    (out / f"{kind}.json").write_text(json.dumps([asdict(one) for one in found], indent=0))
    return {"out": str(out), "verdicts": pages.verdicts(found, plan)}
