"""Tables of the recorded runs: how many behaviors break, when, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.harness.markdown import commit, count_of_total, median_range, table
from experiments.onset.trace import Trace
from experiments.onset.unlike.plan import CONDITIONS, WORLDS
from riprap.detectors import threshold_margin

DECLINE, RETURN = 0.85, 0.95  # of the mean margin at the start
SUDDEN = 20  # steps
COURSES = {
    "rises or stays": f"no break; the mean margin never falls below {DECLINE} of its start",
    "dip": f"no break; it falls below {DECLINE} of its start and ends above {RETURN} of it",
    "bounded decline": f"no break; it falls below {DECLINE} and ends below {RETURN} of its start",
    "sudden break": f"break; {SUDDEN} steps before it, or at the start, the threshold margin was "
    "above half of its start",
    "slow break": "break; by then half of the threshold margin was gone",
}


@dataclass(frozen=True)
class Fate:
    """What became of one behavior in one run.

    Attributes:
        course: one of `COURSES`.
        broke_at: step of the break; None: never.
    """

    trace: Trace
    behavior: str
    course: str
    broke_at: int | None


def fates(traces: Iterable[Trace]) -> list[Fate]:
    """Return what became of each behavior in each run."""
    return [_fate(trace, name) for trace in traces for name in trace.behaviors]


def _fate(trace: Trace, name: str) -> Fate:
    own, broke_at = trace.behaviors[name], trace.break_step(name)
    if broke_at is None:
        means = own.margins.mean(axis=1) / own.margins[0].mean()
        declined, returned = means.min() < DECLINE, means[-1] > RETURN
        course = "dip" if returned else "bounded decline"
        return Fate(trace, name, course if declined else "rises or stays", None)
    before = np.searchsorted(trace.steps, broke_at - SUDDEN, side="right") - 1
    start, then = (
        threshold_margin(own.margins[place], own.floor) for place in (0, max(0, int(before)))
    )
    return Fate(trace, name, "sudden break" if then > start / 2 else "slow break", broke_at)


def page(traces: Sequence[Trace], command: str) -> str:
    """Return the page of the corpus."""
    every = fates(traces)
    worlds = [
        {"world": world, "condition": condition}
        | _counts(traces, every, world=world, condition=condition)
        for world in WORLDS
        for condition in CONDITIONS
    ]
    settings = [
        {"setting": key, "value": value} | _counts(traces, every, **{key: value})
        for key in ("optimizer", "schedule", "share", "replay")
        for value in sorted({trace.about[key] for trace in traces})
    ]
    courses = [
        {"course": course, "meaning": meaning}
        | {world: str(len(_of_course(every, course, world=world))) for world in WORLDS}
        | {"all": str(len(_of_course(every, course)))}
        for course, meaning in COURSES.items()
    ]
    parts = [
        "# Unlike worlds: the exploratory runs",
        f"`{command}` at commit `{commit()}`. The traces are not committed; the command makes them "
        "again. A behavior-run is one behavior in one run; it breaks at the first step with a "
        "score under its floor (0.90).",
        "## By world and condition",
        table([*worlds, {"world": "all", "condition": "all"} | _counts(traces, every)]),
        "## By setting",
        table(settings),
        "## Courses of the behaviors",
        table(courses),
    ]
    return "\n\n".join(parts) + "\n"


def _of_course(every: Sequence[Fate], course: str, **facts: object) -> list[Fate]:
    return [fate for fate in every if fate.course == course and _has(fate.trace, facts)]


def _counts(traces: Sequence[Trace], every: Sequence[Fate], **facts: object) -> dict[str, str]:
    """Return the counts of the runs with these facts."""
    lengths = [trace.n_steps for trace in traces if _has(trace, facts)]
    own = [fate for fate in every if _has(fate.trace, facts)]
    breaks = [fate.broke_at for fate in own if fate.broke_at is not None]
    return {
        "runs": str(len(lengths)),
        "steps of a run": median_range(lengths),
        "behavior-runs": str(len(own)),
        "break": count_of_total(len(breaks), len(own)),
        "step of the break": median_range(breaks),
    }


def _has(trace: Trace, facts: Mapping[str, object]) -> bool:
    return all(trace.about[key] == value for key, value in facts.items())
