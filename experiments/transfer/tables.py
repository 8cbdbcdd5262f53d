"""Tables of the transfer study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.harness import markdown
from experiments.harness.markdown import median_range, number
from experiments.harness.preregistration import Preregistration
from experiments.transfer import hypervolume
from experiments.transfer.analysis import Row, Transfer, value_of
from experiments.transfer.methods import BENCH
from experiments.transfer.pareto_front import Point, chosen, passed
from experiments.transfer.plan import PLAIN, Plan
from experiments.transfer.simulate import Run
from riprap.guards import Guard


def search_page(runs: Sequence[Run], chosen: Mapping[str, float], plan: Plan) -> str:
    """The search of knobs, run by run."""
    plain = {(run.task, run.seed): run for run in runs if run.guard == PLAIN}
    lines = []
    for run in runs:
        knob = "" if run.guard == PLAIN else f"{BENCH[run.guard].knob} = {run.value:g}"
        best = " ← chosen" if chosen.get(run.guard) == run.value else ""
        own = value_of(run, plain[run.task, run.seed], plan.learned)
        lines.append(
            {
                "guard": run.guard,
                "knob": knob + best,
                "task": run.task,
                "worst score": number(min(run.scores.values()), 2),
                "new task": number(run.learned, 2),
                "value": number(own, 2),
            }
        )
    return (
        "# Search of each guard's one main knob\n\n"
        "Made by `riprap study transfer --search`, on the exploratory seeds "
        f"{', '.join(map(str, plan.exploratory))} alone: three values of one knob for each guard, "
        f"{plan.steps} steps. The value is the worst behaviour's final score, marked down in "
        f"proportion where the new task reaches less than {plan.learned:.0%} of the plain run's; "
        "the best mean over tasks is chosen.\n\n" + markdown.table(lines) + "\n"
    )


def page(
    found: Sequence[Row],
    carried: Sequence[Transfer],
    made: Mapping[str, Guard],
    plan: Plan,
    preregistration: Preregistration,
) -> str:
    """README of the results."""
    parts = [
        "# Transfer: are the two fields' tools interchangeable?\n",
        f"Made by `riprap study transfer`, protocol `{preregistration.hash}`, commit {markdown.commit()}, "
        f"seeds {', '.join(map(str, plan.confirmatory))}, {plan.steps} steps of each new task. "
        "Knobs: [SEARCH.md](SEARCH.md). Scores are those of inputs that no guard has seen, neither "
        "as probes nor in pools (where pools hold the facts in other words), at the end; median "
        "[least, most] over seeds. Cost is processor "
        "time, guard and monitor included, ÷ that of the plain run without either. Kept: bytes of "
        "tensors that the guard holds ÷ those of the parameters.\n",
        "![heat map](transfer.png)\n",
        "## By field\n",
        "How much of the plain run's loss of score the guards of a field prevented, where it lost "
        "at least 0.1; 1 is all, 0 none, below 0 it got worse. Intervals by resampling guards.\n",
        markdown.table([_field(one) for one in carried]) + "\n",
    ]
    for task in dict.fromkeys(row.task for row in found):
        parts += [f"## After learning {task}\n", _table(found, task, made) + "\n"]
    return "\n".join(parts)


def _field(one: Transfer) -> dict[str, str]:
    low, high = one.interval
    return {
        "guards from": one.origin,
        "guards": str(one.guards),
        "safety kept (B, over_refusal)": number(one.safety, 2),
        "capability kept (A, facts)": number(one.capability, 2),
        "capability − safety, 95 %": (
            markdown.NOTHING if one.guards == 1 else f"[{number(low, 2)}, {number(high, 2)}]"
        ),
    }


def _table(found: Sequence[Row], task: str, made: Mapping[str, Guard]) -> str:
    lines = []
    for row in sorted(
        (row for row in found if row.task == task),
        key=lambda row: (row.guard != PLAIN, -np.mean([min(s) for s in row.scores.values()])),
    ):
        origin = made[row.guard].field_of_origin if row.guard in made else markdown.NOTHING
        lines.append(
            {"guard": row.guard, "from": origin}
            | {name: median_range(scores, 2) for name, scores in row.scores.items()}
            | {f"margin {name}": median_range(own, 2) for name, own in row.margins.items()}
            | {
                "new task": median_range(row.learned, 2),
                "cost": median_range(row.cost, 2),
                "kept": number(row.kept, 1),
                "acted": f"{row.acted:.0%}",
            }
        )
    return markdown.table(lines)


def front_page(points: Sequence[Point], plan: Plan, preregistration: Preregistration) -> str:
    """What the guards keep and let learn at equal time."""
    names = dict.fromkeys(point.guard for point in points)
    parts = [
        "# The Keeper at equal time\n",
        f"Made by `riprap study transfer --front`, protocol `{preregistration.hash}`, commit "
        f"{markdown.commit()}, seeds {', '.join(map(str, plan.front.seeds))}. The unit is the "
        f"processor time of the plain run of {plan.front.steps} steps, taken in the same process "
        "(not wall time: other jobs run beside it); guard, monitor and their start count. Worst: "
        "the lowest score of a behaviour on inputs that no guard has seen. New task: share of the "
        "plain run's accuracy at its end. Area: "
        "worst × new task. Median [least, most] over seeds.\n",
    ]
    for task in plan.tasks:
        lines = []
        for name in names:
            for budget in (1.0,) if name == PLAIN else plan.front.budgets:
                own = [p for p in chosen(points, name, budget) if p.task == task]
                good = sum(passed(p, plan.front.kept) for p in own)
                lines.append(
                    {
                        "guard": name,
                        "time": number(budget, 1),
                        "steps": median_range([p.steps for p in own]),
                        "worst": median_range([p.worst for p in own], 2),
                        "new task": median_range([p.learned for p in own], 2),
                        "area": median_range([p.area for p in own], 2, "mean"),
                        f"both ≥ {plan.front.kept:g}": markdown.count_of_total(good, len(own)),
                    }
                )
        parts += [f"## {task}\n", markdown.table(lines) + "\n"]
    found = [
        hypervolume.compare(points, budget, task)
        for task in plan.tasks
        for budget in plan.front.budgets
    ]
    parts += [
        "## Hypervolume\n",
        "Area that points (worst, new task) dominate, mean over seeds [95 % interval of the mean, "
        "by Student's t]. Together: all always-on guards at once, each seed with whichever serves "
        "it, which no one guard can do.\n",
        markdown.table([_volume(one) for one in found]) + "\n",
        hypervolume.verdict(found) + "\n",
    ]
    return "\n".join(parts)


def _volume(found: hypervolume.Comparison) -> dict[str, str]:
    apart = [ours - theirs for ours, theirs in zip(found.keeper, found.best, strict=True)]
    return {
        "task": found.task,
        "time": number(found.budget, 1),
        "Keeper": _mean(found.keeper),
        "best always-on": f"{found.name} {_mean(found.best)}",
        "Keeper − best": _mean(apart),
        "always-on together": _mean(found.others),
        "with the Keeper": _mean(found.all),
    }


def _mean(values: Sequence[float]) -> str:
    low, high = hypervolume.interval(values)
    return f"{number(np.mean(values), 3)} [{number(low, 3)}, {number(high, 3)}]"
