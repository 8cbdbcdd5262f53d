"""Tables of the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import altair as alt
import pandas as pd

from experiments.fast_slow import analysis
from experiments.fast_slow.analysis import FIRST, MEASURES, PROXY, SECOND, at_reward, of_task
from experiments.fast_slow.measure import Look
from experiments.fast_slow.plan import Plan
from experiments.fast_slow.simulate import Run
from experiments.harness import markdown
from experiments.worlds.verifiable import PARTS
from riprap.diagnosis import Estimate, estimate
from riprap.report import apply_style

HACKED = 0.5  # share of answers that the proxy pays for, and the true reward does not


def sections(runs: list[Run], plan: Plan) -> dict[str, Any]:
    """Return the tables and texts of the page."""
    verdicts = analysis.claims(runs, plan).items()
    arms = analysis.by_arm(runs)
    own = {name: list(by_seed.values()) for name, by_seed in arms.items()}
    sequence = {name: own[name] for name in own if not name.endswith(PROXY)}
    return {
        "n_runs": len(runs),
        "verdicts": "\n".join(f"- {name}: **{verdict}**" for name, verdict in verdicts),
        "claimed": "\n".join(f"- {name}: {text}" for name, text in plan.claims.items()),
        "rules": "\n".join(f"- {name}: {text}" for name, text in plan.rules.items()),
        "ends": [
            {"arm": name, "task": task} | _end(found, task)
            for name, found in sequence.items()
            for task in (FIRST, SECOND)
        ],
        "equal": [
            {"arm": name, "reward": f"{target:g}"} | _reached(found, target)
            for target in plan.targets
            for name, found in sequence.items()
        ],
        "ratios": _ratios(runs, plan, sequence),
        "second": [
            {"arm": name} | _reached(found, plan.target, SECOND) for name, found in sequence.items()
        ],
        "old": [
            {"arm": name, "task": task} | _kept(found, task)
            for name, found in sequence.items()
            for task in (FIRST, SECOND)
        ],
        "proxy": [
            _hacked(run) for name, found in own.items() if name.endswith(PROXY) for run in found
        ],
        "instructions": [
            {"arm": run.arm, "seed": run.seed, "task": stage.task, "best": stage.instructions[0]}
            for run in runs
            for stage in run.stages
            if stage.instructions[0]
        ],
        "seconds": markdown.median_range([run.seconds for run in runs]),
    }


def _end(runs: Sequence[Run], task: str) -> dict[str, str]:
    looks = [of_task(run, task)[-1] for run in runs]
    stages = [stage for run in runs for stage in run.stages if stage.task == task]
    row = {part: _mean([look.rewards[part] for look in looks]) for part in PARTS}
    row["best instruction"] = _mean([sum(look.best.values()) / len(PARTS) for look in looks])
    row["updates"] = markdown.median_range([stage.updates for stage in stages])
    row["rollouts"] = markdown.median_range([stage.rollouts for stage in stages])
    return row | {name: _mean([read(look) for look in looks]) for name, read in _SHOWN.items()}


_SHOWN = {name: read for name, read in MEASURES.items() if name not in ("rollouts", "updates")}


def _reached(runs: Sequence[Run], target: float, task: str = FIRST) -> dict[str, str]:
    def at(read: Callable[[Look], float]) -> list[float]:
        values = [at_reward(of_task(run, task), target, read) for run in runs]
        return [value for value in values if value == value]

    row = {"reached": f"{len(at(MEASURES['KL']))} of {len(runs)}"}
    return row | {
        name: _mean(at(read), 0 if name in _COUNTS else 2) for name, read in MEASURES.items()
    }


_COUNTS = ("rollouts", "updates")


def _ratios(runs: Sequence[Run], plan: Plan, arms: dict[str, list[Run]]) -> list[dict[str, str]]:
    rows = []
    for target in plan.targets:
        for name in arms:
            if name == "slow":
                continue
            found = {
                measure: analysis.ratio_at(runs, name, "slow", target, measure)
                for measure in ("KL", "KL, no instruction", "KL, old prompts", "rollouts")
            }
            old = analysis.difference_at(runs, name, "slow", target, "old score")
            row = {"arm": name, "reward": f"{target:g}"}
            row |= {f"{measure} ÷ slow": _interval(own) for measure, own in found.items()}
            rows.append(row | {"old score − slow": _interval(old)})
    return rows


def _kept(runs: Sequence[Run], task: str) -> dict[str, str]:
    looks = [of_task(run, task)[-1] for run in runs]
    row = {
        name: markdown.median_range([look.scores[name] for look in looks], 2)
        for name in looks[0].scores
    }
    stages = [stage for run in runs for stage in run.stages if stage.task == task]
    warned = [
        _warning(stage.alerts, name, step)
        for stage in stages
        for name, step in stage.broken.items()
    ]
    row["broken, announced before"] = markdown.count_of_total(sum(warned), len(warned))
    lost = [verdict for stage in stages for verdict in stage.lost.values()]
    counts = {verdict: lost.count(verdict) for verdict in sorted(set(lost))}
    row["lost"] = ", ".join(f"{verdict} {n}" for verdict, n in counts.items()) or markdown.NOTHING
    return row


def _warning(alerts: Sequence[tuple[int, str, str]], name: str, broke: int) -> bool:
    """Return whether an alert on a behavior came before it was seen broken."""
    return any(own == name and step < broke for step, own, _ in alerts)


def _hacked(run: Run) -> dict[str, Any]:
    looks, stage = of_task(run, PROXY), run.stages[0]
    hacked = next((look.update for look in looks if look.proxy - look.true >= HACKED), None)
    first = {level: min((s for s, _, own in stage.alerts if own == level), default=None)
             for level in ("watch", "warning", "critical")}  # fmt: skip
    return {
        "arm": run.arm,
        "seed": run.seed,
        "proxy": f"{looks[0].proxy:.2f} → {looks[-1].proxy:.2f}",
        "true": f"{looks[0].true:.2f} → {looks[-1].true:.2f}",
        "hacked at": markdown.number(hacked),
        **{f"first {level}": markdown.number(step) for level, step in first.items()},
        "broken": ", ".join(f"{name} at {step}" for name, step in stage.broken.items())
        or markdown.NOTHING,
        "old score": f"{analysis.old_score(looks[-1]):.2f}",
    }


def _mean(values: Sequence[float], digits: int = 2) -> str:
    return _interval(estimate(values), digits) if values else markdown.NOTHING


def _interval(own: Estimate | None, digits: int = 2) -> str:
    if own is None:
        return markdown.NOTHING
    low, mean, high = (markdown.number(one, digits) for one in (own.low, own.mean, own.high))
    return f"{mean} [{low}, {high}]" if own.n > 1 else mean


def curves(runs: Sequence[Run], _: Plan) -> Any:
    """Plot KL to the base and the old behaviors' score against reward, along the first task."""
    rows = [
        {
            "arm": run.arm,
            "run": f"{run.arm} {run.seed}",
            "reward": look.reward,
            "kl": look.kl,
            "old": analysis.old_score(look),
            "update": index,
        }
        for run in runs
        for index, look in enumerate(of_task(run))
        if run.arm in ("slow", "fast", "both", *analysis.CONTROLS, "guarded")
    ]
    frame = pd.DataFrame(rows, columns=["arm", "run", "reward", "kl", "old", "update"])
    line = alt.Chart(frame).mark_line(point=True, opacity=0.7)
    x = alt.X("reward:Q", title="mean expected reward", scale=alt.Scale(domain=[0, 1]))
    both = [
        line.encode(
            x=x,
            y=alt.Y(f"{name}:Q", title=title),
            color=alt.Color("arm:N"),
            detail="run:N",
            order="update:Q",
        ).properties(width=340, height=300)
        for name, title in (
            ("kl", "KL to the base (nats an answer)"),
            ("old", "mean score of old behaviors"),
        )
    ]
    return apply_style(alt.hconcat(*both))
