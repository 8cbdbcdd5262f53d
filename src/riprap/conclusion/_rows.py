"""Rows that did most of a fall: of the run's own selector, of its preflight, or of an audit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from riprap._text import shorten
from riprap.errors import RecordError
from riprap.record import (
    AUDIT,
    PREFLIGHT,
    Reader,
    events_that_stand,
    load_result,
    results_of_run,
)

SELECTION = "selection"  # event of the rows from which a step learned
HARM = "harm/"  # before a behavior's name, among the scores of the rows
MAX_ROWS = 20
SAME = ("model", "quantization", "training", "lora")  # settings on which a prediction depends
DAMAGE = (AttributeError, IndexError, KeyError, RecordError, TypeError, ValueError)


@dataclass(frozen=True)
class Row:
    """A row to blame.

    Attributes:
        name: such as "row 25".
        share: of the predicted fall of the mean margin by all rows; None: not known.
        prompt, response: its texts, shortened; empty: not recorded.
    """

    name: str
    share: float | None = None
    prompt: str = ""
    response: str = ""


@dataclass(frozen=True)
class Blame:
    """Rows that did most of the fall of a behavior, as far as something scored them.

    Attributes:
        origin: what scored the rows, and when; or how to have them scored, if nothing did.
        summary: how few rows did half of the fall, as the end of a sentence; empty: not known.
        rows: the worst ones, the worst first; empty: nothing scored them.
    """

    origin: str
    summary: str = ""
    rows: tuple[Row, ...] = ()

    @property
    def sentences(self) -> str:
        """Return origin and summary, to stand under a heading about the fall."""
        if not self.summary:
            return self.origin
        return f"{self.origin} Of the fall, {self.summary}."


def rows_to_blame(reader: Reader, behavior: str, until: int | None = None) -> Blame:
    """Return the rows that did most of the fall of a behavior.

    The run's own selector scored them at the weights that learned from them, so it comes first;
    then the preflight of the run, and then an audit of `riprap select`, both in the run's folder.

    Args:
        behavior: its name in the record.
        until: last step that counts; None: all.
    """
    if (found := _from_selector(reader, behavior, until)) is not None:
        return found
    if reader.path is None:
        return Blame(_how_to_get(reader, behavior))
    problems, folder = [], reader.path.parent
    for name, read in ((PREFLIGHT, _from_preflight), (AUDIT, _from_audit)):
        for file in results_of_run(folder, name):
            place = shorten(str(file.relative_to(folder)))
            try:
                blame, problem = read(load_result(file), reader.meta(), behavior, place)
            except DAMAGE:
                blame, problem = None, "is damaged"
            if blame is not None:
                return blame
            problems.append(f"{place} {problem}")
    if problems:
        return Blame(f"The rows are not known: {problems[0]}.")
    return Blame(_how_to_get(reader, behavior))


def _how_to_get(reader: Reader, behavior: str) -> str:
    notes = reader.meta().get("notes")
    if isinstance(notes, dict) and "rows" in notes:
        command = "riprap preflight CONFIG, before training,"
    else:
        command = f"riprap select DATA --behaviors {shorten(behavior)} --out RUN/selection"
    return f"No row was examined: {command} finds the rows that harm it most, and they stand here."


def _from_selector(reader: Reader, behavior: str, until: int | None) -> Blame | None:
    falls: dict[str, float] = defaultdict(float)
    for event in events_that_stand(reader.events(), SELECTION):
        facts = event["facts"]
        try:
            harms, step = facts["scores"][HARM + behavior], int(facts["step"])
            names = [_row_name(row, step, bool(facts.get("by_id"))) for row in facts["rows"]]
            if until is None or step <= until:
                for name, harm in zip(names, harms, strict=True):
                    falls[name] += float(harm)
        except DAMAGE:
            continue  # an event of this name that no selector wrote
    if not falls:
        return None
    names, values = list(falls), np.array(list(falls.values()))
    half = _rows_for_half(values)
    summary = f"{half:,} of {len(names):,} learned rows did half of it, by their gradients"
    return Blame(
        "Row selection examined these rows when training learned from them.",
        summary if half is not None else "",
        _worst(names, values, {}),
    )


def _row_name(row: Any, step: int, by_id: bool) -> str:
    return f"row {shorten(str(row))}" if by_id else f"row {row} of the batch of step {step:,}"


def _from_preflight(
    document: Mapping[str, Any], meta: Mapping[str, Any], behavior: str, place: str
) -> tuple[Blame | None, str]:
    if not _is_of_run(document, meta):
        return None, "is of another configuration"
    if behavior not in document["behaviors"]:
        return None, f"has no prediction for {shorten(behavior)}"
    own, numbers = document["behaviors"][behavior], document["rows"]
    harm, weights = (
        np.array([value or 0.0 for value in own["rows"][key]]) for key in ("harm", "length")
    )
    names = [f"row {number:,}" for number in numbers]
    texts = {
        f"row {int(number):,}": (shorten(str(prompt)), shorten(str(response)))
        for number, (prompt, response) in document["texts"].items()
    }
    half = own["rows_for_half"] if own["explained"] else None
    scored = f"{len(numbers):,} rows"
    if len(numbers) < document["n_rows"]:
        scored = f"{len(numbers):,} scored rows"
    blame = Blame(
        f"riprap preflight examined these rows before training ({place}).",
        "" if half is None else f"{half:,} of {scored} were predicted to do half of it",
        _worst(names, harm * weights, texts),
    )
    return blame, ""


def _is_of_run(document: Mapping[str, Any], meta: Mapping[str, Any]) -> bool:
    """Return whether a preflight was of the rows and the settings with which the run began."""
    notes, config = meta.get("notes"), document["config"]
    own = notes.get("config") if isinstance(notes, dict) else None
    if (
        not isinstance(notes, dict)
        or not isinstance(own, dict)
        or not {*SAME, "data"} <= own.keys()
    ):
        return False  # the run was not made by riprap watch
    data = [{**one["data"], "path": None} for one in (own, config)]
    is_same = all(own[key] == config[key] for key in SAME) and data[0] == data[1]
    return is_same and notes.get("rows") == document["rows_digest"]


def _from_audit(
    document: Mapping[str, Any], meta: Mapping[str, Any], behavior: str, place: str
) -> tuple[Blame | None, str]:
    notes = meta.get("notes")
    digest = notes.get("rows") if isinstance(notes, dict) else None
    if digest not in (None, document["rows_digest"], document["chosen_digest"]):
        return None, "is of other rows"
    worst = [row for row in document["worst"] if row["behavior"] == behavior]
    if digest == document["chosen_digest"]:
        worst = [row for row in worst if row["chosen"]]
    if not worst:
        return None, f"has no row that would harm {shorten(behavior)} most"
    rows = tuple(
        Row(
            f"row {row['row']:,}",
            prompt=shorten(str(row["prompt"])),
            response=shorten(str(row["response"])),
        )
        for row in worst[:MAX_ROWS]
    )
    origin = f"riprap select examined these rows on the model before training ({place})."
    return Blame(origin, rows=rows), ""


def _worst(
    names: list[str], falls: np.ndarray, texts: Mapping[str, tuple[str, str]]
) -> tuple[Row, ...]:
    total = float(falls.sum())
    order = [at for at in np.argsort(-falls, kind="stable")[:MAX_ROWS].tolist() if falls[at] > 0]
    return tuple(
        Row(names[at], float(falls[at]) / total if total > 0 else None, *texts.get(names[at], ()))
        for at in order
    )


def _rows_for_half(falls: np.ndarray) -> int | None:
    """Return how many rows, the worst first, do half of the whole fall; None: nothing falls."""
    total = falls.sum()
    if not total > 0:
        return None
    return int(np.searchsorted(np.cumsum(np.sort(falls)[::-1]), total / 2) + 1)
