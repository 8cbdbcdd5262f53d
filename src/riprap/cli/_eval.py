"""`riprap eval`: evaluate a model."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from riprap.cli._common import AS_JSON, command, print_result

app = typer.Typer()


@app.command("eval")
@command
def evaluate(
    model: str = typer.Argument(
        ..., help="Folder of a model or of a LoRA adapter, Hugging Face id, or smollm2."
    ),
    suite: str = typer.Option(
        "safety,general,truth", help="Suites (safety, general, truth) and tasks, with commas."
    ),
    data: Path | None = typer.Option(
        None, help="Folder of the tasks' files; default: $RIPRAP_DATA, or ../shared/data."
    ),
    rows: int | None = typer.Option(None, help="Evenly spaced rows of each task; default: all."),
    judge: list[str] = typer.Option(
        ["refusal_rules"],
        help="Judge of answers: refusal_rules, refusal_detector, classifier=MODEL, "
        "llama_guard=MODEL, wildguard=MODEL, harmbench=MODEL or judgezoo:NAME; repeatable: the "
        "others are compared with the first.",
    ),
    judge_prompt: Path | None = typer.Option(
        None, help="File with the prompt of wildguard's or harmbench's model card."
    ),
    samples: int = typer.Option(0, help="Further answers to each harmful request, sampled."),
    out: Path | None = typer.Option(
        None,
        help="Folder of the table and of evals.json; default: evals, or, where MODEL lies in the "
        "folder of a run, evals-MODEL in that folder, so that the pages of the run show them.",
    ),
    export: str | None = typer.Option(
        None, help="inspect: also write eval logs of inspect_ai, for `inspect view`."
    ),
    as_json: bool = AS_JSON,
) -> int:
    """Evaluate MODEL by generated answers and by likelihood, with intervals.

    Results are saved after each task. Exit code 1: a task could not be measured. `riprap gate BASE
    TUNED` compares the results of two models.
    """
    from riprap.commands.eval import HEADINGS, run_eval, summary_lines, table_rows

    suites = [part.strip() for part in suite.split(",") if part.strip()]
    result, folder = run_eval(
        *(model, suites, data, rows, judge, judge_prompt, samples, out),
        quiet=as_json,
        export=export,
    )
    if as_json:
        print_result(result.to_dict(rows=False) | {"out": str(folder)}, as_json, [])
        return int(bool(result.failed))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in HEADINGS:
        table.add_column(heading)
    for cells in table_rows(result):
        table.add_row(*map(Text, cells))
    Console(soft_wrap=False).print(table)
    print_result({}, as_json, [*summary_lines(result), f"written to {folder}"])
    return int(bool(result.failed))
