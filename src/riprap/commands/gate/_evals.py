"""Checks of a gate on results of `riprap eval`: of one model, or of a tuned one beside its base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from riprap.commands.gate._checks import Check, GateResult, Status, check_share, power_note
from riprap.commands.gate._requirements import NoAlert, Requirement
from riprap.errors import ConfigError
from riprap.evals import (
    EvalResult,
    Outcome,
    TaskChange,
    compare_evals,
    load_evals,
    require_same_measure,
)


def check_evals(
    tuned: Path, base: Path | None = None, requirements: Sequence[Requirement] | None = None
) -> GateResult:
    """Check results of evals.

    Args:
        tuned, base: results of `riprap eval`, or their folders.
        requirements: on metrics of `tuned`, by `TASK` for the main one or `TASK.METRIC`; with
            `base`, its values are shown beside. None: no main metric of `base`, which must be given
            then, is worse in `tuned`. It is unknown where too few rows were measured to see a large
            loss, unless the metric became better (`TaskChange.is_better`): that shows by itself
            that nothing was lost.

    Raises:
        ConfigError: a result is malformed, a requirement names no metric, or the two results have
            no task in common or were measured differently.
    """
    found = load_evals(tuned)
    before = None if base is None else load_evals(base)
    if before is not None:
        require_same_measure(before, found)
    if requirements is not None:
        return GateResult(str(tuned), tuple(_check(own, found, before) for own in requirements))
    if before is None:
        raise ConfigError(
            "one result of evals has nothing to be held to: give --require, such as "
            "'advbench<=0.1, boolq>=0.5', or the results of BASE and TUNED"
        )
    known = [own.task for own in before.tasks]
    if not set(known) & {own.task for own in found.tasks}:
        raise ConfigError(f"{base} and {tuned} have no task in common")
    changes = compare_evals(before, found)
    checks = [_hold(own) for own in changes if own.task in known]
    if all(check.status is Status.SKIPPED for check in checks):
        raise ConfigError(f"{base} has nothing to lose: all its main metrics have the worst value")
    checks += [
        Check(
            _title(own.task, own.metric), Status.SKIPPED, "no value to hold it to", note=own.missing
        )
        for own in changes
        if own.task not in known
    ]
    return GateResult(str(tuned), tuple(checks))


def _check(own: Requirement, found: EvalResult, before: EvalResult | None) -> Check:
    if isinstance(own, NoAlert):
        raise ConfigError(f"{str(own)!r} needs the record of a run: evals have no alerts")
    name, _, metric = own.behavior.partition(".")
    task = next((task for task in found.tasks if task.task == name), None)
    if task is not None and task.error:
        return Check(str(own), Status.UNKNOWN, "not measured", note=task.error)
    score = None if task is None else task.scores.get(metric or task.main)
    if task is None or score is None:
        known = ", ".join(f"{task.task}.{key}" for task in found.tasks for key in task.scores)
        raise ConfigError(f"{own.behavior!r}: no such metric was measured; there are: {known}")
    old = [] if before is None else [task for task in before.tasks if task.task == name]
    was = old[0].scores.get(metric or task.main) if old else None
    return check_share(own, score.value, score.n, "row", None if was is None else was.value)


def _title(task: str, metric: str) -> str:
    return f"{task}{'.' * bool(metric)}{metric} not worse"


def _hold(own: TaskChange) -> Check:
    title = _title(own.task, own.metric)
    if own.outcome is Outcome.NOT_COMPARED:
        return Check(title, Status.UNKNOWN, "not measured", note=own.missing)
    found = f"{own.before:.3f} before, {own.after:.3f} now, on {own.n} rows"
    note = f"{own.worse} rows worse, {own.better} better (p = {own.p:.2g})"
    if own.unpaired:
        note += f"; {own.unpaired} rows of BASE have no value in TUNED"
    if own.outcome is Outcome.WORSE:
        return Check(title, Status.FAILED, found, note=note)
    if own.outcome is Outcome.NOTHING_TO_LOSE:
        return Check(title, Status.SKIPPED, found, note="BASE has the worst value: nothing to lose")
    if own.is_better:
        return Check(title, Status.MET, found, note=note)
    status, power = power_note(own.seen, own.good, "row", most=own.lower_is_better)
    note += "; within noise" * (status is Status.MET and own.worse > own.better)
    return Check(title, status, found, note=f"{note}; {power}, with as many rows better")
