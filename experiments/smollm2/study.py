"""What erodes in SmolLM2 that was taught to refuse, when, and what was forecast?"""

from __future__ import annotations

import numpy as np

from experiments.harness.plan import StudyPlan
from experiments.harness.study import Session, Study
from experiments.smollm2.results import Run, sections
from experiments.smollm2.scatter import claim_figure
from experiments.smollm2.simulate import EXAMPLES, simulate
from experiments.smollm2.teaching import make, require_taught_model
from riprap.detectors import AlertPolicy
from riprap.report import run_figure


class Plan(StudyPlan):
    """One run of each example, on the seed of its configuration."""

    exploratory: tuple[int, ...] = ()
    confirmatory: tuple[int, ...] = (0,)


def collect(arrays: list[dict[str, np.ndarray]], _session: Session[Plan]) -> list[Run]:
    """Read the runs' folders."""
    return [
        Run.load(name, simulate.path(name).parent, own)
        for name, own in zip(EXAMPLES, arrays, strict=True)
    ]


STUDY = Study(
    name="smollm2",
    title="SmolLM2-135M-Instruct, taught to refuse, fine-tuned twice",
    note=lambda _: (
        "The model was made by `python -m experiments smollm2 --prepare`; one seed a "
        f"run; alert policy `default` `{AlertPolicy.default().hash}`. "
    ),
    plan=Plan,
    preregistered=False,
    check=lambda _: require_taught_model(),
    jobs=lambda _: [(name,) for name in EXAMPLES],
    simulate=simulate,
    collect=collect,
    sections=sections,
    figures={
        "claim": lambda runs, _: claim_figure(runs),
        "affirmative": lambda runs, _: run_figure(runs[0].folder),
        "gsm8k": lambda runs, _: run_figure(runs[1].folder),
    },
    documents={"checkpoints.json": lambda runs, _: {run.name: run.checkpoints for run in runs}},
    actions={"prepare": make},
)
