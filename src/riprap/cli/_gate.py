"""`riprap gate`: let a run or a tuned model through, or not."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from riprap.cli._common import AS_JSON, command, print_result
from riprap.errors import ConfigError

app = typer.Typer()
STYLES = {"met": "green", "failed": "bold red", "unknown": "yellow", "skipped": "dim"}


@app.command()
@command
def gate(
    subject: str = typer.Argument(
        ..., metavar="RUN|BASE", help="Folder of a run, or of evals; or base model."
    ),
    tuned: str | None = typer.Argument(
        None,
        help="With BASE: the tuned model, or the folder of a LoRA adapter of BASE; with evals of "
        "BASE: those of the tuned model.",
    ),
    require: list[str] = typer.Option(
        [],
        help="Requirements: 'NAME>=SCORE', 'NAME<=SCORE' and 'no LEVEL', with commas; repeatable. "
        "Default: each behavior at or above its floor; of evals, no metric worse than before.",
    ),
    n_probes: int | None = typer.Option(
        None, help="With BASE: number of probes per behavior (48)."
    ),
    refusal_prefixes: list[str] = typer.Option(
        [], help="With BASE: first words of its refusals; repeatable."
    ),
    junit: Path | None = typer.Option(None, help="Write the checks as JUnit XML to this file."),
    as_json: bool = AS_JSON,
) -> int:
    """Check requirements on a run, or on TUNED beside BASE, for CI.

    Exit code 0: all are met; 2: one failed; 3: too little was measured to say; 1: an error.
    """
    from riprap.commands.gate import (
        check_evals,
        check_models,
        check_run,
        parse_requirements,
        to_junit,
    )
    from riprap.evals import is_evals
    from riprap.record import FILE_NAME

    wanted = parse_requirements(",".join(require)) if require else None
    of_evals = is_evals(Path(subject))
    if (tuned is None or of_evals) and (n_probes is not None or refusal_prefixes):
        raise ConfigError("--n-probes and --refusal-prefixes need two models: BASE and TUNED")
    if of_evals:
        base = None if tuned is None else Path(subject)
        result = check_evals(Path(tuned or subject), base, wanted)
    elif tuned is None:
        result = check_run(Path(subject), wanted)
    else:
        if (Path(subject) / FILE_NAME).is_file():
            raise ConfigError(
                f"{subject} is the folder of a run: gate takes one run, or two models"
            )
        n_probes = 48 if n_probes is None else n_probes
        result = check_models(subject, tuned, wanted, refusal_prefixes, n_probes, quiet=as_json)
    if junit is not None:
        try:
            junit.parent.mkdir(parents=True, exist_ok=True)
            junit.write_text(to_junit(result), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {junit}: {error}") from error
    if as_json:
        print_result(result.to_dict(), as_json, [])
        return result.exit_code
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("requirement", "", "found", "95 % interval", "note"):
        table.add_column(heading)
    for check in result.checks:
        span = "" if check.interval is None else "{:.2f} to {:.2f}".format(*check.interval)
        cells = [Text(text) for text in (check.requirement, check.found, span, check.note)]
        status = Text(str(check.status), style=STYLES[check.status])
        table.add_row(cells[0], status, *cells[1:])
    Console(soft_wrap=False).print(table)
    return result.exit_code
