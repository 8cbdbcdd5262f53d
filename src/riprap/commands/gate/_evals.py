"""Checks of a gate on results of `riprap eval`: of one model, or of a tuned one beside its base.

Both models answered the same rows. A metric fell if more rows became worse than better, by a sign
test on the rows that changed; it needs no assumption on how values are distributed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from scipy import stats

from riprap.commands.gate._checks import Check, GateResult, Status, check_share, power_note
from riprap.commands.gate._requirements import NoAlert, Requirement
from riprap.detectors import Power
from riprap.errors import ConfigError
from riprap.evals import EvalResult, TaskResult, load_evals

ALPHA = 0.05  # that any check of a gate fails by chance


def check_evals(
    tuned: Path, base: Path | None = None, requirements: Sequence[Requirement] | None = None
) -> GateResult:
    """Check results of evals.

    Args:
        tuned, base: results of `riprap eval`, or their folders.
        requirements: on metrics of `tuned`, by `TASK` for the main one or `TASK.METRIC`; with
            `base`, its values are shown beside. None: no main metric of `base`, which must be given
            then, is worse in `tuned`.

    Raises:
        ConfigError: a result is malformed, a requirement names no metric, or the two results have
            no task in common or were measured differently.
    """
    found = load_evals(tuned)
    before = None if base is None else load_evals(base)
    if before is not None:
        _require_same_measure(before, found)
    if requirements is not None:
        return GateResult(str(tuned), tuple(_check(own, found, before) for own in requirements))
    if before is None:
        raise ConfigError(
            "one result of evals has nothing to be held to: give --require, such as "
            "'advbench<=0.1, boolq>=0.5', or the results of BASE and TUNED"
        )
    after = {own.task: own for own in found.tasks}
    if not any(own.task in after for own in before.tasks):
        raise ConfigError(f"{base} and {tuned} have no task in common")
    level = ALPHA / len(before.tasks)
    checks = [_compare(own, after.get(own.task), level) for own in before.tasks]
    if all(check.status is Status.SKIPPED for check in checks):
        raise ConfigError(f"{base} has nothing to lose: all its main metrics have the worst value")
    known = [own.task for own in before.tasks]
    checks += [
        Check(_title(own), Status.SKIPPED, "no value to hold it to", note="not a task of BASE")
        for own in found.tasks
        if own.task not in known
    ]
    return GateResult(str(tuned), tuple(checks))


def _require_same_measure(before: EvalResult, after: EvalResult) -> None:
    """Refuse results that differ in more than the model."""
    differ = [k for k in after.settings if before.settings.get(k) != after.settings[k]]
    differ = [key for key in differ if key != "rows"]  # rows are compared one by one
    judges = {own.task: own.judges[:1] for own in before.tasks}
    differ += [
        f"judge of {own.task}"
        for own in after.tasks
        if judges.get(own.task, own.judges[:1]) != own.judges[:1]
    ]
    if differ:
        raise ConfigError(
            f"the two results were measured differently ({', '.join(differ)}): measure both with "
            "the same options"
        )


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


def _title(task: TaskResult) -> str:
    return f"{task.task}{'.' * bool(task.main)}{task.main} not worse"


def _compare(before: TaskResult, after: TaskResult | None, level: float) -> Check:
    """Compare the main metric of two results, row by row."""
    metric, title = before.main, _title(before)
    error = f"BASE: {before.error}" if before.error else ""
    if after is None:
        error = error or "TUNED lacks this task: measure it with the same suites"
    elif after.error:
        error = error or f"TUNED: {after.error}"
    if after is None or error:
        return Check(title, Status.UNKNOWN, "not measured", note=error)
    old = {row.key: row.values[metric] for row in before.rows if metric in row.values}
    pairs = [
        (old[row.key], row.values[metric])
        for row in after.rows
        if row.key in old and metric in row.values
    ]
    if not pairs:
        return Check(title, Status.UNKNOWN, "not measured", note="no row is in both results")
    sign = -1 if before.lower_is_better else 1
    worse = sum(sign * (new - was) < 0 for was, new in pairs)
    better = sum(sign * (new - was) > 0 for was, new in pairs)
    was, now = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    found = f"{was:.3f} before, {now:.3f} now, on {len(pairs)} rows"
    changed = worse + better
    p = float(stats.binomtest(worse, changed, alternative="greater").pvalue) if changed else 1.0
    note = f"{worse} rows worse, {better} better (p = {p:.2g})"
    if len(pairs) < len(old):
        note += f"; {len(old) - len(pairs)} rows of BASE have no value in TUNED"
    if p <= level:
        return Check(title, Status.FAILED, found, note=note)
    good = before.scores[metric].value
    good = 1 - good if before.lower_is_better else good
    if not good:
        return Check(title, Status.SKIPPED, found, note="BASE has the worst value: nothing to lose")
    status, power = power_note(
        _seen(len(pairs), good, level), good, "row", most=before.lower_is_better
    )
    note += "; within noise" * (status is Status.MET and worse > better)
    return Check(title, status, found, note=f"{note}; {power}")


def _seen(n: int, good: float, level: float) -> float:
    """Return the largest true score that the sign test sees as a loss 4 times in 5.

    It is that of the clearest loss, where some rows become worse and none becomes better: then
    `needed` of them are enough for the test.
    """
    needed = math.ceil(-math.log2(level))
    if needed > n:
        return good - 1  # not even the loss of all rows is seen
    unchanged = Power.seen_with(n, (n - needed + 1) / n)
    return good - (1 - unchanged)
