"""Which rows do selectors take on SmolLM2, and what happens to its refusals?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from experiments.harness.jobs import Job
from experiments.harness.markdown import median_range, number
from experiments.harness.study import Session, Study
from experiments.row_selection_smollm2.plan import Plan
from experiments.row_selection_smollm2.simulate import (
    CATEGORIES,
    FOLDER,
    PLAIN,
    PROBE_SET,
    Run,
    digest_of,
    mixed,
    simulate,
    write,
)
from experiments.smollm2.teaching import REFUSAL_PREFIX, require_taught_model
from riprap.commands.select import SelectConfig, select_rows
from riprap.commands.watch import DataConfig
from riprap.integrations.smollm2 import REFUSING
from riprap.report import style

HARM = f"harm/{PROBE_SET}"


def agreement(scores: Path, batch: int) -> dict[str, float]:
    """Return Spearman's correlation of proxies with the exact norm, over all rows and subsets.

    Args:
        batch: number of rows that a selector in a loop would compare with each other.
    """
    frame = pd.read_parquet(scores)
    ranks = {name: _rank(frame, name) for name in ("proxy", "loss", "tokens")}
    for name in CATEGORIES:
        ranks[f"proxy, {name} alone"] = _rank(frame[frame.category == name], "proxy")
    batches = [frame[start : start + batch] for start in range(0, len(frame), batch)]
    within = [_rank(one, "proxy") for one in batches if len(one) == batch]
    for name, value in (("least", min(within)), ("median", np.median(within))):
        ranks[f"proxy, within {batch} rows, {name}"] = float(value)
    return ranks


def _rank(frame: pd.DataFrame, column: str) -> float:
    return float(spearmanr(frame[column], frame.norm).statistic)


@dataclass(frozen=True)
class Results:
    """Runs, and the audit of `riprap select` on the rows before training.

    Attributes:
        scores: file of scores; `groups`: groups of the audit.
        spearman: see `agreement`.
    """

    runs: list[Run]
    scores: Path
    groups: list[dict[str, Any]]
    spearman: dict[str, float]


def sections(results: Results, plan: Plan) -> dict[str, Any]:
    """Return the tables and numbers of the page."""
    return {
        "selected": int(plan.ratio * plan.batch + 1e-9),
        "n_rows": plan.taught * len(CATEGORIES),
        "methods": _methods(results.runs),
        "groups": _groups(results.groups),
        "ranks": [
            {"with the exact norm": name, "Spearman": number(value, 2)}
            for name, value in results.spearman.items()
        ],
    }


def _methods(runs: Sequence[Run]) -> list[dict[str, str]]:
    plain = {run.seed: run for run in runs if run.method == PLAIN}
    lines = []
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        total = sum(sum(run.taken.values()) for run in own)
        shares = {c: sum(run.taken[c] for run in own) / total for c in CATEGORIES}
        lines.append(
            {"method": method, "rows learned from": number(total / len(own))}
            | {f"of them {name}": f"{share:.0%}" for name, share in shares.items()}
            | {
                "margin, start": median_range([run.margins[0] for run in own], 2, "mean"),
                "end": median_range([run.margins[1] for run in own], 2, "mean"),
                "score, end": median_range([run.scores[1] for run in own], 2, "mean"),
                "task loss, start": median_range([run.task[0] for run in own], 3, "mean"),
                "task loss, end": median_range([run.task[1] for run in own], 3, "mean"),
            }
            | {
                f"loss {c}": median_range([r.losses[c][1] for r in own], 3, "mean")
                for c in CATEGORIES
            }
            | {"time": median_range([r.seconds / plain[r.seed].seconds for r in own], 2, "mean")}
        )
    return lines


def _groups(groups: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "group": group["name"],
            "rows": number(group["rows"]),
            "response tokens": number(group["tokens"], 1),
            "loss": number(group["loss"], 2),
            "norm": number(group["norm"], 2),
            "harm to refusal": number(group["harm"][PROBE_SET], 2),
        }
        | {c: f"{group['categories'].get(c, 0) / max(group['rows'], 1):.0%}" for c in CATEGORIES}
        for group in groups
        if group["name"] not in ("chosen", "not chosen")  # moderate is what was chosen
    ]


def figure(runs: Sequence[Run], scores: Path) -> alt.HConcatChart:
    """Plot norm and harm of each row, and the ends of the runs."""
    frame = pd.read_parquet(scores)
    rows = frame.rename(columns={HARM: "harm"})[["norm", "harm", "category"]]
    log = alt.Scale(type="log", nice=False)
    points = alt.Chart(rows).mark_point(filled=True, size=28, opacity=0.75)
    points = points.encode(
        x=alt.X("norm:Q", title="norm of the gradient", scale=log),
        y=alt.Y("harm:Q", title="predicted harm"),
        color=alt.Color("category:N", sort=list(CATEGORIES), legend=_below()),
    ).properties(title="Rows before training: norm and harm to refusal", width=360, height=260)
    zero = alt.Chart(pd.DataFrame({"y": [0.0]})).mark_rule(color=style.MUTED, strokeDash=[4, 3])
    ends = pd.DataFrame(
        {"method": run.method, "seed": str(run.seed), "task": run.task[1], "margin": run.margins[1]}
        for run in runs
    )
    methods = list(dict.fromkeys(ends["method"]))
    outcome = alt.Chart(ends).mark_point(filled=True, size=110, opacity=0.9)
    outcome = outcome.encode(
        x=alt.X("task:Q", title="task loss, end", scale=alt.Scale(zero=False)),
        y=alt.Y("margin:Q", title="refusal margin, end"),
        color=alt.Color("method:N", scale=alt.Scale(scheme="dark2"), sort=methods, legend=_below()),
        shape=alt.Shape("seed:N", legend=_below()),
    ).properties(title="After equal updates, on unseen inputs", width=360, height=260)
    panels = [alt.layer(zero.encode(y="y:Q"), points), alt.layer(zero.encode(y="y:Q"), outcome)]
    chart = alt.hconcat(*panels, spacing=36).resolve_scale(color="independent", shape="independent")
    chart.config = style.vega_config()
    return chart


def _below() -> alt.Legend:
    return alt.Legend(orient="bottom", columns=4)


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
    return Results(runs, scores, selection["groups"], agreement(scores, plan.batch))


STUDY = Study(
    name="row_selection_smollm2",
    plan=Plan,
    check=lambda _: require_taught_model(),
    jobs=jobs,
    simulate=simulate,
    collect=collect,
    claims=lambda results, _: results.spearman,
    sections=sections,
    figures={"chosen": lambda results, _: figure(results.runs, results.scores)},
    documents={
        "chosen.json": lambda results, _: {
            "runs": results.runs,
            "groups": results.groups,
            "spearman": results.spearman,
        }
    },
)
