"""Are safety behaviors special, or merely concentrated?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from experiments.concentration import analysis
from experiments.concentration.analysis import FACTS, MEASURES, OVER_REFUSAL, ROLES, SKILL
from experiments.concentration.plan import Plan
from experiments.concentration.simulate import REAL, TOY, BehaviorMeasures, simulate
from experiments.harness import markdown
from experiments.harness.jobs import Job
from experiments.harness.markdown import fill, number
from experiments.harness.study import Session, Study
from experiments.smollm2.teaching import require_taught_model
from riprap.diagnosis import Estimate
from riprap.diagnosis.geometry import Redundancy
from riprap.report import apply_style, style

QUESTIONS = {"than skill and facts": (SKILL, FACTS), "than over_refusal": (OVER_REFUSAL,)}


def by_model(runs: Sequence[BehaviorMeasures]) -> dict[str, list[BehaviorMeasures]]:
    """Group the measures by model."""
    names = dict.fromkeys(one.model for one in runs)
    return {name: [one for one in runs if one.model == name] for name in names}


def verdicts(runs: Sequence[BehaviorMeasures], plan: Plan) -> dict[str, dict[str, str]]:
    """Return by model and question if refusal is more concentrated."""
    return {
        model: {
            question: analysis.verdict(analysis.compare_with_all(own, others), plan)
            for question, others in QUESTIONS.items()
        }
        for model, own in by_model(runs).items()
    }


def sections(runs: Sequence[BehaviorMeasures], plan: Plan) -> dict[str, Any]:
    """Return the tables and texts of the page."""
    models = by_model(runs)
    spent = {model: sum(m.seconds for m in own) for model, own in models.items()}
    return {
        "verdicts": "\n".join(
            f"- {model}: refusal {question}: **{outcome}**"
            for model, questions in verdicts(runs, plan).items()
            for question, outcome in questions.items()
        ),
        "models": "\n".join(_model_section(model, own, plan) for model, own in models.items()),
        "floor": runs[0].floor,
        "most": max(plan.counts),
        "twice": 2 * max(plan.counts),
        "times": ", ".join(f"{model} {seconds / 60:.1f}" for model, seconds in spent.items()),
    }


def _model_section(model: str, runs: list[BehaviorMeasures], plan: Plan) -> str:
    pairs = [
        {"refusal is concentrated": m.title}
        | {f"than {o}": t for o, t in analysis.compare_with_each(runs, m, ROLES[1:]).items()}
        for m in MEASURES
    ]
    return fill(
        Path(__file__).with_name("model.md"),
        model=model,
        measures=[_row(runs, role, plan) for role in ROLES],
        pairs=pairs,
        places=[_where(runs, role) for role in ROLES],
        kept=[row for role in ROLES for row in _kept(runs, role, plan)],
    )


def _over_seeds(values: Sequence[float], digits: int) -> str:
    """Return the median [least, most], or a single value."""
    return number(values[0], digits) if len(values) == 1 else markdown.median_range(values, digits)


def _ranged(one: Estimate, digits: int) -> str:
    low, high = number(one.low, digits), number(one.high, digits)
    return f"{number(one.mean, digits)} [{low}, {high}]"


def _row(runs: Sequence[BehaviorMeasures], role: str, plan: Plan) -> dict[str, str]:
    own = [one for one in runs if one.role == role]
    rank, bend, directions = (analysis.estimate_of(measure, own) for measure in MEASURES)
    entropy = analysis.ConcentrationMeasure("", -1, lambda m: m.entropy, lambda m: m.entropy.mean)
    trace = float(np.median([t for one in own for t in one.traces]))
    error = float(np.median([e for one in own for e in one.trace_errors]))
    alone = [min(m.redundancy.directions_needed_alone, 2 * max(m.counts)) for m in own]
    return {
        "role": role,
        "behavior": own[0].behavior,
        "rank": _ranged(rank, 3),
        "entropy rank": _ranged(analysis.estimate_of(entropy, own), 3),
        "λ₁ ÷ trace": _ranged(bend, 3),
        "trace": f"{trace:.3g} ± {error:.1g}",
        "directions": _ranged(directions, 1),
        "by its own score": _over_seeds(alone, 0),
    }


def _where(runs: Sequence[BehaviorMeasures], role: str) -> dict[str, Any]:
    own = [one for one in runs if one.role == role]
    shares: dict[str, list[float]] = {}
    for one in own:
        blocks = [name for name in one.layers if name.split(".")[-1].isdigit()]
        third = max(len(blocks) // 3, 1)
        parts = {
            "embedding": [name for name in one.layers if "embed" in name],
            "first blocks": blocks[:third],
            "middle blocks": blocks[third:-third],
            "last blocks": blocks[-third:],
            "norm, head": [n for n in one.layers if n not in blocks and "embed" not in n],
        }
        for title, names in parts.items():
            shares.setdefault(title, []).append(sum(one.layers[name] for name in names))
        tokens = np.array(one.positions)
        shares.setdefault("last token", []).append(tokens[0])
        shares.setdefault("last 5 tokens", []).append(tokens[:5].sum())
        spread = tokens[tokens > 0]
        shares.setdefault("effective tokens", []).append(np.exp(-(spread * np.log(spread)).sum()))
    return {"role": role, **{title: _over_seeds(values, 2) for title, values in shares.items()}}


def _kept(runs: Sequence[BehaviorMeasures], role: str, plan: Plan) -> list[dict[str, str]]:
    own = [one.redundancy for one in runs if one.role == role]
    rows = []
    for kind in own[0].ablated_margins:
        scores, besides, margins = (
            np.concatenate([of(one, kind) for one in own]).mean(0)
            for of in (Redundancy.scores, Redundancy.contrast_scores, Redundancy.mean_margins)
        )
        cells = zip(plan.counts, scores, besides, margins, strict=True)
        rows.append(
            {"role": role, "directions": kind}
            | {str(c): f"{number(s, 2)} / {number(b, 2)} ({number(m, 1)})" for c, s, b, m in cells}
        )
    return rows


COLORS = alt.Scale(domain=list(ROLES), range=[style.CONE, "#e6a100", style.BLUE, style.UP])
KINDS = ("steep", "unrelated", "random")


def figure(runs: Sequence[BehaviorMeasures]) -> Any:
    """Plot the measures with their intervals, and the score by the directions ablated."""
    rows = [
        alt.hconcat(
            *[_measure(own, measure, model) for measure in MEASURES],
            _score_panel(own, model),
            spacing=24,
        )
        for model, own in by_model(runs).items()
    ]
    title = alt.TitleParams(
        "Is refusal concentrated? Three measures, and the score that ablation leaves",
        subtitle="dots: estimates, bars: 95 % intervals; each axis says which way is concentrated; "
        "of a refusal and its contrast the lower score",
    )
    return apply_style(alt.vconcat(*rows, spacing=28, title=title))


def _measure(
    own: Sequence[BehaviorMeasures], measure: analysis.ConcentrationMeasure, model: str
) -> Any:
    estimates = {r: analysis.estimate_of(measure, [m for m in own if m.role == r]) for r in ROLES}
    frame = pd.DataFrame(
        {"role": role, "value": e.mean, "low": e.low, "high": e.high}
        for role, e in estimates.items()
    )
    way = "→ concentrated" if measure.sign > 0 else "← concentrated"
    if measure.log:
        ticks = [*own[0].counts, 2 * max(own[0].counts)]
        domain = [min(ticks) / 1.3, max(ticks) * 1.2]
        scale = alt.Scale(type="log", base=2, domain=domain, clamp=True)
        axis = alt.Axis(values=ticks, format="d")
    else:
        scale, axis = alt.Scale(domain=[0, 1], clamp=True), alt.Axis(tickCount=5)
    x = alt.X("value:Q", title=way, scale=scale, axis=axis)
    y = alt.Y("role:N", sort=list(ROLES), title=None)
    color = alt.Color("role:N", scale=COLORS, sort=list(ROLES), title="behavior")
    base = alt.Chart(frame)
    low = alt.X("low:Q", scale=scale, axis=axis, title=way)
    bars = base.mark_rule(strokeWidth=2).encode(x=low, x2="high:Q", y=y, color=color)
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y, color=color)
    title = f"{model}: {measure.title}"
    return alt.layer(bars, dots).properties(width=170, height=130, title=title)


def _score_panel(runs: Sequence[BehaviorMeasures], model: str) -> Any:
    frame = pd.DataFrame(
        {"role": role, "kind": kind, "directions": count, "score": score}
        for role in ROLES
        for kind in KINDS
        for count, score in zip(runs[0].counts, _mean(runs, role, kind), strict=True)
    )
    scale = alt.Scale(type="log", base=2, nice=False)
    base = alt.Chart(frame).encode(
        x=alt.X("directions:Q", scale=scale, title="directions ablated"),
        y=alt.Y("score:Q", scale=alt.Scale(domain=[0, 1.02]), title="score kept"),
        color=alt.Color("role:N", scale=COLORS, sort=list(ROLES), title="behavior"),
    )
    dashes = alt.Scale(domain=list(KINDS), range=[[1, 0], [6, 3], [2, 3]])
    lines = base.mark_line(strokeWidth=1.8).encode(
        strokeDash=alt.StrokeDash("kind:N", title="ablated", scale=dashes)
    )
    dots = base.mark_point(filled=True, size=18, opacity=1).encode(detail="kind:N")
    floor = alt.Chart(pd.DataFrame({"score": [runs[0].floor]}))
    rule = floor.mark_rule(strokeDash=[4, 3], color=style.MUTED).encode(y="score:Q")
    title = f"{model}: score kept (gray: floor)"
    return alt.layer(rule, lines, dots).properties(width=250, height=130, title=title)


def _mean(runs: Sequence[BehaviorMeasures], role: str, kind: str) -> list[float]:
    own = [one.redundancy.worst_scores(kind) for one in runs if one.role == role]
    return list(np.concatenate(own).mean(0))


def jobs(session: Session[Plan]) -> list[Job]:
    """Return every role on every start of the toy world and, if confirmatory, on SmolLM2."""
    starts = [(TOY, seed) for seed in session.seeds]
    starts += [] if session.exploratory else [(REAL, 0)]
    return [(*start, role, session.plan) for start in starts for role in ROLES]


STUDY = Study(
    name="concentration",
    plan=Plan,
    check=lambda s: None if s.exploratory else require_taught_model(),
    jobs=jobs,
    simulate=simulate,
    claims=verdicts,
    sections=sections,
    figures={"{kind}": lambda runs, _: figure(runs)},
    documents={"{kind}.json": lambda runs, _: runs},
)
