"""Conclusions and tables of the page of `--deep`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from experiments.continual_real.deep import DeepRun, Forecast
from experiments.continual_real.plan import GIVEN, Plan
from experiments.continual_real.simulate import FLOOR_SHARE, REFUSALS, simulate
from experiments.harness.markdown import NOTHING, number
from riprap.record import DEFAULT_FLOOR
from riprap.report import apply_style

REFUSAL, PLAIN = REFUSALS[0], "plain"
FEATURES, MARGINS, TOGETHER, NO_FALL = "features first", "margins first", "together", "no fall"


def halfway(values: Sequence[float], least: float) -> int | None:
    """Return the first place at which a series has fallen by half of its whole fall.

    Args:
        least: share of its first value by which it must fall; else None.
    """
    start = values[0]
    fall = start - min(values)
    if math.isnan(fall) or start <= 0 or fall < least * start:
        return None
    return next(at for at, value in enumerate(values) if start - value >= fall / 2)


def fallen(run: DeepRun, least: float) -> dict[str, int | None]:
    """Return the updates at which features, margins and score of refusal had fallen by half."""
    series = {
        "features": [moment.use.kept for moment in run.moments],
        "others": [moment.use.others for moment in run.moments],
        "overlap": [moment.use.overlap for moment in run.moments],
        "scores": [moment.scores[REFUSAL] for moment in run.moments],
        "margins": [moment.margins[REFUSAL] for moment in run.moments],
    }
    return {
        name: None if (at := halfway(values, least)) is None else run.moments[at].update
        for name, values in series.items()
    }


def order(run: DeepRun, plan: Plan) -> str:
    """Return which fell first, the activation of the latents of refusal or margins of refusal."""
    found = fallen(run, plan.deep.fall)
    features, margins = found["features"], found["margins"]
    if features is None or margins is None:
        return NO_FALL
    return FEATURES if features < margins else MARGINS if margins < features else TOGETHER


def broke(run: DeepRun, stage: int, behavior: str) -> int | None:
    """Return the step of a stage after which a score was first under its floor; None: none.

    The score is that of the unseen probes. If it begins the stage under the floor of behaviors, its
    floor is a share of what is left, as it is for the forecast.
    """
    first = sum(one.updates for one in run.stages[:stage])
    last = first + run.stages[stage].updates
    left = next(m.scores[behavior] for m in run.moments if m.update == first)
    floor = DEFAULT_FLOOR if left >= DEFAULT_FLOOR else FLOOR_SHARE * left
    own = [moment for moment in run.moments if first < moment.update <= last]
    return next((m.update - first for m in own if m.scores[behavior] < floor), None)


def forecasts(runs: Sequence[DeepRun]) -> list[tuple[bool, bool]]:
    """Return of each forecast whether it predicted a break, and whether one came.

    Preflight forecasts plain training on all rows, so only such runs count.
    """
    return [
        (told.probability > 0.5, broke(run, at, name) is not None)
        for run in runs
        if run.method == PLAIN
        for at, stage in enumerate(run.forecasts[: len(run.stages)])
        for name, told in stage.items()
        if not math.isnan(told.probability)
    ]


def claims(runs: Sequence[DeepRun], plan: Plan) -> dict[str, str]:
    """Return what fell first in each run, and how many forecasts were right."""
    whole = [run for run in runs if not run.failed]
    told = forecasts(whole)
    right = sum(predicted == came for predicted, came in told)
    breaks = sum(came for _, came in told)
    firsts = {f"{run.method}: what fell first": _falls(run, plan) for run in whole}
    return firsts | {
        "forecasts of preflight": f"{right} of {len(told)} right, with {breaks} breaks; always to "
        f"forecast a break would be right in {breaks}, always none in {len(told) - breaks}"
    }


def _falls(run: DeepRun, plan: Plan) -> str:
    own = {
        name: NO_FALL if update is None else f"update {update}"
        for name, update in fallen(run, plan.deep.fall).items()
    }
    return (
        f"{order(run, plan)} (latents of refusal: {own['features']}, as many others: "
        f"{own['others']}, margins: {own['margins']})"
    )


def sections(runs: list[DeepRun], plan: Plan) -> dict[str, Any]:
    """Return the tables and numbers of the page."""
    whole = [run for run in runs if not run.failed]
    return {
        "methods": ", ".join(plan.deep.methods),
        "base": runs[0].base,
        "seed": runs[0].seed,
        "same": [{"method": run.method, "training": same(run, plan)} for run in runs],
        "order": [_order(run, plan) for run in whole],
        "course": [row for run in whole for row in _course(run)],
        "latents": [_latents(run, plan) for run in whole],
        "carried": [row for run in whole for row in _carried(run)],
        "basins": [row for run in whole for row in _basins(run)],
        "answered": [row for run in whole for row in _answered(run)],
        "forecasts": [row for run in whole for row in _forecasts(run)],
        "right": claims(runs, plan)["forecasts of preflight"],
        "repairs": [_repair(run) for run in whole],
        "scores": [row for at, run in enumerate(whole) for row in _scores(run, first=not at)],
        "along": [row for at, run in enumerate(whole) for row in _along(run, first=not at)],
        "taken": [row for run in whole for row in _taken(run)],
        "costs": [_cost(run) for run in whole],
        "failed": [{"method": run.method, "why": run.failed} for run in runs if run.failed],
    }


def figure(runs: Sequence[DeepRun], _: Plan) -> Any:
    """Plot scores and latents after each update, a panel a run; rules are the ends of tasks."""
    return apply_style(alt.hconcat(*map(_panel, runs)))


def _panel(run: DeepRun) -> Any:
    rows = [
        {"update": moment.update, "series": series, "value": value}
        for moment in run.moments
        for series, value in (
            ("score of refusal", moment.scores[REFUSAL]),
            ("score of answering harmless requests", moment.scores[REFUSALS[1]]),
            ("activation of latents of refusal ÷ base", moment.use.kept),
            ("of as many other latents ÷ base", moment.use.others),
        )
    ]
    frame = pd.DataFrame(rows, columns=["update", "series", "value"])
    color = alt.Color("series:N", title=None, sort=None).legend(
        orient="bottom", columns=1, labelLimit=400
    )
    values = (
        alt.Chart(frame)
        .mark_line()
        .encode(
            x=alt.X("update:Q", title="update"),
            y=alt.Y("value:Q", title=None).scale(domain=[0, 1.05], clamp=True),
            color=color,
            strokeDash=alt.StrokeDash("series:N", title=None, sort=None).legend(None),
        )
    )
    ends = np.cumsum([stage.updates for stage in run.stages])
    tasks = alt.Chart(pd.DataFrame({"end": ends, "task": run.tasks[: len(ends)]})).encode(x="end:Q")
    rules = tasks.mark_rule(color="#bbb")
    names = tasks.mark_text(align="right", y=-6, fontSize=10, color="#666").encode(text="task:N")
    return alt.layer(rules, names, values).properties(width=330, height=240, title=run.method)


def same(run: DeepRun, plan: Plan) -> str:
    """Tell if a run is the one without these measures, by each step's loss and by verdicts."""
    job = (run.method, run.rate, GIVEN, run.base, run.seed, plan, Path())
    if not simulate.path(*job).exists():
        return "not compared: the run without these measures is not here"
    other = simulate(*job)
    losses = [[stage.losses for stage in one.stages] for one in (run, other)]
    if losses[0] != losses[1]:
        return "**other losses**"
    answered = [[look.answered for look in one.looks] for one in (run, other)]
    if answered[0] != answered[1]:
        return "**the same losses, but other verdicts**"
    return "the same losses, bit for bit, and the same verdicts on answers to harmful requests"


