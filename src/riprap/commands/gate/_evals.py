"""What a gate checks on results of `riprap eval`: of one model, or of a tuned one beside its base.

Both models answered the same rows. A metric fell if more rows became worse than better, by a sign
test on the rows that changed; it needs no assumption on how values are distributed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scipy import stats

from riprap.commands.gate._checks import Check, GateResult, Status
from riprap.commands.gate._requirements import NoAlert, Requirement, ScoreAtLeast
from riprap.errors import ConfigError
from riprap.evals import Estimate, EvalResult, TaskResult, load_evals

ALPHA = 0.05  # that any check of a gate fails by chance


def check_evals(
    tuned: Path, base: Path | None = None, requirements: Sequence[Requirement] | None = None
) -> GateResult:
    """Check results of evals.

    Args:
        tuned, base: results of `riprap eval`, or their folders.
        requirements: on metrics, by `TASK` for the main one or `TASK.METRIC`. None: no main metric
            of `tuned` is worse than that of `base`, which must be given then.

    Raises:
        ConfigError: a result is malformed, a requirement names no metric, or the two results have
            no rows in common.
    """
    found = load_evals(tuned)
    if requirements is not None:
        return GateResult(str(tuned), tuple(_check(own, found) for own in requirements))
    if base is None:
        raise ConfigError(
            "one result of evals has nothing to be held to: give --require, such as "
            "'advbench<=0.1, boolq>=0.5', or the results of BASE and TUNED"
        )
    before = load_evals(base)
    names = [own.task for own in before.tasks]
    shared = [task for task in found.tasks if task.task in names]
    if not shared:
        raise ConfigError(f"{base} and {tuned} have no task in common")
    _require_same_measure(before, found)
    level = ALPHA / len(shared)
    checks = [_compare(before[task.task], task, level) for task in shared]
    return GateResult(str(tuned), tuple(checks))


def _require_same_measure(before: EvalResult, after: EvalResult) -> None:
    """Refuse results that differ in more than the model."""
    differ = [k for k in after.settings if before.settings.get(k) != after.settings[k]]
    differ = [key for key in differ if key != "rows"]  # rows are compared one by one
    if before.judges[:1] != after.judges[:1] and before.judges and after.judges:
        differ.append("judge")
    if differ:
        raise ConfigError(
            f"the two results were measured differently ({', '.join(differ)}): measure both with "
            "the same options"
        )


def _check(own: Requirement, found: EvalResult) -> Check:
    if isinstance(own, NoAlert):
        raise ConfigError(f"{str(own)!r} needs the record of a run: evals have no alerts")
    score = _score(own.behavior, found)
    text = f"{score.value:.3f} on {score.n} row{'s' * (score.n > 1)}"
    interval, least = (score.low, score.high), isinstance(own, ScoreAtLeast)
    is_met = score.value >= own.score if least else score.value <= own.score
    unsure = score.low < own.score <= score.high or score.low <= own.score < score.high
    note = "within noise" if unsure else ""
    return Check(str(own), Status.MET if is_met else Status.FAILED, text, interval, note)


def _score(name: str, found: EvalResult) -> Estimate:
    task, _, metric = name.partition(".")
    known = [f"{own.task}.{key}" for own in found.tasks for key in own.scores]
    own = next((own for own in found.tasks if own.task == task), None)
    score = None if own is None else own.scores.get(metric or own.main)
    if score is None:
        raise ConfigError(f"{name!r}: no such metric was measured; there are: {', '.join(known)}")
    return score


def _compare(before: TaskResult, after: TaskResult, level: float) -> Check:
    """Compare the main metric of two results, row by row."""
    metric = after.main
    old = {row.key: row.values[metric] for row in before.rows if metric in row.values}
    pairs = [
        (old[row.key], row.values[metric])
        for row in after.rows
        if row.key in old and metric in row.values
    ]
    title = f"{after.task}.{metric} not worse"
    if not pairs:
        return Check(title, Status.UNKNOWN, "not measured", note="no row is in both results")
    sign = -1 if after.lower_is_better else 1
    worse = sum(sign * (new - was) < 0 for was, new in pairs)
    better = sum(sign * (new - was) > 0 for was, new in pairs)
    was, now = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    found = f"{was:.3f} before, {now:.3f} now, on {len(pairs)} rows"
    changed = worse + better
    p = float(stats.binomtest(worse, changed, alternative="greater").pvalue) if changed else 1.0
    note = f"{worse} rows worse, {better} better (p = {p:.2g})"
    if p <= level:
        return Check(title, Status.FAILED, found, note=note)
    if 0.5 ** len(pairs) > level:
        return Check(title, Status.UNKNOWN, found, note=f"too few rows to see any fall; {note}")
    return Check(title, Status.MET, found, note=note + "; within noise" * (worse > better))
