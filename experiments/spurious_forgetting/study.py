"""Which findings on spurious forgetting replicate on made-up biographies?"""

from __future__ import annotations

from dataclasses import asdict

from experiments.harness.study import Study
from experiments.spurious_forgetting import tables
from experiments.spurious_forgetting.plan import Plan
from experiments.spurious_forgetting.simulate import FROZEN, TASKS, simulate

STUDY = Study(
    name="spurious_forgetting",
    title="Spurious forgetting on the biographies world, {kind} seeds",
    note=tables.note,
    plan=Plan,
    jobs=lambda s: [
        (task, frozen, seed, s.plan) for seed in s.seeds for task in TASKS for frozen in FROZEN
    ],
    simulate=simulate,
    claims=tables.verdicts,
    sections=tables.sections,
    figures={"{kind}": tables.figure},
    documents={"{kind}.json": lambda runs, _: [asdict(run) for run in runs]},
)
