"""Load a model, evaluate it with a progress bar, and write the table and the record."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from riprap._checks import shown
from riprap._text import escape_control_chars
from riprap.behaviors.probe_sets import data_folder
from riprap.commands._models import load_model
from riprap.commands._out import result_folder
from riprap.errors import ConfigError
from riprap.evals import FILE_NAME, EvalResult, evaluate, to_inspect
from riprap.evals.judges import AnyJudge, Judge
from riprap.record import origin_of_model, run_of_model, state_of_weights

PAGE = "README.md"
EXPORT = "inspect"
DEFAULT_JUDGES = ("refusal_rules",)
_WITH_DATA = ("refusal_detector",)
HEADINGS = ("task", "metric", "value", "95 % interval", "rows", "better")


def run_eval(
    model: str,
    suites: Sequence[str],
    data: Path | None = None,
    rows: int | None = None,
    judges: Sequence[str] = DEFAULT_JUDGES,
    judge_prompt: Path | None = None,
    samples: int = 0,
    out: Path | None = None,
    quiet: bool = False,
    export: str | None = None,
) -> tuple[EvalResult, Path]:
    """Evaluate a model; write `evals.json` and a page with the table, anew after each task.

    Args:
        model: folder, Hugging Face id, or smollm2.
        data: folder of the tasks' files; None: see `riprap.evals.evaluate`.
        out: folder of the results; None: `evals-MODEL` in the folder of the run that made the
            model, or `evals`.
        quiet: draw the progress bars on standard error.
        export: "inspect" writes eval logs of inspect_ai as well, to `inspect` in the folder.

    Returns:
        the result, and the folder.

    Raises:
        RiprapError: something cannot work.
    """
    if export not in (None, EXPORT):
        raise ConfigError(f"--export {shown(export)}: there is only {EXPORT}")
    place = Path(model).expanduser()
    folder = result_folder(_default_folder(place) if out is None else out, FILE_NAME, PAGE)
    origin, weights = origin_of_model(place), state_of_weights(place)
    data = data_folder() if data is None else data
    own = parse_judges(judges, data, judge_prompt)
    loaded, tokenizer = load_model(model)
    console = Console(file=sys.stderr) if quiet else Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {}

        def progress(task: str, done: float, total: int) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total)
            bars.update(tasks[task], completed=done)

        def save(result: EvalResult) -> None:
            result = replace(result, weights=weights, run=origin)
            result.save(folder / FILE_NAME)
            (folder / PAGE).write_text(_page(result), encoding="utf-8")

        result = evaluate(
            *(loaded, tokenizer, suites),
            data=data,
            rows=rows,
            judges=own,
            samples=samples,
            progress=progress,
            on_result=save,
            name=model,
        )
    result = replace(result, weights=weights, run=origin)
    if export is not None:
        to_inspect(result, folder / EXPORT)
    return result, folder


def _default_folder(model: Path) -> Path:
    run, name = run_of_model(model), "evals"
    return Path(name) if run is None else run / f"{name}-{model.resolve().name}"


def parse_judges(
    texts: Sequence[str], data: Path, prompt: Path | None = None
) -> tuple[AnyJudge, ...]:
    """Make judges from texts: NAME, or NAME=MODEL for a judge that is a model.

    Args:
        data: folder that the refusal detector is fitted on.
        prompt: file with the prompt of harmbench and wildguard.

    Raises:
        ConfigError: a judge cannot be made.
    """
    made = []
    for text in texts:
        name, given, model = text.partition("=")
        options = {"model": model} if given else {}
        if name in _WITH_DATA:
            options = {"folder": str(data)}
        if name in ("harmbench", "wildguard") and prompt is not None:
            try:
                options["prompt"] = prompt.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"--judge-prompt {prompt} cannot be read: {error}") from error
        made.append(Judge.from_name(name, **options))
    return tuple(made)


def table_rows(result: EvalResult) -> list[tuple[str, ...]]:
    """Return the cells of the table: a row for each metric of each task."""
    found: list[tuple[str, ...]] = []
    for task in result.tasks:
        better = "lower" if task.lower_is_better else "higher"
        if task.error:
            found.append((task.task, "not measured", "", "", "0", better))
        for name, own in task.scores.items():
            interval = f"{own.low:.3f} to {own.high:.3f}"
            found.append((task.task, name, f"{own.value:.3f}", interval, str(own.n), better))
    return found


def summary_lines(result: EvalResult) -> list[str]:
    """Return what the table does not show: judges, their agreement, and notes."""
    lines = []
    if result.judges:
        lines.append(f"judges: {', '.join(result.judges)}")
    for pair in result.agreements:
        same, kappa = pair.agreement.same, pair.agreement.kappa
        lines.append(
            f"{pair.first} and {pair.second} say the same of {same} of {same.n} answers; Cohen's "
            f"kappa {kappa:.3f}"
        )
    lines += [f"{task.task}: not measured: {task.error}" for task in result.failed]
    lines += [f"{task.task}: {note}" for task in result.tasks for note in task.notes]
    return lines


def _page(result: EvalResult) -> str:
    rows = [HEADINGS, ("---",) * len(HEADINGS), *table_rows(result)]
    table = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    notes = [f"- {line}" for line in summary_lines(result)]
    settings = ", ".join(f"{name} {value}" for name, value in result.settings.items())
    head = [f"# Evals of {result.model}", "", f"Settings: {settings}. Intervals are Wilson's."]
    text = "\n".join([*head, "", *table, "", *notes]).rstrip() + "\n"
    return escape_control_chars(text)
