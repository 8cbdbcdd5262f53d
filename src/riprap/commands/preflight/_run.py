"""`riprap preflight`: predict which behaviors a configured run will break, and write the page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from riprap._extras import EXTRAS, is_installed
from riprap._text import shorten
from riprap.commands._encoding import print_data
from riprap.commands._memory import peak_memory
from riprap.commands._out import result_folder
from riprap.commands.preflight._prepare import Prepared, prepared
from riprap.commands.watch import WatchConfig
from riprap.prediction import Predictor, Preflight
from riprap.record import PREFLIGHT, save_result

PAGE = "preflight.html"
MAX_TEXT = 120  # characters of a prompt or a response on the page
WORST_ROWS = 20


def run_preflight(
    config: WatchConfig,
    out: Path,
    n_rows: int | None,
    warm_steps: int,
    quiet: bool = False,
) -> dict[str, Any]:
    """Predict what a configured run will break; the trained copy is thrown away.

    Args:
        out: folder of the page and of the numbers, which holds none yet; `{time}` in it becomes the
            present time.
        n_rows: number of rows to score, drawn at random; None: all.
        quiet: draw the progress bars on standard error, and print no table.

    Returns:
        what `Preflight.to_dict` has, `files` and `peak`.

    Raises:
        RiprapError: the configuration, the rows, a behavior or the optimizer cannot be used.
    """
    out = result_folder(out, PREFLIGHT, PAGE)
    console = Console(file=sys.stderr) if quiet else Console()
    with _stages(console) as (bars, stage), prepared(config, n_rows, stage) as made:
        print_data(config.data.path, made.notes, made.shown, console)
        stage("evaluating probes", 0, 0)
        predictor = Predictor(made.training, made.behaviors, warm_steps)
        for name, why in predictor.left_out.items():
            console.print(f"{name} is left out: {why}", markup=False, soft_wrap=True)
        for note in predictor.notes:
            console.print(note, markup=False, soft_wrap=True)
        bars.console.print(_estimate_text(predictor.estimate(), made), soft_wrap=True)
        found = predictor.run(stage)
    files = _write(found, made, config, out)
    if not quiet:
        print_preflight(found, console)
    return {**found.to_dict(), "files": files, "peak": peak_memory()}


def estimate_preflight(
    config: WatchConfig, n_rows: int | None, warm_steps: int, quiet: bool = False
) -> dict[str, Any]:
    """Measure one step, one batch of rows and one pass over the probes; predict nothing.

    Returns:
        `seconds` by stage, `rows` to score, `n_rows`, `steps`, `left_out`, and `text`.
    """
    console = Console(file=sys.stderr) if quiet else Console()
    with _stages(console) as (_, stage), prepared(config, n_rows, stage) as made:
        stage("measuring", 0, 0)
        predictor = Predictor(made.training, made.behaviors, warm_steps)
        seconds = predictor.estimate()
    return {
        "seconds": seconds,
        "rows": len(made.rows),
        "n_rows": made.training.n_rows,
        "steps": len(made.training.schedule),
        "left_out": predictor.left_out,
        "notes": predictor.notes,
        "text": _estimate_text(seconds, made),
    }


@contextmanager
def _stages(console: Console) -> Iterator[tuple[Progress, Callable[[str, int, int], None]]]:
    """Show a progress bar whose text is the present stage."""
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("")

        def stage(name: str, done: int, total: int) -> None:
            bars.update(bar, description=name, completed=done, total=total or None)

        yield bars, stage


def _estimate_text(seconds: dict[str, float], made: Prepared) -> str:
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    training = made.training
    return (
        f"scoring {len(made.rows):,} of {training.n_rows:,} rows for a run of "
        f"{len(training.schedule):,} steps takes about {sum(seconds.values()):.0f} s ({parts})"
    )


def _write(found: Preflight, made: Prepared, config: WatchConfig, out: Path) -> dict[str, str]:
    """Write the numbers, and the page where its extra is installed."""
    texts = {
        int(row.number): (shorten(row.prompt, MAX_TEXT), shorten(row.response, MAX_TEXT))
        for row in made.rows
    }
    document = found.to_dict()
    worst = {number for one in document["behaviors"].values() for number in one["worst_rows"]}
    document |= {
        "rows_digest": made.rows_digest,
        "texts": {str(number): own for number, own in texts.items() if number in worst},
        "config": config.model_dump(mode="json"),
        "notes": [*made.notes, *found.notes],
    }
    files = {"numbers": out / PREFLIGHT}
    save_result(document, out / PREFLIGHT)
    if all(is_installed(module) for module in EXTRAS["report"]):
        from riprap.report import write_preflight

        training = config.training
        settings = {"model": config.model, "data": config.data.path}
        settings |= {"learning rate": f"{training.learning_rate:g}"}
        settings |= {"schedule": training.lr_scheduler_type, "notes": "; ".join(document["notes"])}
        title = config.title or Path(config.data.path).name
        files["page"] = write_preflight(found, title, texts, settings, out / PAGE)
    return {name: str(file) for name, file in files.items()}


def print_preflight(found: Preflight, console: Console) -> None:
    """Print one line for each behavior; of other mixes of rows, the probability of a break."""
    table = Table("behavior", title=Text("Predicted before training"), title_justify="left")
    for column in ("probability", "if it breaks", "without the worst 10 %", "with 25 % replay"):
        table.add_column(column, justify="right")
    for one in found.behaviors.values():
        changed = (one.without_worst, one.replay.get(0.25))
        table.add_row(
            Text(one.name),
            one.probability_text,
            one.break_text,
            *("–" if other is None else other.probability_text for other in changed),
        )
    console.print(table)
