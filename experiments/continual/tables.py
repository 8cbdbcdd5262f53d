"""Tables of the continual experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.continual import claims
from experiments.continual.analysis import Row, attack_success, choose, kept, objective
from experiments.continual.claims import Claim, Correlation, Match, matches
from experiments.continual.measure import Group
from experiments.continual.methods import GUARDS, PLAIN, informed
from experiments.continual.plan import GIVEN, Plan
from experiments.continual.simulate import Run
from experiments.harness.markdown import median_range, number

AUDITED = ("low", "moderate", "high")


def _match(one: Match) -> dict[str, str]:
    words = {
        name: f"{median_range(values, 3, 'mean')} {'met' if one.met(name) else '**missed**'}"
        for name, values in one.differences.items()
    }
    return {
        "ratios (least harm, moderate)": ", ".join(f"{ratio:g}" for ratio in one.ratios),
        "task accuracy": f"{number(100 * one.accuracy, 1)} points",
        "equal": "yes" if one.equal else "no",
        **words,
    }


def _interference(row: Row) -> list[dict[str, str]]:
    """Return one line a stage."""
    lines = []
    kept = {name: values.mean(0) for name, values in row.scores.items()}
    for at, task in enumerate(row.tasks):
        changes = {n: own[at] - (own[at - 1] if at else row.start[n]) for n, own in kept.items()}
        changes |= dict(zip(row.tasks, row.interference[at], strict=True))
        lines.append(
            {
                "method": row.method if at == 0 else "",
                "stage": task,
                **{name: number(change, 2) for name, change in changes.items()},
                "sum over tasks": number(row.interference[at].sum(), 2),
            }
        )
    return lines


def _ratio(row: Row) -> dict[str, str]:
    return {
        "method": row.method,
        "ratio": f"{row.value:g}",
        "attack success": median_range(row.success.mean(1), 2, "mean"),
        **{name: median_range(row.scores[name].mean(1), 2, "mean") for name in _others(row)},
        "tasks": median_range(row.learned, 2, "mean"),
        "cost": median_range(row.cost, 2, "mean"),
    }


def _order(row: Row) -> dict[str, str]:
    return {
        "method": row.method,
        "order": ", ".join(row.tasks),
        "attack success": median_range(row.success.mean(1), 2, "mean"),
        "by stage": ", ".join(number(x, 2) for x in row.success.mean(0)),
        **{name: median_range(row.scores[name].mean(1), 2, "mean") for name in _others(row)},
        "tasks": median_range(row.learned, 2, "mean"),
        "BWT": median_range([one.backward_transfer for one in row.forgetting], 2, "mean"),
    }


def _others(row: Row) -> list[str]:
    return [name for name in row.scores if name != "refusal"]


def _audit(groups: Sequence[Group]) -> list[dict[str, str]]:
    """Return one line a step of a stage and a group, then one over all steps."""
    steps = sorted({one.step for one in groups})
    lines = []
    for step in [*steps, None]:
        for name in AUDITED:
            own = [g for g in groups if g.group == name and step in (None, g.step)]
            if not own:
                continue
            lines.append(
                {
                    "step": "all" if step is None else str(step),
                    "gradient": name,
                    **{
                        category: f"{np.mean([g.categories[category] for g in own]):.0%}"
                        for category in own[0].categories
                    },
                    "response tokens": number(np.mean([g.tokens for g in own]), 1),
                    "loss": number(np.mean([g.loss for g in own]), 2),
                    "norm": number(np.mean([g.norm for g in own]), 2),
                    "TopK cosine": number(np.mean([g.topk for g in own]), 3),
                    "cosine": number(np.mean([g.whole for g in own]), 3),
                }
            )
    return lines


def _taken(row: Row) -> dict[str, str]:
    return {
        "method": row.method,
        **{name: f"{share:.0%}" for name, share in row.taken.items()},
        "response tokens": number(row.tokens, 1),
    }


@dataclass(frozen=True)
class Results:
    """All runs, their rows by method, and the audit of the plain runs."""

    runs: list[Run]
    rows: list[Row]
    groups: list[Group]


def search_sections(runs: Sequence[Run], plan: Plan) -> dict[str, Any]:
    """Return the table of the search, run by run."""
    plain = {run.seed: run for run in runs if run.method == PLAIN}
    best = choose(runs, plan.learned)
    lines = []
    for run in runs:
        knob = "" if run.method == PLAIN else f"{GUARDS[run.method].knob} = {run.value:g}"
        lines.append(
            {
                "guard": run.method,
                "knob": knob + (" ← chosen" if best.get(run.method) == run.value else ""),
                "attack success by stage": ", ".join(number(x, 2) for x in attack_success(run)),
                "kept": number(kept(run), 2),
                "tasks": number(run.learned, 2),
                "value": number(objective(run, plain[run.seed], plan.learned), 3),
            }
        )
    return {"runs": lines}


def sections(results: Results, plan: Plan) -> dict[str, Any]:
    """Return the tables and numbers of the page."""
    rows, groups = results.rows, results.groups
    main = claims.main_rows(rows, plan)
    swept = [row for row in rows if row.order == GIVEN and row.method in plan.swept]
    own_values = {plan.value(method) for method in plan.reordered}
    reordered = [r for r in rows if r.method in plan.reordered and r.value in own_values]
    pairs = sorted(matches(rows, plan), key=lambda one: (not one.equal, one.ratios))
    return {
        "claims": [_claim(one) for one in claims.claims(rows, groups, plan)],
        "kept": [_kept(row) for row in main],
        "forgotten": [_forgotten(row) for row in main],
        "moved": [_moved(row) for row in main],
        "correlations": [_correlated(one) for one in claims.correlations(rows)],
        "tolerance": 100 * plan.tolerance,
        "matches": [_match(one) for one in pairs],
        "interference": [line for row in main for line in _interference(row)],
        "ratios": [_ratio(row) for row in sorted(swept, key=lambda r: (r.method, r.value))],
        "orders": [_order(row) for row in reordered],
        "audited": ", ".join(map(str, plan.audited)),
        "audit": _audit(groups),
        "taken": [_taken(row) for row in main],
    }


def _claim(one: Claim) -> dict[str, str]:
    verdict = "met" if one.met else "**missed**"
    return {"claim": one.claim, "of": one.source, "measured": one.measured, "verdict": verdict}


def _kept(row: Row) -> dict[str, str]:
    return {
        "method": row.method,
        "informed": "yes" if informed(row.method) else "",
        "attack success": f"{number(row.success.mean(), 2)} ± {number(row.success.std(), 2)}",
        "by stage": ", ".join(number(x, 2) for x in row.success.mean(0)),
        **{name: median_range(row.scores[name].mean(1), 2, "mean") for name in _others(row)},
        "tasks": median_range(row.learned, 2, "mean"),
    }


def _forgotten(row: Row) -> dict[str, str]:
    own = row.forgetting
    return {
        "method": row.method,
        "tasks after each stage": ", ".join(number(x, 2) for x in row.accuracy.mean((0, 2))),
        "average": median_range([one.average for one in own], 2, "mean"),
        "BWT": median_range([one.backward_transfer for one in own], 2, "mean"),
        "FM": median_range([one.forgetting for one in own], 2, "mean"),
        "max drop": median_range([one.max_drop for one in own], 2, "mean"),
        "updates": number(row.updates),
        "rows": number(row.rows),
        "cost": median_range(row.cost, 2, "mean"),
    }


def _moved(row: Row) -> dict[str, str]:
    return {
        "method": row.method,
        "KL(pretrained ‖ now)": median_range(row.outputs["from pretrained"], 2, "mean"),
        "KL(now ‖ pretrained)": median_range(row.outputs["to pretrained"], 2, "mean"),
        "KL(aligned ‖ now)": median_range(row.outputs["from aligned"], 2, "mean"),
        "KL(now ‖ aligned)": median_range(row.outputs["to aligned"], 2, "mean"),
        "TopK cosine by stage": ", ".join(number(x, 3) for x in row.topk.mean(0)),
    }


def _correlated(one: Correlation) -> dict[str, str]:
    return {
        "over": one.over,
        "n": str(one.n),
        "Pearson": number(one.pearson, 2),
        "p": f"{one.pearson_p:.2g}",
        "Spearman": number(one.spearman, 2),
        "p ": f"{one.spearman_p:.2g}",
    }