def _order(run: DeepRun, plan: Plan) -> dict[str, str]:
    found = fallen(run, plan.deep.fall)
    under = next((m.update for m in run.moments if m.scores[REFUSAL] < DEFAULT_FLOOR), None)
    return {
        "method": run.method,
        "activation of the latents of refusal": _step(found["features"]),
        "of as many others": _step(found["others"]),
        "overlap of active latents": _step(found["overlap"]),
        "mean margin": _step(found["margins"]),
        "score": _step(found["scores"]),
        f"score under {DEFAULT_FLOOR:.2f}": _step(under),
        "what fell first": order(run, plan),
    }


def _step(update: int | None) -> str:
    return NOTHING if update is None else str(update)


def _course(run: DeepRun) -> list[dict[str, str]]:
    """Return one line for the base and each update."""
    rows = []
    for moment in run.moments:
        use = moment.use
        row = {
            "method": "" if moment.update else run.method,
            "update": str(moment.update),
            "refusal": number(moment.scores[REFUSAL], 2),
            "margin": number(moment.margins[REFUSAL], 2),
            "over-refusal": number(moment.scores[REFUSALS[1]], 2),
            "latents of refusal": number(use.kept, 2),
            "others": number(use.others, 2),
            "overlap": number(use.overlap, 2),
            "explained": number(use.explained, 2),
            "L0": number(use.l0, 1),
        }
        rows.append(row)
    return rows


