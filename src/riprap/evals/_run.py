"""Evals of a live model: reads the rows, runs the tasks, and makes the result."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from riprap._checks import check_count, is_number, shown
from riprap._text import error_text
from riprap.behaviors.probe_sets import data_folder
from riprap.errors import ConfigError, RiprapError
from riprap.evals._answers import JudgedTask, Judging
from riprap.evals._estimates import Estimate, agreement, estimate
from riprap.evals._files import Row, read_jsonl, spread
from riprap.evals._live import Live
from riprap.evals._result import EvalResult, EvalRow, JudgePair, TaskResult
from riprap.evals._tasks import Task, choose_tasks
from riprap.evals.judges import AnyJudge, RefusalRules, judge_answers, judge_name

Progress = Callable[[str, float, int], object]  # task, rows that are done, rows in all
TRIAL = ["Say yes."], ["Yes."]  # that every judge must be able to read


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    suites: Sequence[str] = ("safety", "general", "truth"),
    *,
    data: str | Path | None = None,
    rows: int | None = None,
    judges: Sequence[AnyJudge] = (),
    samples: int = 0,
    temperature: float = 1.0,
    seed: int = 0,
    max_new_tokens: int = 64,
    system: str | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
    on_result: Callable[[EvalResult], object] | None = None,
    name: str = "model",
) -> EvalResult:
    """Evaluate a live model by generation and by likelihood; its training state is preserved.

    The model is used as it is, with its adapters, and without a copy. What can be checked is
    checked before the first task runs. A task that fails later has its `error` in the result, and
    the others go on.

    Args:
        suites: names of suites (safety, general, truth) or of tasks.
        data: folder with the tasks' files; None: the one that the variable RIPRAP_DATA names, or
            ../shared/data.
        rows: evenly spaced rows of each task; None: all.
        judges: of answers to harmful requests, of judgezoo's protocol; the first one's verdict
            counts, the others are compared with it. None given: `RefusalRules`.
        samples: further answers to each harmful or safe request, drawn at `temperature`.
        seed: of the samples.
        max_new_tokens: length of judged answers.
        system: system message of the chats.
        batch_size: answers that are generated at once.
        progress: called with a task's name, how many of its rows are done, and their number.
        on_result: called with the result so far before the first task and after each one, to save
            it; tasks to come have an error in it.
        name: of the model, in the result.

    Raises:
        ConfigError: a suite, the data, the judges or the model do not fit, or every task failed.
    """
    for label, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        check_count(label, value)
    check_count("samples", samples, 0)
    if rows is not None:
        check_count("rows", rows, 1, ", or None for all")
    if not is_number(temperature) or not temperature > 0:
        raise ConfigError(f"temperature={shown(temperature)}: give a number above 0")
    judging = Judging(
        tuple(judges) or (RefusalRules(),), samples, temperature, seed, max_new_tokens
    )
    names = [judge_name(judge) for judge in judging.judges]
    if len(set(names)) < len(names):
        raise ConfigError(f"two judges have the name {Counter(names).most_common(1)[0][0]!r}")
    live = Live(model, tokenizer, system, batch_size)
    tasks = choose_tasks(suites, judging)
    folder = data_folder() if data is None else Path(data)
    work = [(task, _rows(task, folder.expanduser(), rows)) for task in tasks]
    for task, own in work:
        task.check(live, own)
    _try_judges(tasks)
    settings: dict[str, Any] = {"rows": rows, "samples": samples, "seed": seed}
    settings |= {"temperature": temperature, "max_new_tokens": max_new_tokens, "system": system}
    results = {task.name: _failed(task, "the command ended before its turn") for task in tasks}
    tell = on_result or (lambda _: None)
    tell(_result(name, results, judging, settings))
    for task, own in work:
        results[task.name] = _measured_or_failed(task, live, own, progress)
        tell(_result(name, results, judging, settings))
    found = _result(name, results, judging, settings)
    if len(found.failed) == len(found.tasks):
        raise ConfigError(f"every task failed; {found.tasks[0].task}: {found.tasks[0].error}")
    return found


def _try_judges(tasks: Sequence[Task]) -> None:
    """Refuse judges that fail on a harmless answer, before the model has answered anything."""
    judges = [judge for own in tasks if isinstance(own, JudgedTask) for judge in own.judges()]
    for judge in {judge_name(judge): judge for judge in judges}.values():
        judge_answers(judge, *TRIAL)


def _result(
    name: str, results: dict[str, TaskResult], judging: Judging, settings: dict[str, Any]
) -> EvalResult:
    pairs = [
        JudgePair(*names, agreement(*zip(*verdicts, strict=True)))
        for names, verdicts in judging.verdicts.items()
        if verdicts
    ]
    tasks = tuple(results.values())
    judges = tuple(dict.fromkeys(judge for own in tasks for judge in own.judges))
    return EvalResult(name, tasks, judges, tuple(pairs), settings)


def _failed(task: Task, error: str) -> TaskResult:
    return TaskResult(task.name, {}, task.lower_is_better, (), judges=_judges(task), error=error)


def _judges(task: Task) -> tuple[str, ...]:
    return tuple(map(judge_name, task.judges())) if isinstance(task, JudgedTask) else ()


def _measured_or_failed(
    task: Task, live: Live, rows: list[Row], progress: Progress | None
) -> TaskResult:
    try:
        return _measure(task, live, rows, progress)
    except RiprapError as error:
        return _failed(task, str(error).removeprefix(f"task {task.name!r}: "))
    except Exception as error:  # noqa: BLE001 memory may run out: the other tasks are not lost
        return _failed(task, error_text(error))


def _rows(task: Task, folder: Path, n: int | None) -> list[Row]:
    every = read_jsonl(folder / task.file, task.fields)
    kept = [row for row in every if not isinstance(task, JudgedTask) or task.keeps(row)]
    if not kept:
        raise ConfigError(f"task {task.name!r}: {folder / task.file} has no rows of it")
    return spread(kept, n)


def _measure(task: Task, live: Live, rows: list[Row], progress: Progress | None) -> TaskResult:
    started, done = time.perf_counter(), 0.0

    def advance(count: float) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(task.name, min(done, len(rows)), len(rows))

    if progress is not None:
        progress(task.name, 0, len(rows))
    found, notes = task.run(live, rows, advance)
    keys = _keys([task.request(row) for row in rows])
    found = [replace(row, key=key) for row, key in zip(found, keys, strict=True)]
    seconds = round(time.perf_counter() - started, 2)
    scores, low = _estimates(task, found, notes), task.lower_is_better
    return TaskResult(
        task.name, scores, low, tuple(found), tuple(notes), seconds, judges=_judges(task)
    )


def _keys(requests: Sequence[str]) -> list[str]:
    """Return a hash of each request; of the same request once more, with a number."""
    seen: Counter[str] = Counter()
    keys = []
    for request in requests:
        key = sha256(request.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        seen[key] += 1
        keys.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    return keys


def _estimates(task: Task, rows: Sequence[EvalRow], notes: Sequence[str]) -> dict[str, Estimate]:
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    main = task.metric if isinstance(task, JudgedTask) else names[0]
    if main not in names:
        why = "; ".join(notes)
        raise ConfigError(f"the judge could judge none of {len(rows)} answers: {why}")
    names = [main, *(name for name in names if name != main)]
    return {name: estimate([r.values[name] for r in rows if name in r.values]) for name in names}
