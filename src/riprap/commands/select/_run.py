"""`riprap select`: score every row, choose from the scores, write what was chosen and an audit."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from riprap._text import shorten
from riprap.behaviors import probe_sets
from riprap.commands._models import load_model
from riprap.commands.select._audit import audit, chosen_rows
from riprap.commands.select._choose import masks, rule_of
from riprap.commands.select._config import SelectConfig
from riprap.commands.select._jsonl import Survey, raw_lines, row_of, survey
from riprap.commands.select._scoring import Scorer, fingerprint, score_rows
from riprap.commands.select._store import SCORES, Store
from riprap.commands.watch import rows_fingerprint as rows_fingerprint
from riprap.errors import ConfigError
from riprap.report import Audit, audit_summary, group_rows, write_audit

CHOSEN = "chosen.jsonl"
TEXT = 80  # characters that are shown of a prompt or a response


def select_rows(config: SelectConfig, quiet: bool = False) -> dict[str, Any]:
    """Score the rows of a data set with a model, and choose among them.

    What a run that was cut off has scored is not scored again; another strategy or ratio in the
    same folder needs no scoring at all.

    Args:
        quiet: draw the progress bar on standard error, and no table.

    Returns:
        `files` by name, `rows`, `usable`, `cut`, `chosen`, `groups` and `worst`; see
        `report.audit.Audit`.

    Raises:
        RiprapError: what is wrong with a line of the data, the model or the settings; or the folder
            holds scores of other data, another model or other settings.
    """
    rule = rule_of(config.strategy, config.behaviors)
    if config.openers and not config.behaviors:
        raise ConfigError("--openers are those of --behaviors, and none are given")
    behaviors = tuple(dict.fromkeys(config.behaviors))
    config = config.model_copy(update={"behaviors": behaviors, "out": config.out.expanduser()})
    known = survey(config)
    model, tokenizer = load_model(config.model)
    settings = _settings(config, known, fingerprint(model, tokenizer))
    store = Store(config.out, settings, behaviors)
    if store.done < known.rows:
        _score(config, model, tokenizer, store, known.rows, quiet)
    del model
    store.finish(masks(store.groups, rule, config.ratio))
    title = Path(config.data.path).name
    about = {"model": config.model, **settings}
    found = audit(store.tables(), store.groups, title, about, config.strategy, config.ratio)
    _write_rows(config, store, found, known)
    page, image = write_audit(found, config.out)
    files = {"rows": config.out / CHOSEN, "scores": config.out / SCORES}
    files |= {"audit": page, "figure": image}
    if not quiet:
        show(found, Console())
    return _outcome(found, files)


def _settings(config: SelectConfig, known: Survey, model: str) -> dict[str, Any]:
    """What scores depend on: weights and rows, wherever they lie, but not which rows are chosen."""
    asked = config.model_dump(mode="json", exclude={"data", "model", "out", "strategy", "ratio"})
    own = {
        name: rows_fingerprint(probe_sets.rows(name)) for name in config.behaviors if probe_sets.is_file(name)
    }
    if own:
        asked["probes"] = own
    return {
        "data": known.digest,
        "weights": model,
        "prompt": config.data.prompt,
        "response": config.data.response,
        **asked,
    }


def _score(
    config: SelectConfig, model: Any, tokenizer: Any, store: Store, rows: int, quiet: bool
) -> None:
    console = Console(file=sys.stderr) if quiet else Console()
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("visiting probes", total=None)
        scorer = Scorer(config, model, tokenizer)
        progress.update(bar, description="scoring", total=rows, completed=store.done)
        for done in score_rows(config, scorer, store):
            progress.update(bar, completed=done)


def _write_rows(config: SelectConfig, store: Store, found: Audit, known: Survey) -> None:
    """Copy the chosen lines as they stand, and shorten the texts of the worst rows.

    Raises:
        ConfigError: the file is no longer the one that was scored.
    """
    digest = hashlib.sha256()
    worst = {one.row: one for one in found.most_harmful}
    partial = config.out / f"{CHOSEN}.partial"
    lines = zip(raw_lines(config.data.path), chosen_rows(store.tables()), strict=False)
    with partial.open("wb") as kept:
        for (number, line), (row, chosen) in lines:
            digest.update(line)
            if chosen and number == row:
                kept.write(line if line.endswith(b"\n") else line + b"\n")
            if number in worst:
                texts = row_of(number, line, config)
                worst[number].prompt = shorten(texts.prompt, TEXT)
                worst[number].response = shorten(texts.response, TEXT)
    if digest.hexdigest()[:16] != known.digest:
        partial.unlink()
        raise ConfigError(
            f"data {config.data.path!r} was changed while its rows were scored: bring it back, or "
            "name another folder by --out"
        )
    partial.replace(config.out / CHOSEN)


def _outcome(found: Audit, files: dict[str, Path]) -> dict[str, Any]:
    return {
        "files": {name: str(file) for name, file in files.items()},
        "rows": found.rows,
        "usable": found.usable,
        "cut": found.truncated,
        "chosen": found.group("chosen").rows,
        "groups": [asdict(group) for group in found.groups],
        "worst": [asdict(row) for row in found.most_harmful],
    }


def show(found: Audit, console: Console) -> None:
    """Print the groups, for people."""
    cells = group_rows(found, most=3)
    table = Table(title=Text(audit_summary(found)), title_justify="left")
    for column in cells[0]:
        table.add_column(Text(column), justify="left" if column == "group" else "right")
    for row in cells:
        table.add_row(*(Text(value) for value in row.values()))
    console.print(table)
