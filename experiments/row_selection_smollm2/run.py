"""Selectors on the real model: scores of the rows, runs, table, figure."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from experiments.harness.preregistration import Preregistration
from experiments.row_selection_smollm2 import tables as pages
from experiments.row_selection_smollm2.plan import Plan
from experiments.row_selection_smollm2.rows import Mixed, mixed, write
from experiments.row_selection_smollm2.simulate import PACK, RUNS, Run, simulate
from experiments.smollm2.rows import REFUSAL_PREFIX
from riprap.commands.select import SelectConfig, select_rows
from riprap.commands.watch import DataConfig
from riprap.errors import ConfigError
from riprap.integrations.smollm2 import REFUSING
from riprap.report import save_figure


def run(out: Path, data: Path, exploratory: bool = False) -> dict[str, Any]:
    """Make what is missing, in this process, and write table and figure.

    Args:
        out: folder of the results; exploratory runs write nothing there.
        data: folder of the public data sets.
        exploratory: a few steps on the exploratory seeds, to see that everything runs.

    Raises:
        ProtocolError: the protocol was changed since it was frozen.
        ConfigError: the model that refuses has not been made, or data are missing.
    """
    if not REFUSING.is_dir():
        raise ConfigError(f"{REFUSING} is missing: run `riprap study smollm2 --prepare` first")
    preregistration = Preregistration.named("row_selection_smollm2")
    if not exploratory:
        preregistration.verify()
    torch.set_num_threads(1)
    plan = Plan.of(preregistration)
    taught, held_out = mixed(data, plan.taught, plan.held_out)
    seeds = plan.exploratory if exploratory else plan.confirmatory
    steps = plan.exploratory_steps if exploratory else plan.steps
    RUNS.mkdir(parents=True, exist_ok=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    runs: list[Run] = []
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        bar = progress.add_task("runs", total=len(seeds) * len(plan.methods))
        for seed in seeds:
            for method in plan.methods:
                runs.append(simulate(method, seed, plan, steps, taught, held_out))
                progress.advance(bar)
            if not exploratory:  # a page after each whole seed
                summary = _write(out, plan, preregistration, runs, _scored(plan, taught))
    return {"runs": [asdict(one) for one in runs]} if exploratory else summary


def _scored(plan: Plan, taught: Mixed) -> dict[str, Any]:
    """What `riprap select` says of the rows; scored once."""
    rows = write(taught, RUNS / "taught.jsonl")
    return select_rows(_selection(plan, rows), quiet=True)


def _selection(plan: Plan, rows: Path) -> SelectConfig:
    return SelectConfig(
        data=DataConfig(path=str(rows)),
        model=str(REFUSING),
        out=RUNS / "scores",
        ratio=plan.ratio,
        behaviors=(PACK,),
        refusal_prefixes=(REFUSAL_PREFIX,),
        lora_rank=plan.rank,
        batch_size=plan.batch,
        max_length=plan.max_length,
        id="id",
        category="category",
    )


def _write(
    out: Path,
    plan: Plan,
    preregistration: Preregistration,
    runs: list[Run],
    scored: dict[str, Any],
) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    scores = Path(scored["files"]["scores"])
    agreement = pages.agreement(scores, plan.batch)
    save_figure(pages.figure(runs, scores), out / "chosen.png")
    page = pages.page(runs, plan, preregistration, scored["groups"], agreement)
    (out / "README.md").write_text(page, encoding="utf-8")
    kept = {"runs": [asdict(one) for one in runs], "groups": scored["groups"]}
    (out / "chosen.json").write_text(json.dumps(kept | {"spearman": agreement}, indent=0))
    return {"out": str(out), "spearman": agreement}
