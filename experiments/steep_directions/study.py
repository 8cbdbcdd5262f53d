"""Does a new task act on the directions to which a behavior is steepest?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
from scipy.stats import t

from experiments.harness import markdown
from experiments.harness.study import Session, Study
from experiments.steep_directions.plan import Plan
from experiments.steep_directions.simulate import COLUMNS, UNRELATED, simulate
from experiments.worlds import ToyWorld
from riprap.report import apply_style, inline_data

CONTROL = "null"


@dataclass(frozen=True)
class Run:
    """One behavior in one run.

    Attributes:
        rows: shape (measurements, columns), as `simulate.COLUMNS` names them.
        near: mask of the measurements with both whole cosines near 0, shape (measurements,).
    """

    condition: str
    seed: int
    behavior: str
    rows: np.ndarray
    near: np.ndarray

    def column(self, name: str) -> np.ndarray:
        """Return one column where the cosines are near 0."""
        return self.rows[self.near, COLUMNS.index(name)]

    def ratio(self, over: str | float) -> float:
        """Return the mean log ratio of the steep alignment to a column or number; NaN if empty."""
        other = over if isinstance(over, float) else self.column(over)
        values = np.log(self.column("steep") / other)
        return float(values.mean()) if len(values) else float("nan")


def behavior_runs(
    condition: str, seed: int, arrays: Mapping[str, np.ndarray], plan: Plan
) -> list[Run]:
    """Return the behaviors of one run, from what `simulate` returned."""
    runs = []
    for name, rows in arrays.items():
        cosines = rows[:, [COLUMNS.index("cosine_loss"), COLUMNS.index("cosine_margin")]]
        near = (np.abs(cosines) < plan.near_zero).all(1)
        runs.append(Run(condition, seed, name, rows, near))
    return runs


def interval(runs: Sequence[Run], over: str | float) -> tuple[float, float, float]:
    """Return the geometric mean of the ratio and its 95 % t-interval over seeds.

    A seed's value is the mean over its behaviors, each the mean log over its measurements.
    """
    seeds = sorted({run.seed for run in runs})
    values = [np.nanmean([run.ratio(over) for run in runs if run.seed == seed]) for seed in seeds]
    known = np.array([value for value in values if np.isfinite(value)])
    if len(known) < 2:
        return float(np.exp(known.mean())) if len(known) else float("nan"), 0.0, float("inf")
    half = t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / len(known) ** 0.5
    middle = known.mean()
    return float(np.exp(middle)), float(np.exp(middle - half)), float(np.exp(middle + half))


def claims(runs: Sequence[Run], plan: Plan, chance: float) -> dict[str, str]:
    """Return the conclusion on the claim, and on its comparison with unrelated margins."""
    tasks = [condition for condition in plan.conditions if condition != CONTROL]
    own = {task: [run for run in runs if run.condition == task] for task in tasks}
    above = [task for task in tasks if interval(own[task], chance)[1] > plan.clearly]
    kinds = ("targets", "pairs")
    specific = [task for task in tasks if all(interval(own[task], k)[1] > 1 for k in kinds)]
    supported = {
        "clearly above chance where the whole cosines are near 0": above,
        "more than the alignment with margins that say nothing of the behavior": specific,
    }
    return {claim: _conclusion(where, tasks) for claim, where in supported.items()}


def _conclusion(supported: Sequence[str], tasks: Sequence[str]) -> str:
    if len(supported) == len(tasks):
        return "supported"
    return f"supported in {', '.join(supported)} alone" if supported else "not supported"


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
        for run in behavior_runs(*pair, arrays, plan)
    ]
    return Results(runs, plan.k / sum(p.numel() for p in ToyWorld().untrained(0).parameters()))


def sections(results: Results, plan: Plan) -> dict[str, Any]:
    """Return the tables and texts of the page."""
    runs, chance = results.runs, results.chance
    conclusions = claims(runs, plan, chance)
    names = list(dict.fromkeys(run.behavior for run in runs))
    return {
        "chance": chance,
        "n_seeds": len({run.seed for run in runs}),
        "claims": "\n".join(f"- {claim}: **{text}**" for claim, text in conclusions.items()),
        "by_task": [
            _row(condition, [run for run in runs if run.condition == condition], chance)
            for condition in plan.conditions
        ],
        "by_behavior": [
            _row(f"{c}, {n}", [r for r in runs if (r.condition, r.behavior) == (c, n)], chance)
            for c in plan.conditions
            for n in names
        ],
    }


def _row(name: str, runs: Sequence[Run], chance: float) -> dict[str, str]:
    near = sum(int(run.near.sum()) for run in runs)
    over: dict[str, str | float] = {"of chance": chance}
    over |= {f"of {kind}": kind for kind in UNRELATED}
    ratios = {title: _interval(interval(runs, other)) for title, other in over.items()}
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
    plan=Plan,
    jobs=lambda s: [(*pair, s.preregistration) for pair in s.plan.runs(s.exploratory)],
    simulate=simulate,
    collect=collect,
    claims=lambda results, plan: claims(results.runs, plan, results.chance),
    sections=sections,
    figures={"steep": lambda results, _: steep_figure(results.runs, results.chance)},
)
