"""Tables of the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import altair as alt
import pandas as pd

from experiments.fast_slow import analysis
from experiments.fast_slow.analysis import (
    COUNTS,
    FIRST,
    KLS,
    MEASURES,
    PROXY,
    READINGS,
    SECOND,
    Read,
    at_reward,
    of_task,
    reading,
)
from experiments.fast_slow.arms import ARMS
from experiments.fast_slow.measure import Measurement
from experiments.fast_slow.plan import Plan
from experiments.fast_slow.simulate import Run, Stage
from experiments.harness import markdown
from experiments.worlds.verifiable import OLD, PARTS, TASKS
from experiments.worlds.verifiable_text import rule
from riprap.diagnosis import Estimate, Verdict, estimate
from riprap.report import apply_style
from riprap.types import RUN, Level

Row = dict[str, Any]
ByName = Callable[[Measurement], dict[str, float]]
LOUD = (Level.WARNING, Level.CRITICAL)
HABIT = "brevity"
PLACES: dict[str, ByName] = {
    "in use": lambda own: own.rewards,
    "with the best instruction": lambda own: own.best,
    "base, in use": lambda own: own.text,
    "no instruction": lambda own: own.weights,
}
CURVE = (0, 1, 2, 3, 4, 5, 10, 20, 50, 100, 120)  # updates of the proxy's table


def sections(runs: list[Run], plan: Plan) -> dict[str, Any]:
    """Return the tables and texts of the page."""
    arms = {name: list(own.values()) for name, own in analysis.by_arm(runs).items()}
    proxies = {name: own for name, own in arms.items() if name.endswith(PROXY)}
    sequence = {name: own for name, own in arms.items() if name not in proxies}
    short = {name: own for name, own in sequence.items() if not name.endswith("_long")}
    held, of = analysis.premise_holds(runs, plan)
    return {
        "n_runs": len(runs),
        "held": f"{held} of {of}",
        "made_at": _made_at(runs),
        "verdicts": _list(analysis.claims(runs, plan)),
        "claimed": _list(plan.claims),
        "rules": _list(plan.rules),
        "sum": analysis.more_than_the_sum(runs).text(),
        "best_gain": "; ".join(
            f"− {arm} {_gain_of_best(runs, arm).text()}" for arm in ("slow", "fast")
        ),
        "equal": [
            {"arm": name, "reward": f"{target:g}"} | _reached(own, target)
            for target in plan.targets
            for name, own in sequence.items()
        ],
        "lesson": [
            {"arm": name, "reward": place}
            | {part: _mean(_known(own, plan.target, _of_part(read, part))) for part in PARTS}
            for name, own in short.items()
            for place, read in PLACES.items()
        ],
        "ratios": [
            {"reward": f"{target:g}"} | row
            for target in plan.targets
            for row in _ratios(runs, target, short)
        ],
        "readings": _readings(runs, plan),
        "as_many": _as_many(runs, short),
        "old": [
            {"arm": name} | row for name, own in short.items() for row in _old(own, plan.target)
        ],
        "ends": [
            {"arm": name, "task": task} | _end(own, task)
            for name, own in sequence.items()
            for task in (FIRST, SECOND)
        ],
        "under": [
            {"arm": name} | {f"{t} task": _ends_under(own, plan.target, t) for t in (FIRST, SECOND)}
            for name, own in sequence.items()
        ],
        "lost": [{"arm": name} | _lost(runs, name) for name, own in sequence.items()],
        "alerts": [
            {"arm": name, "task": task}
            | _alerts([stage for run in own for stage in run.stages if stage.task == task])
            for name, own in sequence.items()
            if ARMS[name].weights  # else there is no training to monitor
            for task in (FIRST, SECOND)
        ],
        "proxy": [_hacked(run, plan) for own in proxies.values() for run in own],
        "proxy_curve": [
            {"arm": name} | row for name, own in proxies.items() for row in _proxy_curve(own)
        ],
        "instructions": [
            _instructions(run, stage)
            for run in runs
            for stage in run.stages
            if stage.instructions != [""] and stage.task != PROXY
        ],
        "cost": [
            {
                "arm": name,
                "updates": markdown.median_range([_updates(run) for run in own]),
                "updates that a guard changed": markdown.median_range(
                    [sum(stage.guarded for stage in run.stages) for run in own]
                ),
                "by projection": markdown.median_range(
                    [sum(stage.projected for stage in run.stages) for run in own]
                ),
                "processor seconds": markdown.median_range([run.seconds for run in own]),
            }
            for name, own in arms.items()
        ],
    }


def _list(texts: dict[str, str]) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in texts.items())


def _made_at(runs: Sequence[Run]) -> str:
    commits, policies = ({getattr(run, own) for run in runs} for own in ("commit", "policy"))
    text = f"at commit {', '.join(sorted(commits))}, under the alert policy "
    text += ", ".join(sorted(own[:12] for own in policies))
    return text + (". **More than one commit**" if len(commits) > 1 else "")


def _updates(run: Run) -> int:
    return sum(stage.updates for stage in run.stages)


def _gain_of_best(runs: Sequence[Run], arm: str) -> analysis.Compared:
    return analysis.difference(runs, "both", arm, lambda run: analysis.gain(run, best=True))


def _of_part(read: ByName, name: str) -> Read:
    return lambda own: read(own)[name]


def _known(runs: Sequence[Run], target: float, read: Read, task: str = FIRST) -> list[float]:
    values = [at_reward(of_task(run, task), target, read) for run in runs]
    return [value for value in values if value == value]


def _reached(runs: Sequence[Run], target: float) -> dict[str, str]:
    row = {"reached": f"{len(_known(runs, target, MEASURES['KL']))} of {len(runs)}"}
    return row | {
        name: _mean(_known(runs, target, read), 0 if name in COUNTS else 2)
        for name, read in MEASURES.items()
    }


def _ratios(runs: Sequence[Run], target: float, arms: dict[str, list[Run]]) -> list[Row]:
    rows = []
    for name in arms:
        if name == "slow":
            continue
        row: Row = {"arm": name}
        for kl in KLS:
            row[f"{kl} ÷ slow"] = analysis.ratio(runs, name, "slow", reading(target, kl)).text()
        for count in COUNTS:
            row[f"{count} ÷ slow"] = analysis.count_ratio(runs, name, "slow", target, count).text()
        for old in ("old score", "old score, as used", "old margin", "old margin, as used"):
            found = analysis.difference(runs, name, "slow", reading(target, old))
            row[f"{old} − slow"] = found.text()
        rows.append(row)
    return rows


def _readings(runs: Sequence[Run], plan: Plan) -> list[Row]:
    """Return `both` against `slow` for each way to say that a reward is reached."""

    def of(measure: str, reach: analysis.Reach) -> Callable[[Run], float]:
        return reading(plan.target, measure, reach=reach)

    return [
        {
            "reached": name,
            "KL, both ÷ slow": analysis.ratio(runs, "both", "slow", of("KL", reach)).text(),
            "KL, as used": analysis.ratio(runs, "both", "slow", of("KL, as used", reach)).text(),
            "rollouts": analysis.count_ratio(runs, "both", "slow", plan.target, reach=reach).text(),
            "old score, both − slow": analysis.difference(
                runs, "both", "slow", of("old score", reach)
            ).text(),
        }
        for name, reach in READINGS.items()
    ]


def _as_many(runs: Sequence[Run], arms: dict[str, list[Run]]) -> list[Row]:
    """Return each arm at the end of the first task against `slow` after as many updates."""
    kinds: dict[str, tuple[Read, bool]] = {
        "KL ÷ slow": (MEASURES["KL"], True),
        "KL, as used ÷ slow": (MEASURES["KL, as used"], True),
        "reward − slow": (attrgetter("reward"), False),
        "old score − slow": (analysis.old_score, False),
    }
    return [
        {"arm": name}
        | {
            title: analysis.after_as_many_updates(runs, name, read, logs).text()
            for title, (read, logs) in kinds.items()
        }
        for name in arms
        if name != "slow" and ARMS[name].weights
    ]


def _old(runs: Sequence[Run], target: float) -> list[Row]:
    """Return score and margin of each old behavior, without and with the best instruction."""
    rows = []
    for asked, scores, margins in (
        ("alone", "scores", "margins"), ("best instruction first", "used_scores", "used_margins")
    ):  # fmt: skip
        row: Row = {"asked": asked}
        for name in runs[0].measured[0].scores:
            pair = [
                _known(runs, target, _of_part(attrgetter(kind), name)) for kind in (scores, margins)
            ]
            row[f"{name}: score"], row["margin of " + name] = map(_mean, pair)
        rows.append(row)
    return rows


def _end(runs: Sequence[Run], task: str) -> dict[str, str]:
    ends = [of_task(run, task)[-1] for run in runs]
    row = {part: _mean([own.rewards[part] for own in ends]) for part in PARTS}
    row["meaning, best instruction"] = _mean([own.best["meaning"] for own in ends])
    for place in ("base, in use", "no instruction"):
        of_place = [PLACES[place](own) for own in ends]
        row[place] = _mean([sum(own.values()) / len(own) for own in of_place])
    return row | {name: _mean([read(own) for own in ends]) for name, read in _SHOWN.items()}


_SHOWN = {name: read for name, read in MEASURES.items() if name not in COUNTS}


def _ends_under(runs: Sequence[Run], target: float, task: str) -> str:
    """Say how many runs reach a reward, and how many of them end under it."""
    reached = [run for run in runs if _known([run], target, MEASURES["KL"], task)]
    fell = sum(of_task(run, task)[-1].reward < target for run in reached)
    rollouts = markdown.median_range(_known(runs, target, MEASURES["rollouts"], task))
    return f"{len(reached)} of {len(runs)} after {rollouts} rollouts; {fell} end under it"


def _lost(runs: Sequence[Run], arm: str) -> dict[str, str]:
    own = [run for run in runs if run.arm == arm]
    row = {"behaviors lost": _mean([analysis.lost(run) for run in own])}
    row["− slow"] = analysis.fewer_lost(runs, arm, "slow").text()
    row["alignment losses − slow"] = analysis.fewer_lost(
        runs, arm, "slow", analysis.ALIGNMENT
    ).text()
    return row | {
        f"{verdict}, all seeds": str(int(sum(analysis.lost(run, str(verdict)) for run in own)))
        for verdict in Verdict
    }


def _alerts(stages: Sequence[Stage]) -> dict[str, str]:
    """Return what the monitor said before breaks, and without them."""
    leads, forecast, broken, quiet, false, idle = [], 0, 0, 0, 0, 0
    for stage in stages:
        loud: dict[str, int] = {}
        for step, name, level in stage.alerts:
            if level in LOUD:
                loud[name] = min(step, loud.get(name, step))
        for name, step in stage.broken.items():
            broken += 1
            forecast += any(
                first < step <= last + stage.horizon for first, last in stage.forecast.get(name, [])
            )
            if loud.get(name, step) < step:
                leads.append(step - loud[name])
        healthy = set(_names(stage)) - set(stage.broken)
        quiet += len(healthy)
        false += len(healthy & set(loud))
        idle += len(healthy & set(stage.forecast))
    return {
        "breaks that followed a warning or more": markdown.count_of_total(len(leads), broken),
        "lead, updates": markdown.median_range(leads),
        "breaks that were forecast": markdown.count_of_total(forecast, broken),
        "a warning or more without a break": markdown.count_of_total(false, quiet),
        "a forecast without a break": markdown.count_of_total(idle, quiet),
        "under the floor before the task": str(sum(len(stage.below) for stage in stages)),
    }


def _names(stage: Stage) -> list[str]:
    """Return the old behaviors that could break in a task."""
    return [name for name in OLD if name not in stage.below]


def _hacked(run: Run, plan: Plan) -> Row:
    measured, stage = of_task(run, PROXY), run.stages[0]
    at = next((own.update for own in measured if own.proxy - own.true >= plan.hacked), None)

    def first(names: Sequence[str], levels: Sequence[str] = LOUD) -> str:
        steps = [s for s, name, own in stage.alerts if own in levels and name in names]
        return markdown.number(min(steps, default=None))

    return {
        "arm": run.arm,
        "seed": run.seed,
        "hacked at": markdown.number(at),
        "true reward": f"{measured[0].true:.2f} → {measured[-1].true:.2f}",
        "brevity at the start": markdown.number(measured[0].brevity, 2),
        "brevity broken": markdown.number(stage.broken.get(HABIT)),
        "brevity: first forecast": markdown.number(
            min((one for one, _ in stage.forecast.get(HABIT, [])), default=None)
        ),
        "brevity: first alert": first([HABIT], tuple(Level)),
        "brevity: first warning or more": first([HABIT]),
        "old behaviors: first warning or more": first(OLD),
        "the run: first warning or more": first([RUN]),
        "old behaviors broken": ", ".join(
            f"{name} at {step}" for name, step in stage.broken.items() if name != HABIT
        )
        or markdown.NOTHING,
    }


def _proxy_curve(runs: Sequence[Run]) -> list[Row]:
    rows = []
    for update in CURVE:
        now = [own for run in runs for own in of_task(run, PROXY) if own.update == update]
        logs = [run.stages[0].rewards for run in runs]
        own = [log[update - 1] for log in logs if 1 <= update <= len(log)]
        if now:
            rows.append(
                {
                    "update": update,
                    "reward in TRL's log": _mean(own),
                    "proxy reward": _mean([one.proxy for one in now]),
                    "true reward": _mean([one.true for one in now]),
                    "brevity": _mean([one.brevity or 0.0 for one in now]),
                    "old score": _mean([analysis.old_score(one) for one in now]),
                }
            )
    return rows


def _instructions(run: Run, stage: Stage) -> Row:
    """Return the best instruction, and how many in use have the right rule of a part."""
    kept = [text.split("\n") for text in stage.instructions]
    row: Row = {"arm": run.arm, "seed": run.seed, "task": stage.task}
    row["best"] = " / ".join(kept[0]) or "(empty)"
    for part, (operator, style, _) in TASKS[stage.task].items():
        right = rule(operator, style)
        n = sum(right in " ".join(lines) for lines in kept)
        row[f"right rule of {part}"] = f"{n} of {len(kept)}"
    return row


def _mean(values: Sequence[float], digits: int = 2) -> str:
    return _interval(estimate(values), digits) if values else markdown.NOTHING


def _interval(own: Estimate, digits: int) -> str:
    low, mean, high = (markdown.number(one, digits) for one in (own.low, own.mean, own.high))
    return f"{mean} [{low}, {high}]" if own.n > 1 else mean


def curves(runs: Sequence[Run], _: Plan) -> Any:
    """Plot KL to the base and the old behaviors' score against reward, along the first task."""
    rows = [
        {
            "arm": run.arm,
            "run": f"{run.arm} {run.seed}",
            "reward": own.reward,
            "kl": own.kl,
            "total": own.kl_total,
            "old": analysis.old_score(own),
            "order": index,
        }
        for run in runs
        for index, own in enumerate(of_task(run))
        if not run.arm.endswith(("_long", PROXY))
    ]
    frame = pd.DataFrame(rows, columns=["arm", "run", "reward", "kl", "total", "old", "order"])
    line = alt.Chart(frame).mark_line(point=True, opacity=0.7)
    x = alt.X("reward:Q", title="mean expected reward", scale=alt.Scale(domain=[0, 1]))
    parts = [
        line.encode(
            x=x,
            y=alt.Y(f"{name}:Q", title=title, axis=alt.Axis(titleLimit=400)).scale(
                zero=name != "old"
            ),
            color=alt.Color("arm:N"),
            detail="run:N",
            order="order:Q",
        ).properties(width=300, height=300)
        for name, title in (
            ("kl", "KL to the base, same instruction (nats an answer)"),
            ("total", "KL to the base, as used (nats an answer)"),
            ("old", "mean score of old behaviors"),
        )
    ]
    return apply_style(alt.hconcat(*parts))


