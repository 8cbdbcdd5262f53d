"""Rows that did most of a fall: of the run's own selector, of its preflight, or of an audit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from riprap._text import shorten
from riprap.behaviors import probe_sets
from riprap.detectors import fewest_rows_for
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
# Settings on which a prediction depends.
SAME = ("model", "quantization", "training", "lora", "behaviors")
DAMAGE = (ArithmeticError, AttributeError, LookupError, RecordError, TypeError, ValueError)


@dataclass(frozen=True)
class Row:
    """A row to blame.

    Attributes:
        name: such as "row 25".
        share: of the predicted falls of all rows that lower the mean margin, taken together; None:
            not known.
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
        parts = [self.origin]
        if self.summary:
            parts.append(f"Of the fall, {self.summary}.")
        if any(row.share is not None for row in self.rows):
            parts.append("Shares are of the falls of all rows that lower it, taken together.")
        return " ".join(parts)


def rows_to_blame(
    reader: Reader,
    behavior: str,
    until: int | None = None,
    events: Sequence[Mapping[str, Any]] | None = None,
) -> Blame:
    """Return the rows that did most of the fall of a behavior.

    The run's own selector scored them at the weights that learned from them, so it comes first;
    then the preflight of the run, and then an audit of `riprap select`, both in the run's folder.

    Args:
        behavior: its name in the record.
        until: last step that counts; None: all.
        events: those of the record, where the caller has read them; None: they are read.
    """
    found = _from_selector(reader.events() if events is None else events, behavior, until)
    if isinstance(found, Blame):
        return found
    without = Blame(f"{found or 'No row was examined:'} {_how_to_get(reader, behavior)}")
    if reader.path is None:
        return without
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
    return without


def _how_to_get(reader: Reader, behavior: str) -> str:
    notes, where = reader.meta().get("notes"), ""
    if isinstance(notes, dict) and "rows" in notes:
        command = "riprap preflight CONFIG, before training,"
    else:
        probes = behavior
        if behavior not in {*probe_sets.names(), *probe_sets.public_names()}:
            probes, where = "PROBES.jsonl", " (PROBES.jsonl is a file of its probes)"
        command = f"riprap select DATA --model BASE --behaviors {probes} --out RUN/selection"
    return f"{command} finds the rows that harm it most; they are shown here then{where}."


def _from_selector(
    events: Sequence[Mapping[str, Any]], behavior: str, until: int | None
) -> Blame | str:
    """Return the rows that the run's selector scored, or why there are none; "": no selector."""
    # It chooses rows before a step and its event is of the step before. A resumed run takes a step
    # again: its last event counts.
    chosen = {own["step"] + 1: own["facts"] for own in events_that_stand(events, SELECTION)}
    falls: dict[str, float] = defaultdict(float)
    scored, damaged, by_id = [], 0, True
    for step, facts in chosen.items():
        try:
            harms, is_id = facts["scores"][HARM + behavior], bool(facts.get("by_id"))
        except DAMAGE:
            continue  # its strategy has no harm, or no selector wrote the event
        try:
            own = [
                (_row_name(row, step, is_id), float(harm))
                for row, harm in zip(facts["rows"], harms, strict=True)
            ]
        except DAMAGE:
            own = []
        scored.append(step)
        if until is not None and step > until:
            continue
        if not own or not np.isfinite([harm for _, harm in own]).all():
            damaged += 1
            continue
        by_id = by_id and is_id
        for name, harm in own:
            falls[name] += harm
    if falls:
        return _of_selector(falls, by_id, damaged)
    if not chosen:
        return ""
    if not scored:
        strategies = {str(own["strategy"]) for own in chosen.values() if "strategy" in own}
        name = f" {shorten(strategies.pop())}" if len(strategies) == 1 else ""
        return f"The strategy{name} of the row selection records no harm to {shorten(behavior)}:"
    if damaged:
        return "The harm that row selection recorded is not finite:"
    begins = f"row selection begins at step {min(scored):,}"
    return f"No row was examined up to step {until:,}: {begins};"


def _of_selector(falls: Mapping[str, float], by_id: bool, damaged: int) -> Blame:
    names, values = list(falls), np.array(list(falls.values()))
    half = fewest_rows_for(0.5, values)
    counted = "" if by_id else ", counted at each step,"
    left_out = f" Steps without finite scores are left out: {damaged:,}." if damaged else ""
    return Blame(
        f"Row selection examined these rows when training learned from them.{left_out}",
        ""
        if half is None
        else f"{half:,} of {len(names):,} learned rows{counted} were predicted to do half of it, "
        "at equal learning rates",
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
    if not np.isfinite(harm * weights).all():
        raise ValueError("a score is not finite")
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
        _worst(names, harm * weights, texts, with_shares=own["explained"] is True),
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
    model = document.get("model")
    on = f" on {shorten(model)}" if isinstance(model, str) and model else ""
    origin = f"riprap select examined these rows{on} ({place})."
    if digest is None:
        origin += " They were not compared with those of the run, of which it recorded nothing."
    elif digest != document["rows_digest"]:
        origin += " Their numbers are those in the original data, not in chosen.jsonl."
    return Blame(origin, rows=rows), ""


def _worst(
    names: list[str],
    falls: np.ndarray,
    texts: Mapping[str, tuple[str, str]],
    with_shares: bool = True,
) -> tuple[Row, ...]:
    total = float(falls[falls > 0].sum())
    order = [at for at in np.argsort(-falls, kind="stable")[:MAX_ROWS].tolist() if falls[at] > 0]
    return tuple(
        Row(names[at], float(falls[at]) / total if with_shares else None, *texts.get(names[at], ()))
        for at in order
    )
