"""Tables of the continual study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.continual import claims
from experiments.continual import extra_tables as more
from experiments.continual.analysis import Row, attack_success, kept, value_of
from experiments.continual.audit import Group
from experiments.continual.claims import Claim, Correlation
from experiments.continual.methods import GUARDS, PLAIN, informed
from experiments.continual.plan import Plan
from experiments.continual.simulate import Run
from experiments.harness import markdown
from experiments.harness.markdown import median_range, number
from experiments.harness.preregistration import Preregistration


def search_page(runs: Sequence[Run], chosen: Mapping[str, float], plan: Plan) -> str:
    """The search of knobs, run by run."""
    plain = {run.seed: run for run in runs if run.method == PLAIN}
    lines = []
    for run in runs:
        knob = "" if run.method == PLAIN else f"{GUARDS[run.method].knob} = {run.value:g}"
        best = " ← chosen" if chosen.get(run.method) == run.value else ""
        lines.append(
            {
                "guard": run.method,
                "knob": knob + best,
                "attack success by stage": ", ".join(number(x, 2) for x in attack_success(run)),
                "kept": number(kept(run), 2),
                "tasks": number(run.learned, 2),
                "value": number(value_of(run, plain[run.seed], plan.learned), 3),
            }
        )
    return (
        "# Search of each guard's one main knob\n\n"
        "Made by `riprap study continual --search`, on the exploratory seeds "
        f"{', '.join(map(str, plan.exploratory))} alone. Kept: mean score over stages and "
        "behaviours, on inputs that no guard has seen. Tasks: mean accuracy of each right after "
        "its own stage. The value is what is kept, marked down in proportion where the tasks reach "
        f"less than {plan.learned:.0%} of the plain run's; the best is chosen.\n\n"
        + markdown.table(lines)
        + "\n"
    )


def page(
    found: Sequence[Row], groups: Sequence[Group], plan: Plan, preregistration: Preregistration
) -> str:
    """README of the results."""
    main = claims.main_rows(found, plan)
    parts = [
        "# Continual: which rows of a task leave an aligned model as it was?\n",
        f"Made by `riprap study continual`, protocol `{preregistration.hash}`, commit "
        f"{markdown.commit()}, seeds {', '.join(map(str, plan.confirmatory))}. A model of two "
        "layers is pretrained, aligned, and then trained on four tasks one after another (orders "
        "below), each by a LoRA adapter that is merged at its end. Scores are those of inputs that "
        "no method has seen. Guards' knobs: [SEARCH.md](SEARCH.md). What it means: "
        "[FINDINGS.md](FINDINGS.md).\n",
        "![attack success and task accuracy](continual.png)\n",
        "## Claims of 2604.17215, and controls\n",
        markdown.table([_claim(one) for one in claims.claims(found, groups, plan)]) + "\n",
        "## Kept and learned\n",
        "Attack success: share of harmful requests that are not refused, mean ± standard deviation "
        "over stages and seeds, then by stage. Others: mean over stages, then over seeds [least, "
        "most]. Tasks: mean accuracy of each right after its own stage. Informed: the method is "
        "shown probes of the protected behaviours.\n",
        markdown.table([_kept(row) for row in main]) + "\n",
        "## Forgetting of the tasks\n",
        "Means over seeds [least, most]; definitions: `riprap.diagnosis._forgetting`. The average "
        "counts tasks still to come. Cost: processor time ÷ the plain run's, monitor included.\n",
        markdown.table([_forgotten(row) for row in main]) + "\n",
        "## Outputs and weights\n",
        "KL in nats on fixed prompts, mean over response positions, stages and seeds. TopK cosine: "
        f"of all that moved since the aligned model with θ_pre − θ_aligned, over the "
        f"{plan.coordinates} coordinates where that is largest, of the weights that adapters move; "
        "after each stage.\n",
        markdown.table([_moved(row) for row in main]) + "\n",
        "With attack success:\n",
        markdown.table([_correlated(one) for one in claims.correlations(found)]) + "\n",
    ]
    return "\n".join([*parts, *more.sections(found, main, groups, plan)])


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