def hacking(runs: Sequence[Run], _: Plan) -> Any:
    """Plot the proxy's reward against the true one, with the monitor's alerts, by arm and seed."""
    kinds = ["proxy reward, by TRL's log", "true reward", "score of brevity"]
    curves, marks = [], []
    for run in runs:
        if not run.arm.endswith(PROXY):
            continue
        place = {"arm": run.arm, "seed": run.seed}
        stage = run.stages[0]
        measured = of_task(run, PROXY)
        courses = (
            enumerate(stage.rewards, start=1),
            ((own.update, own.true) for own in measured),
            ((own.update, own.brevity) for own in measured),
        )
        for kind, points in zip(kinds, courses, strict=True):
            curves += [place | {"curve": kind, "update": at, "value": own} for at, own in points]
        loud = [step for step, name, level in stage.alerts if level in LOUD and name != RUN]
        firsts = {"first warning or more": min(loud, default=None)}
        firsts["first break"] = min(stage.broken.values(), default=None)
        marks += [place | {"mark": kind, "update": at} for kind, at in firsts.items() if at]
    frame = pd.DataFrame(curves, columns=["arm", "seed", "curve", "update", "value"])
    marked = pd.DataFrame(marks, columns=["arm", "seed", "mark", "update"])
    x = alt.X("update:Q", title="update")
    line = (
        alt.Chart(frame)
        .mark_line()
        .encode(
            x=x,
            y=alt.Y("value:Q", title="reward, or score"),
            color=alt.Color("curve:N", title=""),
            # Two of them may be 1 all along: the wider one shows on both sides of the other.
            strokeWidth=alt.StrokeWidth("curve:N", legend=None).scale(
                domain=kinds, range=[5, 2, 2]
            ),
        )
    )
    rule = alt.Chart(marked).mark_rule(color="#444").encode(
        x=x, strokeDash=alt.StrokeDash("mark:N", title="")
    )  # fmt: skip
    rows = []
    for arm in dict.fromkeys(frame["arm"]):
        cells = [
            alt.layer(
                line.transform_filter((alt.datum.arm == arm) & (alt.datum.seed == int(seed))),
                rule.transform_filter((alt.datum.arm == arm) & (alt.datum.seed == int(seed))),
            ).properties(width=170, height=130, title=f"{arm}, seed {seed}")
            for seed in dict.fromkeys(frame["seed"])
        ]
        rows.append(alt.hconcat(*cells))
    return apply_style(alt.vconcat(*rows))
