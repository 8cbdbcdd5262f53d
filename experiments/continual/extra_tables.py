"""Further tables: least harm, interference, ratios, orders and audit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.continual.analysis import Row
from experiments.continual.audit import Group
from experiments.continual.claims import Match, matches
from experiments.continual.plan import GIVEN, Plan
from experiments.harness import markdown
from experiments.harness.markdown import median_range, number

AUDITED = ("low", "moderate", "high")


def sections(
    rows: Sequence[Row], main: Sequence[Row], groups: Sequence[Group], plan: Plan
) -> list[str]:
    """Return all of them, with their headings."""
    swept = [row for row in rows if row.order == GIVEN and row.method in plan.swept]
    reordered = [row for row in rows if row.method in plan.reordered and row.value in _own(plan)]
    return [
        "## Least harm against moderate, at equal updates and equal task accuracy\n",
        "Every pair of ratios; equal: mean task accuracy differs by "
        f"{100 * plan.tolerance:g} points at most. By behavior: score kept by least harm − by "
        "moderate, mean over stages, mean over seeds [least, most]; met where the mean is not "
        "below 0. Only rows with equal accuracy answer the question.\n",
        markdown.table([_match(one) for one in sorted(matches(rows, plan), key=_first_equal)])
        + "\n",
        "## Interference\n",
        "What each stage changed, mean over seeds: scores of behaviors (refusal's is 1 − attack "
        "success), then accuracy of each task.\n",
        markdown.table([line for row in main for line in _interference(row)]) + "\n",
        "## Ratios\n",
        markdown.table([_ratio(row) for row in sorted(swept, key=_by_ratio)]) + "\n",
        "## Orders\n",
        "Attack success by stage, in the order of the tasks.\n",
        markdown.table([_order(row) for row in reordered]) + "\n",
        "## What the groups look like\n",
        "Fifths of a task's rows in the plain run, by the norm of each one's gradient in the "
        f"adapter; means over seeds and tasks at steps {', '.join(map(str, plan.audited))} of each "
        "stage. Own: in the task's format; familiar: what the aligned model answers so already; "
        "prose: in the pretrained model's format. Cosines are those of the group's descent "
        "direction with θ_pre − θ_aligned.\n",
        markdown.table(_audit(groups)) + "\n",
        "Rows that each method learned from:\n",
        markdown.table([_taken(row) for row in main]) + "\n",
    ]


def _own(plan: Plan) -> set[float]:
    return {plan.value(method) for method in plan.reordered}


def _by_ratio(row: Row) -> tuple[str, float]:
    return row.method, row.value


def _first_equal(one: Match) -> tuple[bool, tuple[float, float]]:
    return not one.equal, one.ratios


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
        changes = {
            name: float(values[at] - (values[at - 1] if at else row.start[name]))
            for name, values in kept.items()
        }
        lines.append(
            {
                "method": row.method if at == 0 else "",
                "stage": task,
                **{name: number(change, 2) for name, change in changes.items()},
                **{
                    name: number(change, 2)
                    for name, change in zip(row.tasks, row.interference[at], strict=True)
                },
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
