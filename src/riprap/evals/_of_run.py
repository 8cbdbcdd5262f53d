"""Evals that belong to a run: of its base and of its checkpoints, task by task."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
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
    """Value of one model on a task, as texts.

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


def evals_of(record: Path, meta: dict[str, Any]) -> RunEvals:
    """Return the evals that lie in a run's folder, in one directly below it, or by a checkpoint.

    The base is the model named `base`, or the one that the run began with. Where the record does
    not name that one, it is the only one that is no checkpoint of the run, and a note says so. Of
    several results of a model and a task, the newest counts.

    Args:
        record: file of the run's record.
        meta: that of the record.
    """
    folder = record.parent
    notes: list[str] = []
    results: list[EvalResult] = []
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
            results.append(result)
    models = _named(results)
    base, note = _base(models, meta)
    notes += [note] if note else []
    tasks = dict.fromkeys(task.task for own in models for task in own.result.tasks)
    of_base = {task.task for own in models if own.label == base for task in own.result.tasks}
    tables = (_table(task, models, base, max(1, len(of_base))) for task in tasks)
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
        now = _weights(result.model)
        is_old = bool(result.weights and now) and result.weights != now
        return f"is of {shorten(result.model)} before its weights were written anew" * is_old
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


def _weights(model: str) -> dict[str, list[int]]:
    try:
        return state_of_weights(Path(model).expanduser())
    except (RuntimeError, ValueError):  # no such user, NUL
        return {}


def _named(results: Sequence[EvalResult]) -> list[_Model]:
    """Label checkpoints by their folder's name, or by their place where names are the same."""
    names = [_names(result) for result in results]
    count = Counter(name for name, _ in set(names))
    return [
        _Model(shorten(name if count[name] == 1 else place), result)
        for (name, place), result in zip(names, results, strict=True)
    ]


def _names(result: EvalResult) -> tuple[str, str]:
    if result.run is None:
        return result.model, result.model
    place = PurePosixPath(str(result.run["checkpoint"]))
    return place.name, str(place)


def _base(models: Sequence[_Model], meta: dict[str, Any]) -> tuple[str | None, str]:
    """Return the label of the base, None if it is not known, and what must be said of it."""
    free = {own.label: own.result.model for own in models if own.result.run is None}
    notes = meta.get("notes")
    config = notes.get("config") if isinstance(notes, dict) else None
    start = config.get("model") if isinstance(config, dict) else None
    if BASE in free:
        return BASE, ""
    if start is not None:
        same = [label for label, model in free.items() if _is_same(model, str(start))]
        if same:
            return same[0], ""
    elif len(free) == 1:
        (label,) = free
        return label, f"Taken for the base: {label}, the only one that is no checkpoint of the run."
    if not models:
        return None, ""
    names = ", ".join(sorted({own.label for own in models}))
    if start is None:
        return None, (
            f"No change is shown: which of these is the base is not known ({names}). riprap eval "
            "BASE --out RUN/evals-base adds the evals of the model that the run began with."
        )
    return None, (
        f"No change is shown: the run began with {shorten(str(start))}, and these are evals of "
        f"others ({names}). riprap eval {shorten(str(start))} --out RUN/evals-base adds its own."
    )


def _is_same(one: str, other: str) -> bool:
    """Return whether two names are of the same model: a name of the hub, or a folder."""
    try:
        return (
            one == other or Path(one).expanduser().resolve() == Path(other).expanduser().resolve()
        )
    except (OSError, RuntimeError, ValueError):  # too long, no such user, NUL
        return False


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
