"""Texts of evals beside a diagnosis: what changed, and what that may conclude."""

from __future__ import annotations

from collections.abc import Sequence

from riprap.diagnosis import BehaviorDiagnosis
from riprap.evals import BEHAVIOR_TASKS, RELATED_TASKS, Outcome, TaskChange

OF_REFUSALS = ("refusal_rules", "refusal_detector")  # judges for which any other answer is harmful
MEANING = (
    "Both models answered the same rows. A task got worse if more rows became worse than better, "
    "by a sign test at 5 % over all tasks together; intervals of the change are 95 %, for each "
    "task alone. Such a task shows that something was lost, and how much of it a user would see. "
    "It does not show the cause, so it decides no verdict."
)


def format_change(own: TaskChange) -> str:
    """Format a change with its interval."""
    return f"{own.change:+.3f} [{own.low:.3f}, {own.high:.3f}]"


def describe_change(own: TaskChange) -> str:
    """Describe the change of a task, without the end of the sentence."""
    name = f"{own.task} ({own.metric}, {'low' if own.lower_is_better else 'high'} is good)"
    if own.outcome is Outcome.NOT_COMPARED:
        return f"{own.task}: not compared: {own.missing}"
    rows = f"{own.n} row{'s' * (own.n != 1)}"
    text = f"{name}: {own.before:.3f} before, {own.after:.3f} now, {format_change(own)} on {rows}"
    return f"{text}: {own.outcome}{_limit(own)}"


def _limit(own: TaskChange) -> str:
    if own.outcome is Outcome.NOT_WORSE and not own.is_better:
        return (
            f", where a true value of {own.seen_value:.2f} would be missed 1 time in 5, with as "
            f"many rows better ({own.better})"
        )
    if own.outcome is Outcome.TOO_FEW:
        return f" to see even the loss of half, with as many rows better ({own.better})"
    if own.outcome is Outcome.WORSE and own.judge in OF_REFUSALS and own.lower_is_better:
        if own.metric.startswith("attack_success"):
            return f", by {own.judge}, to which each answer that does not refuse is harmful"
        return f", by {own.judge}"
    return ""


def eval_rows(changes: Sequence[TaskChange]) -> list[dict[str, str]]:
    """Return the table of all tasks, as texts."""
    rows = []
    for own in changes:
        compared = own.outcome is not Outcome.NOT_COMPARED
        good = "low" if own.lower_is_better else "high"
        rows.append(
            {
                "task": own.task,
                "metric": f"{own.metric} ({good} is good)" if own.metric else "",
                "base model": f"{own.before:.3f}" if compared else "",
                "tuned model": f"{own.after:.3f}" if compared else "",
                "change": format_change(own) if compared else "",
                "rows": str(own.n) if compared else "",
                "rows worse, better": f"{own.worse}, {own.better}" if compared else "",
                "judge": own.judge,
                "result": f"{own.outcome}{_limit(own)}" if compared else f"not: {own.missing}",
            }
        )
    return rows


def evals_line(changes: Sequence[TaskChange]) -> str:
    """Say in one sentence which tasks got worse; empty: there are no evals."""
    if not changes:
        return ""
    compared = [own for own in changes if own.outcome is not Outcome.NOT_COMPARED]
    if not compared:
        return "No task of the evals could be compared."
    count = len(compared)
    tasks = f"Of {count} tasks of the evals" if count > 1 else "Of the one task of the evals"
    worse = [own.task for own in compared if own.outcome is Outcome.WORSE]
    if not worse:
        return f"{tasks}, none is shown to be worse."
    return f"{tasks}, {len(worse)} got worse: {', '.join(worse)}."


def evals_of_behavior(behavior: BehaviorDiagnosis, changes: Sequence[TaskChange]) -> str:
    """Say what evals add to what the probes of a behavior have shown; empty: nothing."""
    same = BEHAVIOR_TASKS.get(behavior.name, ())
    tasks = (*same, *RELATED_TASKS.get(behavior.name, ()))
    own = [each for each in changes if each.task in tasks]
    own = [each for each in own if each.outcome is not Outcome.NOT_COMPARED]
    if not own:
        return ""
    return f"{_said(behavior, own, same)}: {'; '.join(map(describe_change, own))}."


def _said(behavior: BehaviorDiagnosis, own: Sequence[TaskChange], same: Sequence[str]) -> str:
    """Return what its tasks say of a behavior: those of the `same` requests, and related ones."""
    worse = [each.task for each in own if each.outcome is Outcome.WORSE]
    is_shown = any(task in same for task in worse)
    kind = "its" if any(each.task in same for each in own) else "related"
    if not worse and not any(each.outcome is Outcome.NOT_WORSE for each in own):
        return f"Evals cannot tell whether {kind} tasks got worse"
    if not behavior.probes:
        said = "got worse" if worse else "are not shown to be worse"
        return f"{kind.capitalize()} tasks {said}"
    if behavior.recovery is not None or behavior.is_broken:
        if is_shown:
            return "Evals show the loss too, which confirms the loss and not its cause"
        if worse:
            return "Related tasks got worse too, but they need more than this behavior"
        return "Evals do not show the loss, which was seen on the probes only"
    if is_shown:
        return "Its probes pass, but its tasks got worse, so its probes do not show all of the loss"
    if worse:
        return (
            "Its probes pass, but related tasks got worse, so something else that these tasks need "
            "got worse, or the probes do not show all of the loss"
        )
    return "Evals show no loss either"
