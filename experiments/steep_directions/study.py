"""Does a new task act on the directions to which a behavior is steepest?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import altair as alt
import numpy as np

from experiments.harness import markdown
from experiments.harness.charts import apply_style, inline_data
from experiments.harness.study import Session, Study
from experiments.steep_directions import analysis
from experiments.steep_directions.analysis import Run
from experiments.steep_directions.plan import Plan
from experiments.steep_directions.simulate import simulate
from experiments.worlds import ToyWorld


def steep_figure(runs: Sequence[Run], chance: float) -> alt.LayerChart:
    """Plot one point a behavior and run; on the diagonal its own directions are not special."""
    rows = [
        {
            "own": float(np.exp(np.log(run.column("steep")).mean())),
            "unrelated": float(np.exp(np.log(run.column("pairs")).mean())),
            "condition": run.condition,
            "behavior": run.behavior,
        }
        for run in runs
        if run.near.any()
    ]
    highest = max(float(str(row[side])) for row in rows for side in ("own", "unrelated"))
    ends = [chance / 2, highest * 1.5]
    scale = alt.Scale(type="log", domain=ends)
    x = alt.X("unrelated:Q", title="alignment with random differences of logits", scale=scale)
    y = alt.Y("own:Q", title="alignment with the behavior's margins", scale=scale)
    points = alt.Chart(inline_data(rows)).mark_point(size=60, filled=True, opacity=0.8)
    encoded = points.encode(
        x=x,
        y=y,
        color=alt.Color("condition:N", title="new task"),
        shape=alt.Shape("behavior:N", title="behavior"),
    )
    line = alt.Chart(inline_data([{"unrelated": end, "own": end} for end in ends]))
    level = alt.Chart(inline_data([{"own": chance}])).mark_rule(strokeDash=[4, 3])
    chart = alt.layer(line.mark_line(color="#999").encode(x=x, y=y), level.encode(y=y), encoded)
    title = "Steep alignment where whole cosines are near 0 (dashed: chance)"
    return apply_style(chart.properties(width=420, height=340, title=title))


@dataclass(frozen=True)
class Results:
    """All behaviors of all runs, and the alignment of a random direction by chance."""

    runs: list[Run]
    chance: float


def collect(measured: list[dict[str, np.ndarray]], session: Session[Plan]) -> Results:
    """Return the runs, behavior by behavior."""
    plan = session.plan
    pairs = plan.runs(session.exploratory)
    runs = [
        run
        for pair, arrays in zip(pairs, measured, strict=True)
        for run in analysis.behavior_runs(*pair, arrays, plan)
    ]
    return Results(runs, plan.k / sum(p.numel() for p in ToyWorld().untrained(0).parameters()))


def sections(results: Results, plan: Plan) -> list[str]:
    """Return the paragraphs and tables of the page."""
    runs, chance = results.runs, results.chance
    by_task = [
        _row(condition, [run for run in runs if run.condition == condition], chance)
        for condition in plan.conditions
    ]
    names = list(dict.fromkeys(run.behavior for run in runs))
    by_behavior = [
        _row(
            f"{condition}, {name}",
            [run for run in runs if (run.condition, run.behavior) == (condition, name)],
            chance,
        )
        for condition in plan.conditions
        for name in names
    ]
    claims = analysis.claims(runs, plan, chance)
    return [
        f"The claim: where the whole cosines cos(g, g_b) and cos(−g, h_b) are both within "
        f"{plan.near_zero:g} of 0, the task gradient g still lies in the behavior's "
        f"{plan.k} steep directions clearly more, {plan.clearly:g} times, than chance "
        f"({chance:.2g}).\n",
        "\n".join(f"- {claim}: **{conclusion}**" for claim, conclusion in claims.items()) + "\n",
        f"{markdown.table(by_task)}\n",
        "Ratios of ‖U_kᵀ g‖² / ‖g‖², geometric means over the measurements near 0, with 95 % "
        f"t-intervals over {len({run.seed for run in runs})} seeds; a run is {plan.steps} steps, "
        f"measured every {plan.every}. U_k are steep directions at the start: of the behavior's "
        "margins, of margins of random *targets* on its probes, of *pairs* of random logits on "
        "its probes, and of pairs on random *inputs*. `random` are random directions: chance as "
        "measured. A verdict needs the lower end of every new task; `null` goes on with the old "
        "mix and is a control. The preregistration's detector is not used.\n",
        f"![steep](steep.png)\n\n## By behavior\n\n{markdown.table(by_behavior)}\n",
    ]


def _row(name: str, runs: Sequence[Run], chance: float) -> dict[str, str]:
    near = sum(int(run.near.sum()) for run in runs)
    over: dict[str, str | float] = {
        "of chance": chance,
        "of targets": "targets",
        "of pairs": "pairs",
        "of inputs": "inputs",
    }
    ratios = {title: _interval(analysis.interval(runs, other)) for title, other in over.items()}
    random = np.concatenate([run.column("random") for run in runs]) / chance
    return {
        "new task": name,
        "near 0": markdown.count_of_total(near, sum(len(run.near) for run in runs)),
        **ratios,
        "random of chance": markdown.number(random.mean(), 2) if len(random) else markdown.NOTHING,
    }


def _interval(estimate: tuple[float, float, float]) -> str:
    value, low, high = (f"{one:.3g}" for one in estimate)
    return f"{value} [{low}, {high}]"


STUDY = Study(
    name="steep_directions",
    title="Steep alignment, {kind} seeds",
    plan=Plan,
    jobs=lambda s: [(*pair, s.preregistration) for pair in s.plan.runs(s.exploratory)],
    simulate=simulate,
    collect=collect,
    claims=lambda results, plan: analysis.claims(results.runs, plan, results.chance),
    sections=sections,
    figures={"steep": lambda results, _: steep_figure(results.runs, results.chance)},
)
