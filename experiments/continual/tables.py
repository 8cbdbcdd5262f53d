"""Tables of the continual experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.continual import claims
from experiments.continual.analysis import Row, attack_success, choose, kept, objective
from experiments.continual.claims import Claim, Correlation, Match, matches
from experiments.continual.measure import Group
from experiments.continual.methods import GUARDS, PLAIN, informed
from experiments.continual.plan import GIVEN, Plan
from experiments.continual.simulate import Run
from experiments.harness import markdown
from experiments.harness.markdown import median_range, number

AUDITED = ("low", "moderate", "high")


def extra_sections(
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


@dataclass(frozen=True)
class Results:
    """All runs, their rows by method, and the audit of the plain runs."""

    runs: list[Run]
    rows: list[Row]
    groups: list[Group]


def search_note(plan: Plan) -> str:
    """Explain the search, in the head of its page."""
    return (
        "Kept: mean score over stages and behaviors, on inputs that no guard has seen. Tasks: mean "
        "accuracy of each right after its own stage. The value is what is kept, marked down in "
        f"proportion where the tasks reach less than {plan.learned:.0%} of the plain run's; the "
        "best is chosen. "
    )


def search_sections(runs: Sequence[Run], plan: Plan) -> list[str]:
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
    return [markdown.table(lines) + "\n"]


def note(_plan: Plan) -> str:
    """Explain the experiment, in the head of the page."""
    return (
        "A model of two layers is pretrained, aligned, and then trained on four tasks one after "
        "another (orders below), each by a LoRA adapter that is merged at its end. Scores are "
        "those of inputs that no method has seen. Guards' knobs: [SEARCH.md](SEARCH.md). "
    )


def sections(results: Results, plan: Plan) -> list[str]:
    """Return the paragraphs and tables of the page."""
    rows, groups = results.rows, results.groups
    main = claims.main_rows(rows, plan)
    return [
        "![attack success and task accuracy](continual.png)\n",
        "## Claims of 2604.17215, and controls\n",
        markdown.table([_claim(one) for one in claims.claims(rows, groups, plan)]) + "\n",
        "## Kept and learned\n",
        "Attack success: share of harmful requests that are not refused, mean ± standard deviation "
        "over stages and seeds, then by stage. Others: mean over stages, then over seeds [least, "
        "most]. Tasks: mean accuracy of each right after its own stage. Informed: the method is "
        "shown probes of the protected behaviors.\n",
        markdown.table([_kept(row) for row in main]) + "\n",
        "## Forgetting of the tasks\n",
        "Means over seeds [least, most]; definitions: `riprap.diagnosis.forgetting`. The average "
        "counts tasks still to come. Cost: processor time ÷ the plain run's, monitor included.\n",
        markdown.table([_forgotten(row) for row in main]) + "\n",
        "## Outputs and weights\n",
        "KL in nats on fixed prompts, mean over response positions, stages and seeds. TopK cosine: "
        f"of all that moved since the aligned model with θ_pre − θ_aligned, over the "
        f"{plan.coordinates} coordinates where that is largest, of the weights that adapters move; "
        "after each stage.\n",
        markdown.table([_moved(row) for row in main]) + "\n",
        "With attack success:\n",
        markdown.table([_correlated(one) for one in claims.correlations(rows)]) + "\n",
        *extra_sections(rows, main, groups, plan),
    ]


def _claim(one: Claim) -> dict[str, str]:
    verdict = "met" if one.met else "**missed**"
    return {"claim": one.claim, "of": one.source, "measured": one.measured, "verdict": verdict}


def _kept(row: Row) -> dict[str, str]:
    deviation = f"{number(row.success.mean(), 2)} ± {number(row.success.std(), 2)}"
    return {
        "method": row.method,
        "informed": "yes" if informed(row.method) else "",
        "attack success": deviation,
        "by stage": ", ".join(number(x, 2) for x in row.success.mean(0)),
        **{
            name: median_range(row.scores[name].mean(1), 2, "mean")
            for name in ("truth", "facts", "format")
        },
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
