"""Which guard protects the refusals of SmolLM2, and at which cost?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from experiments.guards_smollm2.plan import Plan
from experiments.guards_smollm2.simulate import PLAIN, Run, simulate
from experiments.harness.jobs import Job
from experiments.harness.markdown import median_range, number
from experiments.harness.study import Session, Study
from experiments.smollm2.teaching import require_taught_model
from riprap.report import style

AUTO_GUARD = "auto_guard"


def lost(run: Run, plain: Run, behavior: str, of: str = "margins") -> float:
    """Return the loss of a mean margin as a share of the unguarded run's; negative for a gain.

    Args:
        of: `margins`, or `judged` for the share of right answers.
    """

    def fall(one: Run) -> float:
        values: dict[int, float] = getattr(one, of)[behavior]
        return values[0] - values[max(values)]

    return fall(run) / fall(plain)


def worse(run: Run, plain: Run) -> float:
    """Return the excess of the task loss over the unguarded run's, as a share of that."""
    return run.task / plain.task - 1


def verdicts(runs: Sequence[Run], plan: Plan) -> dict[str, dict[str, float | bool]]:
    """Tell by seed if AutoGuard lost little enough, of margin and answers, and learned enough."""
    plain = {run.seed: run for run in runs if run.guard == PLAIN}
    found = {}
    for run in runs:
        if run.guard == AUTO_GUARD:
            shares = [lost(run, plain[run.seed], plan.eroding, of) for of in ("margins", "judged")]
            excess = worse(run, plain[run.seed])
            found[str(run.seed)] = {
                "lost": shares[0],
                "lost_answers": shares[1],
                "worse": excess,
                "passed": max(shares) <= plan.lost and excess <= plan.worse,
            }
    return found


def sections(runs: Sequence[Run], plan: Plan) -> dict[str, Any]:
    """Return the tables and texts of the page."""
    lines = [
        f"- AutoGuard, seed {seed}: {one['lost']:.0%} of the unguarded loss of {plan.eroding}'s "
        f"margin and {one['lost_answers']:.0%} of that of its right answers (at most "
        f"{plan.lost:.0%}), task loss {one['worse']:+.1%} (at most {plan.worse:+.0%}): "
        f"{'met' if one['passed'] else '**missed**'}."
        for seed, one in verdicts(runs, plan).items()
    ]
    return {"guards": _rows(runs, plan), "verdicts": "\n".join(lines)}


def _rows(runs: Sequence[Run], plan: Plan) -> list[dict[str, str]]:
    plain = {run.seed: run for run in runs if run.guard == PLAIN}
    lines = []
    for name in dict.fromkeys(run.guard for run in runs):
        own = [run for run in runs if run.guard == name]
        ends = {b: [run.scores[b][plan.steps] for run in own] for b in own[0].scores}
        margins = [run.margins[plan.eroding][plan.steps] for run in own]
        losses = [lost(run, plain[run.seed], plan.eroding) for run in own]
        lines.append(
            {"guard": name}
            | {f"score {b}": median_range(scores, 2) for b, scores in ends.items()}
            | {
                f"judged {b}": median_range([r.judged[b][plan.steps] for r in own], 2)
                for b in own[0].judged
            }
            | {
                f"margin {plan.eroding}": median_range(margins, 2),
                "share of the loss": median_range(losses, 2),
                "task loss": median_range([run.task for run in own], 3),
                "above plain": median_range([100 * worse(r, plain[r.seed]) for r in own], 1) + " %",
                "time": median_range([r.seconds / plain[r.seed].seconds for r in own], 2),
                "acted": f"{number(100 * sum(r.acted for r in own) / len(own))} %",
            }
        )
    return lines


def figure(runs: Sequence[Run], plan: Plan) -> alt.HConcatChart:
    """Plot the margins of refusal and over-refusal over steps, on unseen probes."""
    frame = pd.DataFrame(
        {"guard": run.guard, "seed": run.seed, "step": step, "margin": margin, "behavior": name}
        for run in runs
        for name in (plan.eroding, "over_refusal")
        for step, margin in run.margins[name].items()
    )
    panels = [
        alt.layer(
            alt.Chart(pd.DataFrame({"margin": [0.0]}))
            .mark_rule(strokeDash=[4, 3], color=style.MUTED)
            .encode(y="margin:Q"),
            alt.Chart(frame[frame.behavior == name])
            .mark_line(strokeWidth=1.6, opacity=0.85, point=True)
            .encode(
                x=alt.X("step:Q", title="step"),
                y=alt.Y("margin:Q", title="mean margin (logits)"),
                color=alt.Color("guard:N", scale=alt.Scale(scheme="tableau10")),
                detail="seed:N",
            ),
        ).properties(title=f"{name}, on unseen probes", width=330, height=260)
        for name in (plan.eroding, "over_refusal")
    ]
    return alt.hconcat(*panels)


def jobs(session: Session[Plan]) -> list[Job]:
    """List the runs, first those of which the aims are."""
    plan, seeds = session.plan, session.seeds
    names = plan.tried if session.exploratory else plan.guards
    runs = [(name, seed) for seed in seeds for name in (PLAIN, AUTO_GUARD)]
    runs += [(name, seed) for seed in seeds for name in names if name != AUTO_GUARD]
    return [(name, plan.knobs.get(name, 0.0), seed, plan) for name, seed in runs]


STUDY = Study(
    name="guards_smollm2",
    plan=Plan,
    check=lambda _: require_taught_model(),
    jobs=jobs,
    simulate=simulate,
    claims=verdicts,
    sections=sections,
    figures={"{kind}": figure},
    documents={"{kind}.json": lambda runs, _: runs},
)
