"""Evals that belong to a run: of its base and of its checkpoints, task by task."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from riprap._text import shorten
from riprap.errors import ConfigError
from riprap.evals._compare import ALPHA, Outcome, TaskChange, compare_task, differences
from riprap.evals._result import EvalResult, TaskResult, load_evals
from riprap.record import evals_of_run, state_of_weights

BASE = "base"  # a result with this model's name is that of the base


@dataclass(frozen=True)
class EvalCell:
    """What one model reached on a task, as texts.

    Attributes:
        model: name of the checkpoint, or of the model.
        value, interval, rows: empty if nothing was measured.
        change: from the base, with its interval, or why there is none; empty for the base.
        is_worse: whether the task got worse than it is in the base.
    """

    model: str
    value: str
    interval: str
    rows: str
    judge: str
    change: str
    is_worse: bool


@dataclass(frozen=True)
class EvalTable:
    """A task with a row for each model: the base first, then checkpoints by their steps."""

    task: str
    metric: str
    lower_is_better: bool
    cells: tuple[EvalCell, ...]


@dataclass(frozen=True)
class RunEvals:
    """Evals of a run.

    Attributes:
        notes: results that are not shown, and why; what the comparison lacks.
    """

    tables: tuple[EvalTable, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Model:
    label: str
    result: EvalResult
    place: str


def evals_of(record: Path, meta: dict[str, Any]) -> RunEvals:
    """Return the evals that lie in a run's folder, in one directly below it, or by a checkpoint.

    The base is the model named `base`, or the one that the run began with; else the only one that
    is no checkpoint of the run. Of several results of a model and a task, the newest counts.

    Args:
        record: file of the run's record.
        meta: that of the record.
    """
    folder = record.parent
    notes: list[str] = []
    models: list[_Model] = []
    for file in sorted(evals_of_run(folder), key=_written):
        place = shorten(file.relative_to(folder).as_posix())
        result: EvalResult | None = None
        try:
            result = load_evals(file)
            why = _not_of_run(result, folder, meta)
        except ConfigError as error:
            why = shorten(str(error).replace(f"{file} ", "", 1), 300)
        if why or result is None:
            notes.append(f"{place} is not shown: it {why}.")
        else:
            models.append(_Model(_label(result), result, place))
    base = _base(models, meta)
    others = {own.label for own in models} - {base}
    if base is None and others:
        names = ", ".join(sorted(others))
        notes.append(
            f"No change is shown: which of these is the base is not known ({names}). riprap eval "
            "BASE --out RUN/evals-base adds the evals of the model that the run began with."
        )
    tasks = dict.fromkeys(task.task for own in models for task in own.result.tasks)
    tables = (_table(task, models, base, len(tasks)) for task in tasks)
    return RunEvals(tuple(tables), tuple(notes))


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _not_of_run(result: EvalResult, folder: Path, meta: dict[str, Any]) -> str:
    """Return why a result says nothing of the run; empty: it does."""
    run = result.run
    if run is None:
        return ""
    try:
        checkpoint = str(run["checkpoint"])
        started, weights = run["started"], run["weights"]
    except (KeyError, TypeError):
        return "is damaged"
    if started != meta.get("started"):
        return "is of a checkpoint of another run"
    now = state_of_weights(folder / checkpoint)
    if now and weights != now:
        return f"is of {shorten(checkpoint)} before its weights were written anew"
    return ""


def _label(result: EvalResult) -> str:
    if result.run is not None:
        return shorten(PurePosixPath(str(result.run["checkpoint"])).name)
    return shorten(result.model)


def _base(models: Iterable[_Model], meta: dict[str, Any]) -> str | None:
    """Return the label of the base; None: it is not known."""
    free = list(dict.fromkeys(own.label for own in models if own.result.run is None))
    notes = meta.get("notes")
    config = notes.get("config") if isinstance(notes, dict) else None
    start = config.get("model") if isinstance(config, dict) else None
    for name in (BASE, shorten(str(start))):
        if name in free:
            return name
    return free[0] if len(free) == 1 else None


def _table(task: str, models: list[_Model], base: str | None, n_tasks: int) -> EvalTable:
    newest: dict[str, tuple[TaskResult, EvalResult]] = {}
    for own in models:
        for found in own.result.tasks:
            if found.task == task and (not found.error or own.label not in newest):
                newest[own.label] = found, own.result
    before = newest.get(base or "")
    main = next((found for found, _ in newest.values() if found.main), None)
    main = main or next(iter(newest.values()))[0]
    return EvalTable(
        shorten(task),
        shorten(main.main),
        main.lower_is_better,
        tuple(
            _cell(label, *newest[label], None if label == base else before, n_tasks)
            for label in sorted(newest, key=lambda label: (label != base, *_step(label)))
        ),
    )


def _step(label: str) -> tuple[float, str]:
    found = re.search(r"(\d+)$", label)
    return (float(found[1]) if found else math.inf), label


def _cell(
    label: str,
    own: TaskResult,
    result: EvalResult,
    before: tuple[TaskResult, EvalResult] | None,
    n_tasks: int,
) -> EvalCell:
    judge = shorten(own.judges[0]) if own.judges else ""
    if own.error:
        return EvalCell(label, "", "", "", judge, f"not measured: {shorten(own.error, 300)}", False)
    score = own.scores[own.main]
    change = None if before is None else _change(before, (own, result), n_tasks)
    return EvalCell(
        label,
        f"{score.value:.3f}",
        f"{score.low:.3f} to {score.high:.3f}",
        str(score.n),
        judge,
        "" if change is None else _change_text(change),
        change is not None and change.outcome is Outcome.WORSE,
    )


def _change(
    before: tuple[TaskResult, EvalResult], after: tuple[TaskResult, EvalResult], n_tasks: int
) -> TaskChange:
    (old, base), (new, tuned) = before, after
    skipped = {f"judge of {name.task}" for name in tuned.tasks} - {f"judge of {new.task}"}
    differ = [name for name in differences(base, tuned) if name not in skipped]
    if differ:
        why = f"measured differently ({', '.join(map(shorten, differ))})"
        return TaskChange(old.task, old.main, old.lower_is_better, missing=why)
    if not old.error and old.main != new.main:
        return TaskChange(old.task, old.main, old.lower_is_better, missing="of another metric")
    return compare_task(old, new, ALPHA / n_tasks)


def _change_text(own: TaskChange) -> str:
    if own.outcome is Outcome.NOT_COMPARED:
        return f"not compared: {shorten(own.missing, 300)}"
    text = f"{own.change:+.3f} [{own.low:.3f}, {own.high:.3f}]"
    return text if own.outcome is Outcome.NOT_WORSE else f"{text}, {own.outcome}"
