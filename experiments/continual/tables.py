"""Tables of the continual experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.continual import claims, extra_tables
from experiments.continual.analysis import Row, attack_success, choose, kept, objective
from experiments.continual.audit import Group
from experiments.continual.claims import Claim, Correlation
from experiments.continual.methods import GUARDS, PLAIN, informed
from experiments.continual.plan import Plan
from experiments.continual.simulate import Run
from experiments.harness import markdown
from experiments.harness.markdown import median_range, number


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
        *extra_tables.sections(rows, main, groups, plan),
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
