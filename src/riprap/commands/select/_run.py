"""`riprap select`: score every row; select rows by the scores; write them and an audit."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import compress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from riprap._text import shorten
from riprap.behaviors import probe_sets
from riprap.commands._data import DataSummary, RowReader, rows_fingerprint
from riprap.commands._encoding import encode_rows, print_data
from riprap.commands._models import load_model
from riprap.commands.select._audit import audit
from riprap.commands.select._choose import check_strategy, choose
from riprap.commands.select._config import SelectConfig
from riprap.commands.select._scoring import Scorer, model_fingerprint, score_rows
from riprap.commands.select._store import SCORES, Store, number_columns
from riprap.errors import ConfigError
from riprap.record import AUDIT, save_result
from riprap.report import Audit, HarmfulRow, audit_summary, group_rows, write_audit

CHOSEN = "chosen.jsonl"
MAX_TEXT = 80  # characters of a prompt or a response in the audit


def select_rows(config: SelectConfig, quiet: bool = False) -> dict[str, Any]:
    """Score the rows of a data set with a model, and choose among them.

    A resumed run scores only the remaining rows. Another strategy or ratio in the same folder
    needs no scoring.

    Args:
        quiet: draw the progress bar on standard error, and print no table.

    Returns:
        `files` by name, `rows`, `usable`, `cut`, `chosen`, `groups` and `worst`; see
        `riprap.report.Audit`.

    Raises:
        RiprapError: a row of the data, the model or a setting is wrong; or the folder has scores
            of other data, another model or other settings.
    """
    check_strategy(config.strategy, config.behaviors, config.category)
    if config.refusal_prefixes and not config.behaviors:
        raise ConfigError("--refusal-prefixes needs --behaviors, which use the prefixes")
    behaviors = tuple(dict.fromkeys(config.behaviors))
    config = config.model_copy(update={"behaviors": behaviors, "out": config.out.expanduser()})
    for name in behaviors:
        probe_sets.rows(name)  # a wrong name is refused before the model is loaded
    reader = RowReader(config.data, config.id, config.category)
    summary = reader.check()
    model, tokenizer = load_model(config.model)
    settings = _settings(config, summary, model_fingerprint(model, tokenizer))
    store = Store(config.out, settings, behaviors)
    if store.done < summary.rows:
        console = Console(file=sys.stderr) if quiet else Console()
        first = next(row for row in reader.rows() if any(row.learned))
        shown = encode_rows([first], tokenizer, None, config.data.chat_template_kwargs).shown
        print_data(config.data.path, summary.lines(), shown, console)
        bars = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*bars, console=console, transient=True) as progress:
            bar = progress.add_task("evaluating probes", total=None)
            scorer = Scorer(config, model, tokenizer)
            progress.update(bar, description="scoring", total=summary.rows, completed=store.done)
            for done in score_rows(reader, config.batch_size, scorer, store):
                progress.update(bar, completed=done)
        del scorer
    del model
    table = store.table()
    columns = number_columns(table)
    named = table["category"].fill_null("").combine_chunks().dictionary_encode()
    categories = named.indices.to_numpy()
    chosen = choose(columns, config.strategy, config.ratio, categories)
    store.finish(table, chosen)
    title, about = Path(config.data.path).name, {"model": config.model, **settings}
    result = audit(table, chosen, title, about, config.strategy, config.ratio)
    rows = zip(columns["row"].tolist(), chosen.tolist(), strict=True)
    _write_rows(config, reader, summary.digest, rows, result.most_harmful)
    worst = [asdict(row) for row in result.most_harmful]
    taken = compress(reader.rows(), chosen.tolist())
    digests = {
        "rows_digest": rows_fingerprint(reader.rows()),
        "chosen_digest": rows_fingerprint(taken),
    }
    document = {"model": config.model, **digests, "worst": worst}
    save_result(document, config.out / AUDIT)  # the pages of a run read it
    page, image = write_audit(result, config.out)
    if not quiet:
        print_audit(result, Console())
    files = {"rows": config.out / CHOSEN, "scores": config.out / SCORES}
    return {
        "files": {n: str(file) for n, file in (files | {"audit": page, "figure": image}).items()},
        "rows": result.rows,
        "usable": result.usable,
        "cut": result.truncated,
        "chosen": int(chosen.sum()),
        "groups": [asdict(group) for group in result.groups],
        "worst": worst,
    }


def _settings(config: SelectConfig, summary: DataSummary, model: str) -> dict[str, Any]:
    """Return the settings on which the scores depend; the choice of rows is not among them."""
    data = {"data": summary.digest, "weights": model}
    data |= config.data.model_dump(
        exclude={"path", "name", "split", "limit"}, exclude_defaults=True
    )
    exclude = {"data", "model", "out", "strategy", "ratio"}
    settings: dict[str, Any] = data | config.model_dump(mode="json", exclude=exclude)
    custom = [name for name in config.behaviors if probe_sets.is_file(name)]
    if custom:
        settings["probes"] = {name: rows_fingerprint(probe_sets.rows(name)) for name in custom}
    return settings


def _write_rows(
    config: SelectConfig,
    reader: RowReader,
    digest: str,
    rows: Iterable[tuple[int, bool]],
    most_harmful: Sequence[HarmfulRow],
) -> None:
    """Copy the selected lines unchanged, and add shortened texts to the most harmful rows."""
    new_digest = hashlib.sha256()
    harmful = {row.row: row for row in most_harmful}
    partial = config.out / f"{CHOSEN}.partial"
    with partial.open("wb") as output:
        for (number, line), (row, is_chosen) in zip(reader.lines(), rows, strict=False):
            new_digest.update(line)
            if is_chosen and number == row:
                output.write(line if line.endswith(b"\n") else line + b"\n")
            if number in harmful:
                texts = reader.parse(number, line)
                harmful[number].prompt = shorten(texts.prompt, MAX_TEXT)
                harmful[number].response = shorten(texts.response, MAX_TEXT)
    if new_digest.hexdigest()[:16] != digest:
        partial.unlink()
        raise ConfigError(
            f"data {config.data.path!r} changed while its rows were scored: restore it, or name "
            "another folder by --out"
        )
    partial.replace(config.out / CHOSEN)


def print_audit(result: Audit, console: Console) -> None:
    """Print the groups as a table."""
    cells = group_rows(result, max_categories=3)
    table = Table(title=Text(audit_summary(result)), title_justify="left")
    for column in cells[0]:
        table.add_column(Text(column), justify="left" if column == "group" else "right")
    for row in cells:
        table.add_row(*(Text(value) for value in row.values()))
    console.print(table)