def _latents(run: DeepRun, plan: Plan) -> dict[str, str]:
    deep, row = plan.deep, {"method": run.method, "latents of refusal": str(len(run.latents))}
    for task, carried in zip(run.tasks, run.carried, strict=True):
        last = sum(stage.updates for stage in run.stages[: run.tasks.index(task) + 1])
        shares = next(m.use.shares for m in run.moments if m.update == last)
        died = [own < deep.lost * before for own, before in zip(shares, run.refused, strict=True)]
        moved = [cosine < deep.moved for cosine in carried.cosines]
        row[f"after {task}"] = f"{sum(died)} died, {sum(moved)} moved"
    ranked = sorted(
        zip(run.areas, run.latents, run.refused, run.harmless, shares, strict=True), reverse=True
    )
    title = "latent: area; share of refused and of harmless prompts, of refused ones at the end"
    row[title] = " · ".join(
        f"{latent}: {area:.2f}; {', '.join(f'{own:.2f}' for own in rest)}"
        for area, latent, *rest in ranked
    )
    return row


def _carried(run: DeepRun) -> list[dict[str, str]]:
    return [
        {
            "method": "" if at else run.method,
            "after": task,
            "explained by the base's": number(one.explained, 3),
            "by the carried one": number(one.updated, 3),
            "dead": f"{one.dead:.0%}",
            "directions": number(one.cosine, 3),
            "control": number(one.control, 3),
            "of refusal": number(one.refusal, 3),
            "control of refusal": number(one.refusal_control, 3),
        }
        for at, (task, one) in enumerate(zip(run.tasks, run.carried, strict=True))
    ]


def _basins(run: DeepRun) -> list[dict[str, str]]:
    rows = []
    for name, end in run.end.items():
        start = run.start[name]
        kept = end.visage / start.visage if start.visage else math.nan
        rows.append(
            {
                "method": run.method,
                "behavior": name,
                "VISAGE of the base": _interval(start.visage, start.low, start.high),
                "of the final model": _interval(end.visage, end.low, end.high),
                "kept": f"{kept:.0%}" if not math.isnan(kept) else NOTHING,
                "mean score, base": number(start.mean, 2),
                "mean score, final": number(end.mean, 2),
            }
        )
    return rows


def _interval(mean: float, low: float, high: float) -> str:
    return f"{number(mean, 2)} [{number(low, 2)}, {number(high, 2)}]"


def _answered(run: DeepRun) -> list[dict[str, str]]:
    return [
        {
            "method": run.method,
            "model": title,
            "behavior": name,
            "by margins": ", ".join(number(share, 2) for share in own.first),
            "by answers": ", ".join(number(share, 2) for share in own.judged),
        }
        for title, one in (("base", run.start), ("final", run.end))
        for name, own in one.items()
    ]


