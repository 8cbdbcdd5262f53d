"""Which rows do selectors take on SmolLM2, and what happens to its refusals?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from experiments.harness.jobs import Job
from experiments.harness.study import Session, Study
from experiments.row_selection_smollm2 import tables
from experiments.row_selection_smollm2.plan import Plan
from experiments.row_selection_smollm2.rows import mixed, write
from experiments.row_selection_smollm2.simulate import FOLDER, PROBE_SET, Run, digest_of, simulate
from experiments.row_selection_smollm2.tables import Results
from experiments.smollm2.rows import REFUSAL_PREFIX
from experiments.smollm2.teaching import require_taught_model
from riprap.commands.select import SelectConfig, select_rows
from riprap.commands.watch import DataConfig
from riprap.integrations.smollm2 import REFUSING


def jobs(session: Session[Plan]) -> list[Job]:
    """Return every method on every seed."""
    plan, digest = session.plan, digest_of(session.plan, session.data)
    steps = plan.exploratory_steps if session.exploratory else plan.steps
    return [
        (method, seed, steps, digest, plan, session.data)
        for seed in session.seeds
        for method in plan.methods
    ]


def collect(runs: list[Run], session: Session[Plan]) -> Results:
    """Score the rows by `riprap select`, once, and compare proxies with the exact norm."""
    plan = session.plan
    taught, _ = mixed(session.data, plan.taught, plan.held_out)
    config = SelectConfig(
        data=DataConfig(path=str(write(taught, FOLDER / "taught.jsonl"))),
        model=str(REFUSING),
        out=FOLDER / "scores",
        ratio=plan.ratio,
        behaviors=(PROBE_SET,),
        refusal_prefixes=(REFUSAL_PREFIX,),
        lora_rank=plan.rank,
        batch_size=plan.batch,
        max_length=plan.max_length,
        id="id",
        category="category",
    )
    selection = select_rows(config, quiet=True)
    scores = Path(selection["files"]["scores"])
    return Results(runs, scores, selection["groups"], tables.agreement(scores, plan.batch))


STUDY = Study(
    name="row_selection_smollm2",
    title="Selectors on SmolLM2-135M",
    plan=Plan,
    check=lambda _: require_taught_model(),
    jobs=jobs,
    simulate=simulate,
    collect=collect,
    claims=lambda results, _: results.spearman,
    sections=tables.sections,
    figures={"chosen": lambda results, _: tables.figure(results.runs, results.scores)},
    documents={
        "chosen.json": lambda results, _: {
            "runs": [asdict(run) for run in results.runs],
            "groups": results.groups,
            "spearman": results.spearman,
        }
    },
)
