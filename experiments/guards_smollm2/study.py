"""Which guard protects the refusals of SmolLM2, and at which cost?"""

from __future__ import annotations

from dataclasses import asdict

from experiments.guards_smollm2 import tables
from experiments.guards_smollm2.methods import PLAIN
from experiments.guards_smollm2.plan import Plan
from experiments.guards_smollm2.simulate import simulate
from experiments.harness.study import Study
from experiments.smollm2.teaching import require_taught_model

STUDY = Study(
    name="guards_smollm2",
    title="Guards on SmolLM2-135M, {kind} seeds",
    note=tables.note,
    plan=Plan,
    check=lambda _: require_taught_model(),
    jobs=lambda s: [
        (name, s.plan.knobs.get(name, 0.0), seed, s.plan)
        for seed in s.seeds
        for name in (PLAIN, *(s.plan.tried if s.exploratory else s.plan.guards))
    ],
    simulate=simulate,
    claims=tables.verdicts,
    sections=tables.sections,
    figures={"{kind}": tables.figure},
    documents={"{kind}.json": lambda runs, _: [asdict(run) for run in runs]},
)