def _forecasts(run: DeepRun) -> list[dict[str, str]]:
    rows = []
    for at, (stage, told) in enumerate(zip(run.stages, run.forecasts, strict=True)):
        for name, one in told.items():
            alerts = [f"{step}: {level}" for step, own, level in stage.alerts if own == name]
            rows.append(
                {
                    "method": run.method,
                    "task": stage.task,
                    "behavior": name,
                    "floor": number(one.floor, 2),
                    "probability": number(one.probability, 2),
                    "preflight": one.text,
                    "came": _came(run, at, name, one),
                    "the monitor, by step": "; ".join(alerts) or NOTHING,
                }
            )
    return rows


def _came(run: DeepRun, at: int, name: str, told: Forecast) -> str:
    if math.isnan(told.floor):
        return NOTHING
    step = broke(run, at, name)
    return "no break" if step is None else f"broken at step {step}"


def _repair(run: DeepRun) -> dict[str, str]:
    one = run.repair
    return {
        "method": run.method,
        "verdict": one.verdict,
        "why": one.reason,
        "score of the base": number(one.before, 2),
        "of the final model": number(one.now, 2),
        "after the examples": number(one.repaired, 2),
        "steps": str(one.steps) if one.steps else NOTHING,
    }


def _scores(run: DeepRun, first: bool) -> list[dict[str, str]]:
    """Return a line after each task, and one of the base before those of the first run."""
    return [
        where | {name: number(100 * value, 0) for name, value in scores.items()}
        for where, scores in _lines(run, run.scores, first)
    ]


def _along(run: DeepRun, first: bool) -> list[dict[str, str]]:
    """Return what the looks show, as `_scores` does."""
    rows = []
    for where, look in _lines(run, run.looks, first):
        row = where | {
            "attack success": number(look.attack_success(), 2),
            "margin of refusal": number(look.margins[REFUSAL], 2),
            "loss of the tasks": number(look.loss, 2),
            "XSTest safe refused": number(look.over_refusal, 2),
        }
        rows.append(row | {task: number(look.choices[task][0], 2) for task in look.choices})
    return rows


def _lines(
    run: DeepRun, measures: Sequence[Any], first: bool
) -> Iterator[tuple[dict[str, str], Any]]:
    """Yield the first columns of each line, and its measure."""
    if first:
        yield {"method": "base", "after": NOTHING}, measures[0]
    for at, (task, measure) in enumerate(zip(run.tasks, measures[1:], strict=True)):
        yield {"method": "" if at else run.method, "after": task}, measure


def _taken(run: DeepRun) -> list[dict[str, str]]:
    """Return the losses of the rows that a selection took, and of those that it left."""
    rows = []
    for stage, losses in zip(run.stages, run.row_losses, strict=True):
        chosen = set(stage.chosen)
        if not chosen:
            continue
        taken = [loss for row, loss in losses.items() if row in chosen]
        left = [loss for row, loss in losses.items() if row not in chosen]
        row = {"method": run.method, "task": stage.task}
        for title, own in (("taken", taken), ("left", left)):
            low, middle, high = np.quantile(own, [0.25, 0.5, 0.75])
            row[title] = f"{number(middle, 2)} [{number(low, 2)}, {number(high, 2)}]"
            row[f"mean of the {title}"] = number(float(np.mean(own)), 2)
        rows.append(row)
    return rows


def _cost(run: DeepRun) -> dict[str, str]:
    """Return processor seconds; stages contain training, moments and preflight."""
    seconds = dict(run.seconds)
    inside = seconds.get("moments", 0) + seconds.get("preflight", 0)
    training = seconds.pop("stages", np.nan) - inside
    row = {"method": run.method, "training": number(training)}
    row |= {part: number(spent) for part, spent in seconds.items()}
    return (
        row
        | {"all": number(training + sum(seconds.values()))}
        | {"memory, MiB": number(run.memory)}
    )
